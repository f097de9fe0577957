"""A server that limits, fails or goes away in one of several ways, and counts what that does to its clients."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Protocol

from aiohttp import web
from answering_server import scan_body

LATENCY_SECONDS, CAPPED_LATENCY_SECONDS = 0.02, 0.2
DEPLOYMENTS = b'{"deployments": [{"id": 120, "slug": "limited", "name": "Limited"}]}'


class Limit(Protocol):
    """What is allowed. `enter` returns 0 for a request that may come in, else the seconds to wait."""

    latency_seconds: float

    def enter(self, now: float) -> float:
        """Ask to come in."""

    def leave(self) -> None:
        """One that was let in is answered."""


class _OfTime:
    latency_seconds = LATENCY_SECONDS

    def leave(self) -> None:
        pass


class FixedWindow(_OfTime):
    """So many in each stretch of `seconds`."""

    def __init__(self, rate: float, seconds: float = 1.0) -> None:
        self._most, self._seconds = rate * seconds, seconds
        self._window, self._count = -1, 0

    def enter(self, now: float) -> float:
        window = int(now // self._seconds)
        if window != self._window:
            self._window, self._count = window, 0
        if self._count >= self._most:
            return self._seconds - now % self._seconds
        self._count += 1
        return 0.0


class SlidingWindow(_OfTime):
    """So many in any stretch of `seconds`."""

    def __init__(self, rate: float, seconds: float = 1.0) -> None:
        self._most, self._seconds = rate * seconds, seconds
        self._seen = deque[float]()

    def enter(self, now: float) -> float:
        while self._seen and self._seen[0] <= now - self._seconds:
            self._seen.popleft()
        if len(self._seen) >= self._most:
            return self._seen[0] + self._seconds - now
        self._seen.append(now)
        return 0.0


class TokenBucket(_OfTime):
    """`rate` a second, and as many as come in `saved_seconds` are saved up."""

    def __init__(self, rate: float, saved_seconds: float = 1.0) -> None:
        self._rate, self._size = rate, rate * saved_seconds
        self._left, self._at = self._size, -math.inf

    def enter(self, now: float) -> float:
        self._left, self._at = min(self._size, self._left + (now - self._at) * self._rate), now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Cap:
    """As many at a time as make `rate` a second."""

    latency_seconds = CAPPED_LATENCY_SECONDS

    def __init__(self, rate: float) -> None:
        self._most, self._inside = round(rate * self.latency_seconds), 0

    def enter(self, now: float) -> float:  # noqa: ARG002 - as Limit has it
        if self._inside >= self._most:
            return self.latency_seconds
        self._inside += 1
        return 0.0

    def leave(self) -> None:
        self._inside -= 1


class Unlimited(_OfTime):
    """Lets everyone in."""

    def enter(self, now: float) -> float:  # noqa: ARG002 - as Limit has it
        return 0.0


def _hostile(refusals: int, wait: float) -> Mapping[str, str]:
    now = datetime.now(UTC)
    values = ("0", "-5", "soon", "1e-9", format_datetime(now - timedelta(days=9), usegmt=True), f"{wait:.3f}", "nan")
    return {"Retry-After": values[refusals % len(values)]}


HEADERS: dict[str, Callable[[int, float], Mapping[str, str]]] = {
    "none": lambda *_: {},
    "seconds": lambda _, wait: {"Retry-After": str(max(1, math.ceil(wait)))},
    "date": lambda _, wait: {"Retry-After": _date_in(wait), "Date": _date_in(0)},
    "ratelimit": lambda _, wait: {"RateLimit": f'"default";r=0;t={max(1, math.ceil(wait))}'},
    "hostile": _hostile,
}
"""What a refusal says of the time: the number of the refusal and the seconds to wait give the headers."""


def _date_in(seconds: float) -> str:
    """A date of a server whose clock is a year behind."""
    return format_datetime(datetime.now(UTC) - timedelta(days=365) + timedelta(seconds=math.ceil(seconds)), usegmt=True)


Trouble = Callable[[web.BaseRequest, float, int], web.StreamResponse | str | None]
"""By the seconds since the first request, and the requests so far: another answer, `reset` or `slow`, or nothing."""


def no_trouble(*_: object) -> None:
    """All is well."""


@dataclass(slots=True)
class Counts:
    """What the server has seen of the details calls. Instants are monotonic."""

    requests: int = 0
    refused: int = 0
    answered: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return self.last_at - self.first_at


@asynccontextmanager
async def limiting(limit: Limit, says: str, trouble: Trouble = no_trouble) -> AsyncIterator[tuple[str, Counts]]:
    """Serve on loopback until the block ends. Gives the base URL and the counts."""
    counts = Counts()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.encode().split(b"/")
        if len(parts) < 7:
            return web.Response(body=DEPLOYMENTS, content_type="application/json")
        now = time.monotonic()
        counts.first_at = counts.first_at or now
        counts.requests += 1
        odd = trouble(request, now - counts.first_at, counts.requests)
        if isinstance(odd, web.StreamResponse):
            return odd
        if odd == "reset" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        wait = limit.enter(now)
        if wait:
            counts.refused += 1
            return web.Response(status=429, headers=HEADERS[says](counts.refused, wait))
        await asyncio.sleep(limit.latency_seconds)
        limit.leave()
        body = scan_body(parts[4], parts[6])
        answer = await _drip(request, body) if odd == "slow" else _json(body)
        counts.answered += 1
        counts.last_at = time.monotonic()
        return answer

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", counts
    finally:
        await runner.cleanup()


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


async def _drip(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    size = len(body) // 5 + 1
    for start in range(0, len(body), size):
        await response.write(body[start : start + size])
        await asyncio.sleep(0.1)
    return response
