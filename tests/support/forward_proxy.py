"""A forward proxy on loopback, which tunnels (CONNECT) and forwards plain requests. It keeps what it was asked."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from own_loop import own_loop

PIECE_BYTES = 65_536
REFUSED = b"HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Asked(NamedTuple):
    """One request to the proxy: its first line, and its headers as they came."""

    line: str
    headers: str


class ForwardProxy:
    """Knows at which port of this machine each of `hosts` is; others it looks up. It wants `login`, `user:password`,
    unless that is empty, and answers every request with `refusal` if it is set."""

    def __init__(self, login: str = "", refusal: int = 0) -> None:
        self.hosts: Mapping[str, int] = {}
        self.login = login
        self.refusal = refusal
        self.asked: list[Asked] = []
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Listen until the block ends. Gives the place, `host:port`."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            self._serving[task] = writer
            task.add_done_callback(self._serving.pop)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            ending = dict(self._serving)
            for task, writer in ending.items():
                task.cancel()
                writer.close()  # what is cancelled before it began closes nothing
            await asyncio.gather(*ending, return_exceptions=True)

    @contextmanager
    def in_thread(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """As `listening`, from another thread, for tests that start the command."""
        with own_loop() as call:
            listening = self.listening(tls)
            place = call(listening.__aenter__())
            try:
                yield place
            finally:
                call(listening.__aexit__(None, None, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, _, headers = head.partition("\r\n")
            self.asked.append(Asked(line, headers))
            if self.refusal or not self._lets_in(headers):
                writer.write(REFUSED % (self.refusal or 407, b"Refused"))
                return
            method, target, version = line.split(" ")
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            host, port = url.hostname or "", url.port or 80
            to_reader, to_writer = await asyncio.open_connection(
                "127.0.0.1" if host in self.hosts else host, self.hosts.get(host, port)
            )
            with closing(to_writer):
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    to_writer.write(f"{method} {url.path} {version}\r\nConnection: close\r\n{headers}".encode())
                await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))

    def _lets_in(self, headers: str) -> bool:
        expected = f"Proxy-Authorization: Basic {b64encode(self.login.encode()).decode()}"
        return not self.login or expected in headers.split("\r\n")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, and its end."""
    while piece := await reader.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    writer.close()
