"""What the client asks of the API, and what it makes of each answer: over real HTTP, from real servers."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from sandbox_client import SANDBOX_TOKEN
from scan_rows import document
from semgrep_client import TOKEN, asking_at
from semgrep_failures import OK, ONE, failure_of, failure_to_reach
from small_api import (
    EXPIRED,
    UNTRUSTED,
    Call,
    SmallApi,
    found,
    json_answer,
    raw_server,
    read_request,
    tls_of,
    until,
)

from etl import __version__
from etl.errors import FatalError, StoppedError, TransientError
from etl.model import Pair
from etl.sandbox import Sandbox, World


async def test_a_scan_is_what_the_api_says_of_it() -> None:
    """The decoded answer, for each scan its own, with one request each."""
    sandbox = Sandbox(World(scans=20, never_finished_share=0.0, cancelled_share=0.0, scans_per_day=0.5))
    async with sandbox as base_url, asking_at(base_url, {"SEMGREP_APP_TOKEN": SANDBOX_TOKEN}) as asking:
        answers = [await asking.semgrep.scan(Pair(120, number)) for number in range(1, 11)]

    assert answers == [sandbox.truth(number) for number in range(1, 11)]
    assert asking.tally.requests == sandbox.stats.requests["details", 200] == 10


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
    assert asking.tally.requests == requests == 3


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


# Retries in place, and the end


async def test_a_failure_is_tried_again_in_place() -> None:
    """As often as `retries` says, each time counted; then the error comes out."""

    async def fails(call: Call) -> web.StreamResponse:
        return await found(call) if call.pair == ONE and call.times > 1 else json_answer({}, status=500)

    async with SmallApi(fails) as api, asking_at(api.base_url, retries=1) as asking:
        answer = await asking.semgrep.scan(ONE)
        retried = asking.tally.retried
        with pytest.raises(TransientError):
            await asking.semgrep.scan(Pair(120, 2))

    times = Counter(seen.path for seen in api.details_seen())
    assert answer == document(ONE)
    assert retried == 1
    assert times["/api/v1/deployments/120/scan/2"] == 2
    assert asking.tally.requests == len(api.seen)


async def test_no_request_is_sent_after_hush() -> None:
    """Who waits for its turn is told to stop, and so is who comes later, also for another deployment."""
    tokens = {"SEMGREP_APP_TOKEN": "for-all", "SEMGREP_APP_TOKEN__121": "for-121"}
    async with SmallApi() as api, asking_at(api.base_url, tokens, rate=20.0) as asking:
        scans = [asyncio.create_task(asking.semgrep.scan(Pair(120, number))) for number in range(1, 41)]
        await until(lambda: len(api.seen) >= 3)
        asking.semgrep.stop_sending()
        sent = asking.tally.requests
        ended = await asyncio.gather(*scans, return_exceptions=True)
        for pair in (ONE, Pair(121, 1)):
            with pytest.raises(StoppedError):
                await asking.semgrep.scan(pair)

    stopped = [error for error in ended if isinstance(error, StoppedError)]
    assert asking.tally.requests == len(api.seen) == sent
    assert len(stopped) == 40 - sent
