"""Answers of every kind, and answers that do not come: what each is to the client."""

import asyncio
import contextlib
import gzip
import json

import pytest
from aiohttp import web
from scan_rows import document
from semgrep_client import TOKEN, asking_at
from semgrep_failures import OK, ONE, failure, failure_of, failure_to_reach
from small_api import (
    Call,
    SmallApi,
    full_listener,
    json_answer,
    never,
    raw_server,
)

from etl.errors import ItemError, TransientError
from etl.model import Pair
from etl.semgrep import transport as http


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

    assert (error.kind, error.http_status) == ("refused", 401)


async def test_an_error_whose_body_never_ends_keeps_its_status() -> None:
    """A refusal is no timeout."""

    async def endless(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(status=403)
        await response.prepare(call.request)
        await response.write(b"{")
        return await never(call)

    error = await failure_of(endless, timeout_seconds=1.0)

    assert (error.kind, error.http_status) == ("refused", 403)


async def test_an_error_whose_body_breaks_off_keeps_its_status() -> None:
    """A connection cut in the middle of an error page is that error."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 900\r\n\r\n{")

    async with raw_server(talk) as base_url:
        error = await failure(base_url)

    assert (error.kind, error.http_status) == ("refused", 403)


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
