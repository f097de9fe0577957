"""What the client asks of the API, and what it makes of each answer: over real HTTP, from real servers."""

import asyncio
import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from patience import PATIENCE_SECONDS
from sandbox_client import SANDBOX_TOKEN
from scan_rows import document
from semgrep_client import TOKEN, asking_at
from small_api import (
    DEPLOYMENTS,
    EXPIRED,
    UNTRUSTED,
    Answer,
    Call,
    SmallApi,
    found,
    full_listener,
    json_answer,
    never,
    raw_server,
    read_request,
    sees_120,
    tls_of,
    until,
)

from etl import __version__
from etl.errors import ApiError, FatalError, ItemError, StoppedError, TransientError
from etl.model import Pair
from etl.sandbox import Deployment, Sandbox, Token, World
from etl.semgrep import transport as http

ONE = Pair(120, 1)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def failure(base_url: str, pair: Pair = ONE, **settings: Any) -> ApiError:
    """The error that asking for a scan ends with."""
    async with asking_at(base_url, **settings) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.scan(pair)
    return caught.value


async def failure_to_reach(base_url: str, **settings: Any) -> ApiError:
    """The error that the first question of all ends with, where no server answers as it should."""
    async with asking_at(base_url, **settings) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.seen_by_token_of(120)
    return caught.value


async def failure_of(answer: Answer, **settings: Any) -> ApiError:
    async with SmallApi(answer) as api:
        return await failure(api.base_url, **settings)


# Asking


async def test_a_scan_is_what_the_api_says_of_it() -> None:
    """The decoded answer, for each scan its own, with one request each."""
    sandbox = Sandbox(World(scans=20, never_finished_share=0.0, cancelled_share=0.0, scans_per_day=0.5))
    async with sandbox as base_url, asking_at(base_url, {"SEMGREP_APP_TOKEN": SANDBOX_TOKEN}) as asking:
        answers = [await asking.semgrep.scan(Pair(120, number)) for number in range(1, 11)]

    assert answers == [sandbox.truth(number) for number in range(1, 11)]
    assert asking.counts.requests == sandbox.stats.requests["details", 200] == 10


async def test_a_request_says_who_asks_and_for_what() -> None:
    """Path, token, User-Agent and Accept are those of the contract; cookies aren't kept."""

    async def sets_cookie(call: Call) -> web.StreamResponse:
        return json_answer(document(call.pair), headers={"Set-Cookie": "session=1; Path=/"})

    async with SmallApi(sets_cookie) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.scan(Pair(120, 2**63 - 1))
        await asking.semgrep.scan(ONE)

    first, second = api.seen
    assert first.path == "/api/v1/deployments/120/scan/9223372036854775807"
    assert first.headers["User-Agent"] == f"scan-etl/{__version__}"
    assert first.headers["Accept"] == "application/json"
    assert first.headers["Accept-Encoding"] == "gzip, deflate"
    assert first.headers["Authorization"] == f"Bearer {TOKEN}"
    assert "Cookie" not in second.headers


async def test_each_deployment_is_asked_with_its_own_token() -> None:
    """The token of one never goes out with the pairs of another."""
    tokens = {"SEMGREP_APP_TOKEN": "for-all", "SEMGREP_APP_TOKEN__121": "for-121"}
    async with SmallApi() as api, asking_at(api.base_url, tokens) as asking:
        for deployment_id in (120, 121, 122):
            await asking.semgrep.scan(Pair(deployment_id, 1))

    assert [seen.token for seen in api.seen] == ["for-all", "for-121", "for-all"]
    assert set(asking.rate_slots) == {"for-all", "for-121"}


async def test_connections_are_kept_for_the_next_request() -> None:
    """Requests that follow each other use one connection."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
        while await read_request(reader):
            writer.write(OK + b"Content-Length: 2\r\n\r\n{}")

    async with raw_server(talk) as base_url, asking_at(base_url) as asking:
        for number in range(1, 11):
            await asking.semgrep.scan(Pair(120, number))

    assert connections == 1


async def test_a_connection_that_the_server_closes_between_requests_is_survived() -> None:
    """A server that keeps no connection, and doesn't say so, costs at most a quick retry."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with raw_server(talk) as base_url, asking_at(base_url, retries=3) as asking:
        answers = [await asking.semgrep.scan(Pair(120, number)) for number in range(1, 4)]

    assert answers == [{}] * 3


