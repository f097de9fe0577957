"""A TCP proxy in a thread, for tests of bad networks: it cuts links, stalls them, and refuses new ones."""

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Literal, TypeVar

from patience import PATIENCE_SECONDS
from sqlalchemy.engine import make_url

T = TypeVar("T")

Fate = Literal["cut before", "cut after", "stall after"]
"""What a trap does to the link that springs it: cut it before the words get to the server; cut it once the server has
answered them, so that the answer is lost; or pass them on and then nothing more, in either direction."""

PIECE_BYTES = 65_536


class _Link:
    """Both ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.loses_answer = False

    def cut(self) -> None:
        """Reset both ends, as a firewall does that has forgotten them."""
        for end in (self.client, self.server):
            raw = end.get_extra_info("socket")
            with suppress(OSError):  # closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class CuttingProxy:
    """Passes bytes on between `port` and one server. Its public methods are for other threads than its own."""

    def __init__(self, host: str, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self._server_at = host, port
        self._loop = loop
        self._links: set[_Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._stalled = False
        self._trap: tuple[re.Pattern[bytes], Fate] | None = None
        self.port = 0
        self.sprung = threading.Event()
        """Set when the words of the last trap have come by."""

    def url(self, server_url: str) -> str:
        """The URL that leads to the same database through the proxy."""
        return make_url(server_url).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)

    def cut(self) -> None:
        """Reset all links."""
        self._call(self._cut)

    def stall(self) -> None:
        """Pass nothing on until `resume`. New links come about, and stall too."""
        self._call(self._stall)

    def resume(self) -> None:
        """Let everything flow again that is stalled. Nothing has been lost."""
        self._call(self._resume)

    def refuse(self) -> None:
        """Reset all links, and let nobody connect until `accept`."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Let clients connect, always to the same port."""
        self._wait(self._listen())

    def trap(self, words: bytes, fate: Fate) -> None:
        """The link of the next client that sends `words`, whole ones and SQL as a rule, suffers `fate`."""
        self.sprung.clear()
        # Not COMMITTED for COMMIT: each transaction begins with it.
        self._trap = re.compile(re.escape(words) + (rb"\b" if words[-1:].isalpha() else b"")), fate

    def close(self) -> None:
        """Cut everything and stop listening."""
        self._wait(self._end())

    def _call(self, work: Callable[[], None]) -> None:
        async def run() -> None:
            work()

        self._wait(run())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    # From here on, on the proxy's own loop.

    def _cut(self) -> None:
        for link in self._links:
            link.cut()

    def _stall(self) -> None:
        self._stalled = True
        for link in self._links:
            link.flowing.clear()

    def _resume(self) -> None:
        self._stalled = False
        for link in self._links:
            link.flowing.set()

    def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._cut()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._refuse()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, questions: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self._server_at)
        except OSError:
            client.transport.abort()
            return
        link = _Link(client, server)
        self._links.add(link)
        if self._stalled:
            link.flowing.clear()
        for reader, pass_on in ((questions, self._ask), (answers, self._answer)):
            pump = asyncio.create_task(self._pump(link, reader, pass_on))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, pass_on: Callable[[_Link, bytes], bool]) -> None:
        """Pass on what one end says, while the link flows. Its end is passed on like the rest."""
        try:
            while piece := await reader.read(PIECE_BYTES):
                await link.flowing.wait()
                if not pass_on(link, piece):
                    link.cut()
            await link.flowing.wait()
        except OSError:
            pass
        finally:
            self._links.discard(link)
            for end in (link.client, link.server):
                end.close()

    def _ask(self, link: _Link, piece: bytes) -> bool:
        fate = None
        if self._trap is not None and self._trap[0].search(piece):
            fate, self._trap = self._trap[1], None
            self.sprung.set()
        if fate == "cut before":
            return False
        link.server.write(piece)
        link.loses_answer = link.loses_answer or fate == "cut after"
        if fate == "stall after":
            link.flowing.clear()
        return True

    def _answer(self, link: _Link, piece: bytes) -> bool:
        if link.loses_answer:
            return False
        link.client.write(piece)
        return True


@contextmanager
def cutting_proxy(server_url: str) -> Iterator[CuttingProxy]:
    """A proxy in front of the server of a database URL, until the block ends."""
    server = make_url(server_url)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with closing(CuttingProxy(server.host or "127.0.0.1", server.port or 5432, loop)) as proxy:
            proxy.accept()
            yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()
