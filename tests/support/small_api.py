"""A server that answers as a test wants it, for what the sandbox doesn't play. It keeps what it was asked."""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from aiohttp import web
from own_loop import own_loop
from patience import PATIENCE_SECONDS
from scan_rows import document

from etl.model import Pair

DEPLOYMENTS = "/api/v1/deployments"
UNTRUSTED = Path(__file__).parent / "untrusted.pem"
"""A key and a certificate that it has signed itself. Made for these tests; it opens nothing."""
EXPIRED = Path(__file__).parent / "expired.pem"
"""Another one, which was valid for a day."""
HIDDEN = Path(__file__).parent / "hidden.pem"
"""Another one, of a host that no name server knows: `HIDDEN_HOST`."""
HIDDEN_HOST = "api.hidden.example"
LINE_BYTES = 65_536


class Seen(NamedTuple):
    """One request. `at` is on the monotonic clock; `token` is what the Authorization header had."""

    path: str
    at: float
    headers: Mapping[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


class Call(NamedTuple):
    """What an answer may depend on: the pair, and how often its path has been asked for, this time included."""

    request: web.BaseRequest
    pair: Pair
    times: int


Answer = Callable[[Call], Awaitable[web.StreamResponse]]


async def found(call: Call) -> web.StreamResponse:
    """The scan, as a sound API gives it."""
    return json_answer(document(call.pair))


async def sees_120(_: Call) -> web.StreamResponse:
    """The token may see deployment 120."""
    return json_answer({"deployments": [{"id": 120, "slug": "small", "name": "Small"}]})


def json_answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), headers={"Content-Type": "application/json", **(headers or {})}
    )


async def never(_: Call) -> web.StreamResponse:
    """No answer, until the client goes away."""
    await asyncio.Event().wait()
    return web.Response()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what the other side does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.005)


def tls_of(certificate: Path) -> ssl.SSLContext:
    """What a server with this certificate needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class SmallApi:
    """Answers the details call by `details`, and `GET /api/v1/deployments` by `deployments`."""

    def __init__(self, details: Answer = found, deployments: Answer = sees_120) -> None:
        self.details = details
        self.deployments = deployments
        self.seen: list[Seen] = []
        self.times = Counter[str]()
        self.base_url = ""
        self._runner: web.ServerRunner | None = None

    async def start(self, ssl_context: ssl.SSLContext | None = None, port: int = 0) -> str:
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.2
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=ssl_context).start()
        scheme = "https" if ssl_context else "http"
        self.base_url = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.base_url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def details_seen(self) -> list[Seen]:
        """The details calls, in the order in which they came."""
        return [seen for seen in self.seen if seen.path != DEPLOYMENTS]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(Seen(request.path, time.monotonic(), dict(request.headers)))
        self.times[request.path] += 1
        if request.path == DEPLOYMENTS:
            return await self.deployments(Call(request, Pair(0, 0), self.times[request.path]))
        parts = request.path.split("/")
        return await self.details(Call(request, Pair(int(parts[4]), int(parts[6])), self.times[request.path]))


@contextmanager
def in_thread(api: SmallApi, ssl_context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[str]:
    """Serve from another thread until the block ends, for tests that start the command. Gives the base URL."""
    with own_loop() as call:
        try:
            yield call(api.start(ssl_context, port))
        finally:
            call(_end(api))


async def _end(api: SmallApi) -> None:
    """Stop the server, and end the handshakes that are still going on, as `asyncio.run` would."""
    await api.stop()
    going_on = asyncio.all_tasks() - {asyncio.current_task()}
    for task in going_on:
        task.cancel()
    await asyncio.gather(*going_on, return_exceptions=True)


# Bytes instead of HTTP

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request without a body; empty where the client has gone."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """Says whatever `talk` says once the details have been asked for, and closes the connection then. The
    deployments call works, so that the server isn't taken for dead. Gives the base URL.
    """
    talking: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):  # the client may go when it likes
            request = await read_request(reader)
            if request.startswith(b"GET /api/v1/deployments "):
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            elif request:
                await talk(reader, writer)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        talking[task] = writer
        task.add_done_callback(talking.pop)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=LINE_BYTES)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        ending = dict(talking)
        for task, writer in ending.items():
            task.cancel()
            writer.close()  # what is cancelled before it began closes nothing
        await asyncio.gather(*ending, return_exceptions=True)


@asynccontextmanager
async def full_listener() -> AsyncIterator[str]:
    """An address where no connection comes about: the line of those who wait is full. Gives the base URL."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                with suppress(TimeoutError):
                    await asyncio.wait_for(loop.sock_connect(one, listener.getsockname()), 0.1)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()