async def test_every_request_is_counted_and_paced_also_after_a_dead_connection() -> None:
    """The client never asks a second time on its own where a kept connection turns out dead."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
        requests += bool(await read_request(reader))

    async with raw_server(talk) as base_url, asking_at(base_url) as asking:
        await asking.semgrep.scan(ONE)
        with pytest.raises(TransientError) as caught:
            await asking.semgrep.scan(Pair(120, 2))

    # The third asks, on a new connection, whether what has worked before still does.
    assert caught.value.kind == "connection"
    assert asking.counts.requests == requests == 3


# The token stays at home


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_token_is_not_sent_to_another_host_on_a_redirect(status: int) -> None:
    """No redirect is followed, and the error says where it would have led."""
    async with SmallApi() as other:

        async def leads_away(call: Call) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": other.base_url + call.request.path})

        error = await failure_of(leads_away)

    assert other.seen == []
    assert isinstance(error, TransientError)
    assert error.http_status == status
    assert other.base_url.removeprefix("http://") in str(error)


async def test_an_error_text_shows_what_the_server_said_but_not_the_token() -> None:
    """Also where the server sends the token back."""

    async def tells(_: Call) -> web.StreamResponse:
        return json_answer({"message": f"{TOKEN} may not"}, status=500)

    error = await failure_of(tells)

    assert "*** may not" in str(error)
    assert TOKEN not in str(error)


@pytest.mark.parametrize("certificate", [UNTRUSTED, EXPIRED, None])
async def test_an_untrusted_server_is_refused(certificate: Path | None) -> None:
    """A certificate that nobody vouches for stops the run before the token is sent; so does no TLS at all."""
    api = SmallApi()
    base_url = await api.start(tls_of(certificate) if certificate else None)
    try:
        error = await failure_to_reach(base_url.replace("http://", "https://"))
    finally:
        await api.stop()

    assert api.seen == []
    assert isinstance(error, FatalError)
    assert (error.kind, error.stop_code) == ("tls", 4)
    assert "SSL_CERT_FILE" in str(error)


async def test_a_handshake_that_fails_is_no_scans_fault() -> None:
    """Who doesn't give up tries again later, and no attempt is spent on it."""
    refusal = bytes.fromhex("15 0303 0002 0228")  # an alert of TLS 1.2: fatal, handshake_failure

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(refusal)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asking_at(f"https://127.0.0.1:{port}", gives_up=False) as asking:
        with pytest.raises(TransientError) as caught:
            await asking.semgrep.ping()

    assert (caught.value.kind, caught.value.spends_attempt) == ("tls", False)


# Answers


@pytest.mark.parametrize("status", [201, 203, 206, 400, 401, 403, 404, 408, 410, 418, 429, 500, 503])
async def test_the_status_is_looked_at_before_the_body(status: int) -> None:
    """An error page that holds a perfect scan isn't taken for data."""

    async def perfect(call: Call) -> web.StreamResponse:
        return json_answer(document(call.pair), status=status)

    error = await failure_of(perfect)

    assert error.http_status == status


async def test_of_a_long_error_the_beginning_is_kept_but_no_piece_of_the_token() -> None:
    """Also where the piece that is read ends in the middle of it."""

    async def tells(_: Call) -> web.StreamResponse:
        blanks = " " * (2_000 - len("trouble") - 5)
        return web.Response(status=500, text=f"trouble{blanks}{TOKEN}{' ' * 1_000_000}", content_type="text/html")

    error = await failure_of(tells)

    assert str(error).endswith(": trouble")


async def test_an_error_with_a_huge_body_keeps_its_status() -> None:
    """Whatever comes with it, the status says what is wrong."""

    async def bloated(_: Call) -> web.StreamResponse:
        body = gzip.compress(b"x" * 10_000_000)
        return web.Response(status=401, body=body, headers={"Content-Encoding": "gzip"})

    error = await failure_of(bloated)

    assert isinstance(error, FatalError)
    assert error.http_status == 401


