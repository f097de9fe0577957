"""Connections that the server closes when it likes, and answers with a lot before their bodies."""

import asyncio
from functools import partial

import pytest
from aiohttp import ServerDisconnectedError, web
from scan_rows import document
from semgrep_client import asking_at
from semgrep_failures import OK, ONE
from small_api import Call, SmallApi, json_answer, raw_server, read_request, until

from etl.errors import TransientError
from etl.model import Pair
from etl.semgrep.connections import Protocol, UnreadError

SOUND = OK + b"Content-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize("headers", [{"X-Policy": "x" * 12_000}, {f"X-Header-{number}": "x" for number in range(150)}])
async def test_large_and_many_headers_are_read(headers: dict[str, str]) -> None:
    """Security policies of more than 8 KB exist, and gateways that add headers of their own."""

    async def answer(call: Call) -> web.StreamResponse:
        return json_answer(document(call.pair), headers=headers)

    async with SmallApi(answer) as api, asking_at(api.base_url) as asking:
        assert await asking.semgrep.scan(ONE) == document(ONE)


async def test_headers_without_end_are_no_answer() -> None:
    """They don't fill the memory."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        while not writer.is_closing():
            writer.write(b"X-More: and more\r\n" * 100)
            await writer.drain()

    async with raw_server(talk) as base_url, asking_at(base_url) as asking:
        with pytest.raises(TransientError) as caught:
            await asking.semgrep.scan(ONE)

    assert caught.value.kind == "broken_answer"


async def test_a_server_that_keeps_no_connection_costs_nothing() -> None:
    """Although it doesn't say so: no failure, no retry, not a request more than there are scans."""
    requests = 0

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(SOUND)

    async with raw_server(talk) as base_url, asking_at(base_url) as asking:
        for number in range(1, 101):
            await asking.semgrep.scan(Pair(120, number))

    assert requests == asking.counts.requests == 100
    assert asking.counts.retried == 0


@pytest.mark.parametrize("is_read", [True, False])
async def test_the_end_of_a_connection_says_whether_the_request_was_taken(is_read: bool) -> None:
    """One that comes while a request is on its way is told from that of a server which reads and closes."""
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_read:
            await reader.read(1)
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(partial(Protocol, loop=loop), *server.sockets[0].getsockname())
    transport.pause_reading()  # the end isn't heard of yet
    if is_read:
        transport.write(b"?")
    await closed.wait()
    if not is_read:
        transport.write(b"?")
    transport.resume_reading()
    await until(lambda: protocol.exception() is not None)
    server.close()

    assert isinstance(protocol.exception(), ServerDisconnectedError if is_read else UnreadError)


async def test_a_reset_is_a_failure() -> None:
    """The server may have read the request."""
    talks = 0

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal talks
        talks += 1
        writer.transport.abort()

    async with raw_server(talk) as base_url, asking_at(base_url) as asking:
        with pytest.raises(TransientError) as caught:
            await asking.semgrep.scan(ONE)

    assert caught.value.kind == "connection"
    assert talks == 1


async def test_a_request_that_was_read_is_not_sent_once_more() -> None:
    """The server may have worked on it: it was a request, and counts as one."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(SOUND)
        requests += bool(await read_request(reader))

    async with raw_server(talk) as base_url, asking_at(base_url, retries=1) as asking:
        for number in (1, 2):
            await asking.semgrep.scan(Pair(120, number))

    assert requests == asking.counts.requests == 3
    assert asking.counts.retried == 1
