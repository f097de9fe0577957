"""Connections that are kept between requests, and what is known of one that the server has closed."""

import asyncio
import select
import struct
import sys
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import cast

import aiohttp
from aiohttp.client import ClientTimeout
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace

if sys.platform != "win32":  # there a request on a connection that had ended is a failure
    import fcntl
    import resource
    import termios

is_new: ContextVar[bool] = ContextVar("is_new", default=False)
"""Whether a connection had to be made for the latest request of this task. Who sends one sets it to False before."""


class UnreadError(aiohttp.ClientConnectionError):
    """The server had closed the connection before its machine could take the request."""


OTHER_FILES = 64
"""How many files a process has open beside its connections to the API, at the most: database, log, libraries."""


class Connector(aiohttp.TCPConnector):
    """Makes as many connections as are asked for, if the system allows that, and keeps them. Who gets none waits."""

    def __init__(self) -> None:
        super().__init__(limit=most_connections())
        self._factory = cast("partial[ResponseHandler]", partial(Protocol, loop=self._loop))

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 - as aiohttp calls it
    ) -> ResponseHandler:
        is_new.set(True)
        return await super()._create_connection(req, traces, timeout)


def most_connections() -> int:
    """How many connections this process may have, by the files that it may open (`ulimit -n`); 0 for any number."""
    if sys.platform == "win32":
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # not everywhere may it be as much as the system says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 0 if soft == resource.RLIM_INFINITY else max(1, soft - OTHER_FILES)


class Protocol(ResponseHandler):
    """A connection that isn't used once the server has closed it, and whose end says whether our words were taken.

    aiohttp hears of an end a little later, and may send a request before that. What comes then is the same end as that
    from a server which reads a request and closes.
    """

    _has_lost_words = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._incoming = select.poll() if hasattr(select, "poll") else None  # there is none on Windows
        if self._incoming:
            self._incoming.register(transport.get_extra_info("socket"), select.POLLIN)

    def is_connected(self) -> bool:
        """Asked of a kept connection. What comes while no answer is due is its end, or nothing that makes sense."""
        return super().is_connected() and not (self._incoming and self._incoming.poll(0))

    def eof_received(self) -> None:
        self._has_lost_words = _waiting_bytes(self.transport) > 0
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is None and self._has_lost_words:
            exc = UnreadError("the server had closed the connection")
        super().connection_lost(exc)


def _waiting_bytes(transport: asyncio.BaseTransport | None) -> int:
    """How much of what was sent the other machine hasn't acknowledged, and never will if it has closed. 0 where the
    system doesn't say."""
    waiting = 0
    if sys.platform != "win32" and transport is not None:
        with suppress(OSError):
            number = transport.get_extra_info("socket").fileno()
            (waiting,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))
    return waiting


def was_unread(error: Exception) -> bool:
    """Whether the server has never read the latest request of this task: it had closed a kept connection before. A
    reset says nothing of that: it may come from a server that has read."""
    return isinstance(error, UnreadError) and not is_new.get()