async def test_an_error_whose_body_never_ends_keeps_its_status() -> None:
    """A refused token is no timeout."""

    async def endless(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(status=403)
        await response.prepare(call.request)
        await response.write(b"{")
        return await never(call)

    error = await failure_of(endless, timeout_seconds=1.0)

    assert isinstance(error, FatalError)
    assert error.http_status == 403


async def test_an_error_whose_body_breaks_off_keeps_its_status() -> None:
    """A connection cut in the middle of an error page is that error."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 900\r\n\r\n{")

    async with raw_server(talk) as base_url:
        error = await failure(base_url)

    assert isinstance(error, FatalError)


@pytest.mark.parametrize("head", [b"Content-Length: 900\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2\r\n"])
async def test_a_body_that_is_cut_off_is_no_answer(head: bytes) -> None:
    """Even if what came is JSON by itself."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + head + b"{}")

    async with raw_server(talk) as base_url:
        error = await failure(base_url)

    assert isinstance(error, TransientError)
    assert error.kind == "broken_answer"


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"\x00" * 99])
async def test_what_is_no_http_is_tried_again(words: bytes) -> None:
    """A connection that closes, or a server that speaks another language, isn't the scan's fault for ever."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)

    async with raw_server(talk) as base_url:
        error = await failure(base_url)

    assert isinstance(error, TransientError)
    assert error.kind in ("connection", "broken_answer")


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("text/html", json.dumps(document(ONE)).encode(), "not_json"),
        ("application/json", b"<!doctype html>", "broken_json"),
        ("application/json; charset=latin-1", '{"title": "caf\xe9"}'.encode("latin-1"), "broken_json"),
        ("application/json", b"", "broken_json"),
    ],
)
async def test_a_wrong_content_type_or_encoding_is_no_answer(content_type: str, body: bytes, kind: str) -> None:
    """A sign-in page isn't data, and neither is text in another encoding than JSON's."""

    async def wrong(_: Call) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type})

    error = await failure_of(wrong)

    assert isinstance(error, TransientError)
    assert (error.kind, error.http_status) == (kind, 200)


async def test_compressed_answers_are_unpacked() -> None:
    """As the request has offered."""

    async def packed(call: Call) -> web.StreamResponse:
        body = gzip.compress(json.dumps(document(call.pair)).encode())
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    async with SmallApi(packed) as api, asking_at(api.base_url) as asking:
        answer = await asking.semgrep.scan(ONE)

    assert answer == document(ONE)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_a_body_that_is_not_packed_as_it_says_is_no_answer(encoding: str) -> None:
    """Broken packing is tried again, like a broken connection, and the error names it."""

    async def lies(call: Call) -> web.StreamResponse:
        body = json.dumps(document(call.pair)).encode()
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": encoding})

    error = await failure_of(lies)

    assert isinstance(error, TransientError)
    assert error.kind == "broken_answer"
    assert ": Can not decode content-encoding: " in str(error)


def padded(length: int) -> bytes:
    """A JSON document of so many bytes."""
    return b'{"a":"' + b"x" * (length - 8) + b'"}'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_an_answer_up_to_the_cap_is_read_and_one_beyond_it_is_dead(pack: type[bytes]) -> None:
    """The unpacked size counts, so a gzip bomb doesn't go off; a scan that large will be so the next time too."""
    cap = 100_000

    async def of_size(call: Call) -> web.StreamResponse:
        body = pack(padded({1: cap, 2: cap + 1, 3: 30_000_000}[call.pair.scan_id]))
        packing = {} if pack is bytes else {"Content-Encoding": "gzip"}
        return web.Response(body=body, headers={"Content-Type": "application/json", **packing})

    async with SmallApi(of_size) as api, asking_at(api.base_url, max_body_bytes=cap) as asking:
        answer = await asking.semgrep.scan(ONE)
        errors = []
        for number in (2, 3):
            with pytest.raises(ItemError) as caught:
                await asking.semgrep.scan(Pair(120, number))
            errors.append((caught.value.kind, caught.value.http_status))

    assert answer == json.loads(padded(cap))
    assert errors == [("too_large", 200)] * 2


# Time


async def test_a_server_that_takes_no_connection_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting has an end of its own, and the error says which it was."""
    async with full_listener() as base_url:
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_SECONDS", 0.5)
        error = await failure_to_reach(base_url, timeout_seconds=20)

    assert isinstance(error, TransientError)
    assert error.kind == "timeout"
    assert str(error).startswith("no connection within 0.5 s")


async def test_a_server_that_does_not_listen_is_tried_again() -> None:
    """It may be on its way up."""
    api = SmallApi()
    base_url = await api.start()
    await api.stop()
    error = await failure_to_reach(base_url)

    assert isinstance(error, TransientError)
    assert error.kind == "connection"


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    """Reading has an end."""
    error = await failure_of(never, timeout_seconds=0.5)

    assert isinstance(error, TransientError)
    assert error.kind == "timeout"


async def test_a_server_that_drips_is_a_timeout() -> None:
    """The whole request has an end: a byte every 0.2 s keeps nobody waiting for ever."""
    dripped = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dripped
        writer.write(OK + b"Content-Length: 10000\r\n\r\n")
        while not reader.at_eof():
            writer.write(b" ")
            dripped += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)

    async with raw_server(talk) as base_url:
        error = await failure(base_url, timeout_seconds=0.7)

    assert isinstance(error, TransientError)
    assert error.kind == "timeout"
    assert 0 < dripped < 10_000


# Tokens and 404


async def gone(_: Call) -> web.StreamResponse:
    return json_answer({"message": "no such scan"}, status=404)


async def test_many_404s_share_a_question() -> None:
    """Only once the token has proved good is a scan gone, and that is asked once for all that wait for it."""

    async def when_all_are_gone(_: Call) -> web.StreamResponse:
        await until(lambda: len(api.details_seen()) == 30)
        return json_answer({"deployments": [{"id": 120}]})

    async with SmallApi(gone, when_all_are_gone) as api, asking_at(api.base_url) as asking:
        scans = [asking.semgrep.scan(Pair(120, number)) for number in range(1, 31)]
        errors = await asyncio.gather(*scans, return_exceptions=True)

    assert {type(error) for error in errors} == {ItemError}
    assert 1 <= api.times[DEPLOYMENTS] <= 5


async def test_a_404_is_not_believed_by_what_the_token_saw_before_it() -> None:
    """A token that loses its scope from one moment to the next buries no scan, however well it has just worked."""
    lost = False

    async def details(call: Call) -> web.StreamResponse:
        return await (gone if lost else found)(call)

    async def deployments(call: Call) -> web.StreamResponse:
        return await (gone if lost else sees_120)(call)

    async with SmallApi(details, deployments) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.check_token(120)
        await asking.semgrep.scan(ONE)
        lost = True
        scans = [asking.semgrep.scan(Pair(120, number)) for number in range(2, 12)]
        errors = await asyncio.gather(*scans, return_exceptions=True)

    assert {getattr(error, "kind", None) for error in errors} == {"token_without_scope"}


async def test_a_404_is_believed_when_another_scan_of_the_deployment_comes_after_it() -> None:
    """Then no question is needed; a scan of another deployment proves nothing."""

    async def answer(call: Call) -> web.StreamResponse:
        return await (gone if call.pair.scan_id == 1 else found)(call)

    async def questions(other: Pair) -> int:
        async with SmallApi(answer) as api, asking_at(api.base_url, rate=20.0) as asking:
            for _ in range(5):
                missing = asyncio.create_task(asking.semgrep.scan(ONE))
                while not missing.done():
                    await asking.semgrep.scan(other)
                with pytest.raises(ItemError):
                    await missing
        return api.times[DEPLOYMENTS]

    same, another = await asyncio.gather(questions(Pair(120, 2)), questions(Pair(121, 2)))

    assert same < another == 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "token_without_scope"), (401, "token_refused"), (410, "endpoint_retired")],
)
async def test_a_404_is_not_believed_when_the_token_is_bad(status: int, kind: str) -> None:
    """Then the token stops its deployment, and no scan is buried."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    async with SmallApi(nothing, refuses) as api:
        error = await failure(api.base_url)

    assert isinstance(error, FatalError)
    assert error.kind == kind


async def test_a_404_is_not_believed_while_the_question_has_no_answer() -> None:
    """A pair isn't to blame for that: it comes back later, as it was."""

    async def fails(_: Call) -> web.StreamResponse:
        return json_answer({}, status=500 if down else 200)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    down = True
    async with SmallApi(nothing, fails) as api, asking_at(api.base_url) as asking:
        asked = asyncio.create_task(asking.semgrep.scan(ONE))
        await until(lambda: api.times[DEPLOYMENTS] >= 2)
        down = False
        with pytest.raises(TransientError) as caught:
            await asked

    assert not caught.value.spends_attempt


async def test_a_token_of_another_deployment_is_found_out() -> None:
    """The error says whose it is, and stops only the deployment that it was set for."""
    async with SmallApi() as api, asking_at(api.base_url) as asking:

        async def nothing(_: Call) -> web.StreamResponse:
            return json_answer({}, status=404)

        api.details = nothing
        with pytest.raises(FatalError) as at_scan:
            await asking.semgrep.scan(Pair(121, 1))
        with pytest.raises(FatalError) as at_check:
            await asking.semgrep.check_token(122)
        await asking.semgrep.check_token(120)

    assert {caught.value.kind for caught in (at_scan, at_check)} == {"token_of_another_deployment"}
    assert "deployment 121 belongs to deployment 120" in str(at_scan.value)
    assert "deployment 122 belongs to deployment 120" in str(at_check.value)


@pytest.mark.parametrize(
    ("token", "kind"),
    [("sandbox-token", None), ("blind", "token_without_scope"), ("wrong", "token_refused"), (None, "token_missing")],
)
async def test_a_token_is_checked_before_anything_is_fetched(token: str | None, kind: str | None) -> None:
    """Each fault of a token has its kind, and the deployment that it stops."""
    world = World(scans=5, deployments=(Deployment(120, tokens=(Token(), Token("blind", web_api=False))),))
    tokens = {"SEMGREP_APP_TOKEN__120": token} if token else {"SEMGREP_APP_TOKEN__7": "x"}
    found_out = None
    async with Sandbox(world) as base_url, asking_at(base_url, tokens) as asking:
        try:
            await asking.semgrep.check_token(120)
        except FatalError as error:
            found_out = error

    assert (found_out and (found_out.kind, found_out.stop_code)) == (kind and (kind, 3))


@pytest.mark.parametrize(("status", "stop_code"), [(401, 3), (403, 3), (410, 4)])
async def test_what_is_refused_for_good_stops_its_deployment(status: int, stop_code: int) -> None:
    """A revoked token and a retired endpoint are the trouble of the deployment that was asked for."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    error = await failure_of(refuses, retries=2)

    assert isinstance(error, FatalError)
    assert error.stop_code == stop_code


@pytest.mark.parametrize("status", [400, 402, 405, 407, 451])
async def test_whatever_the_deployments_call_answers_is_no_bug_and_buries_no_scan(status: int) -> None:
    """It stops the deployment with exit code 4, in the check as after a 404 of a scan."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    async with SmallApi(nothing, refuses) as api, asking_at(api.base_url) as asking:
        with pytest.raises(FatalError) as at_check:
            await asking.semgrep.check_token(120)
        with pytest.raises(FatalError) as at_scan:
            await asking.semgrep.scan(ONE)

    assert {caught.value.stop_code for caught in (at_check, at_scan)} == {4}


async def test_a_token_call_that_fails_while_scans_are_shown_is_not_asked_endlessly() -> None:
    """After max_wait_seconds the deployment that waits for it is given up; the other one goes on."""

    async def fails(_: Call) -> web.StreamResponse:
        return json_answer({}, status=500)

    async with SmallApi(found, fails) as api, asking_at(api.base_url, max_wait_seconds=0.5) as asking:
        await asking.semgrep.scan(ONE)
        with pytest.raises(FatalError) as caught:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asking.semgrep.check_token(121)
        await asking.semgrep.scan(Pair(120, 2))

    assert caught.value.stop_code == 4


# Retries in place, and the end


async def test_a_failure_is_tried_again_in_place() -> None:
    """As often as `retries` says, each time counted; then the error comes out."""

    async def fails(call: Call) -> web.StreamResponse:
        return await found(call) if call.pair == ONE and call.times > 1 else json_answer({}, status=500)

    async with SmallApi(fails) as api, asking_at(api.base_url, retries=1) as asking:
        answer = await asking.semgrep.scan(ONE)
        retried = asking.counts.retried
        with pytest.raises(TransientError):
            await asking.semgrep.scan(Pair(120, 2))

    times = Counter(seen.path for seen in api.details_seen())
    assert answer == document(ONE)
    assert retried == 1
    assert times["/api/v1/deployments/120/scan/2"] == 2
    assert asking.counts.requests == len(api.seen)


async def test_no_request_is_sent_after_hush() -> None:
    """Who waits for its turn is told to stop, and so is who comes later, also for another deployment."""
    tokens = {"SEMGREP_APP_TOKEN": "for-all", "SEMGREP_APP_TOKEN__121": "for-121"}
    async with SmallApi() as api, asking_at(api.base_url, tokens, rate=20.0) as asking:
        scans = [asyncio.create_task(asking.semgrep.scan(Pair(120, number))) for number in range(1, 41)]
        await until(lambda: len(api.seen) >= 3)
        asking.semgrep.stop_sending()
        sent = asking.counts.requests
        ended = await asyncio.gather(*scans, return_exceptions=True)
        for pair in (ONE, Pair(121, 1)):
            with pytest.raises(StoppedError):
                await asking.semgrep.scan(pair)

    stopped = [error for error in ended if isinstance(error, StoppedError)]
    assert asking.counts.requests == len(api.seen) == sent
    assert len(stopped) == 40 - sent
