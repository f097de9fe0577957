"""The states of the circuit breaker, as the server and the log see them. Waits are real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from memory_budget import MemoryBudget
from small_api import DEPLOYMENTS, Answer, Call, SmallApi, found, json_answer, sees_120, until

from etl.config.settings import ApiSettings
from etl.errors import TransientError
from etl.semgrep.circuit_breaker import MANY_FAILED, CircuitBreaker
from etl.semgrep.rate_limiter import RateLimiter
from etl.semgrep.requests import Calls
from etl.semgrep.responses import RefusedPathError
from etl.semgrep.transport import Http
from etl.telemetry.events import Event, RunCounts


class Watched:
    """A breaker in front of a server. `seen` has each request and each event, with the state at that moment."""

    breaker: CircuitBreaker

    def __init__(self, details: Answer) -> None:
        self.seen: list[tuple[str, str]] = []
        self.api = SmallApi(self._noting(details), self._noting(sees_120))

    def _noting(self, answer: Answer) -> Answer:
        async def note(call: Call) -> web.StreamResponse:
            self._note(call.request.path)
            return await answer(call)

        return note

    def emit(self, event: Event) -> None:
        self._note(type(event).__name__)

    def _note(self, what: str) -> None:
        self.seen.append((what, self.breaker.state.value))


def path_of(scan_id: int) -> str:
    return f"/api/v1/deployments/120/scan/{scan_id}"


async def fails(_: Call) -> web.StreamResponse:
    return json_answer({}, status=500)


async def gone(_: Call) -> web.StreamResponse:
    return json_answer({}, status=404)


@asynccontextmanager
async def watching(details: Answer) -> AsyncIterator[Watched]:
    watched = Watched(details)
    async with watched.api:
        settings = ApiSettings(base_url=watched.api.base_url, retries=0)
        limiter = RateLimiter(1_000.0, 30.0, MemoryBudget(), lambda _: None)
        async with Http(settings, gives_up=True) as http:
            calls = Calls(http, "token", limiter, settings, RunCounts(), gives_up=True)
            watched.breaker = CircuitBreaker(calls, limiter, 120, watched.emit, 30.0, gives_up=True)
            yield watched
            limiter.close()


async def test_an_outage_goes_through_all_states() -> None:
    """What worked before is asked again as a suspicion, and then by one probe at a time, until it works."""
    failures_of_one = iter([False, True, True, False])

    async def answer(call: Call) -> web.StreamResponse:
        return await (fails if call.pair.scan_id == 2 or next(failures_of_one) else found)(call)

    async with watching(answer) as watched:
        await watched.breaker.scan(path_of(1))
        with pytest.raises(TransientError) as caught:
            await watched.breaker.scan(path_of(2))

    assert watched.seen == [
        (path_of(1), "closed"),
        (path_of(2), "closed"),
        (path_of(1), "suspect"),
        ("ApiAway", "open"),
        (path_of(1), "half-open"),
        (path_of(1), "half-open"),
        ("ApiBack", "closed"),
    ]
    assert not caught.value.spends_attempt
    assert isinstance(caught.value.__cause__, TransientError)
    assert caught.value.__cause__.spends_attempt


async def test_a_suspicion_ends_when_what_worked_before_works() -> None:
    """The pair is to blame, and its error comes as it was."""

    async def answer(call: Call) -> web.StreamResponse:
        return await (fails if call.pair.scan_id == 2 else found)(call)

    async with watching(answer) as watched:
        await watched.breaker.scan(path_of(1))
        with pytest.raises(TransientError) as caught:
            await watched.breaker.scan(path_of(2))

    assert watched.seen[2:] == [(path_of(1), "suspect")]
    assert watched.breaker.state.value == "closed"
    assert caught.value.spends_attempt


async def test_an_api_that_shows_no_scan_is_open_for_scans_alone() -> None:
    """Other calls go out at once; of the scans one is tried after a while, and its answer closes the breaker."""

    async def answer(call: Call) -> web.StreamResponse:
        return await (fails if call.pair.scan_id == 1 else found)(call)

    async with watching(answer) as watched:
        with pytest.raises(TransientError):
            await watched.breaker.scan(path_of(1))
        opened = len(watched.seen)
        await watched.breaker.ask(DEPLOYMENTS)
        await watched.breaker.scan(path_of(99))

    assert watched.seen[opened - 1 :] == [
        ("ApiAway", "open"),
        (DEPLOYMENTS, "open"),
        (path_of(99), "half-open"),
        ("ApiBack", "closed"),
    ]


async def test_an_outage_that_begins_while_a_scan_is_tried_ends_for_all() -> None:
    """A scan that was on its way since before has closed the breaker meanwhile; then everything fails. Neither the
    scan that is tried nor the one that finds the outage out waits for the other."""
    late, tried, down = asyncio.Event(), asyncio.Event(), False

    async def answer(call: Call) -> web.StreamResponse:
        if call.pair.scan_id == 100 and call.times == 1:
            await late.wait()
        elif call.pair.scan_id == 101:
            await tried.wait()
        elif call.pair.scan_id == 99:
            return await gone(call)
        return await (fails if down or call.pair.scan_id <= MANY_FAILED else found)(call)

    async with watching(answer) as watched, asyncio.timeout(30):
        from_before = asyncio.create_task(watched.breaker.scan(path_of(100)))
        with pytest.raises(RefusedPathError):
            await watched.breaker.scan(path_of(99))
        scans = [watched.breaker.scan(path_of(number)) for number in range(1, MANY_FAILED + 1)]
        await asyncio.gather(*scans, return_exceptions=True)
        one = asyncio.create_task(watched.breaker.scan(path_of(101)))
        await until(lambda: (path_of(101), "half-open") in watched.seen)
        late.set()
        await from_before
        down = True
        other = asyncio.create_task(watched.breaker.scan(path_of(102)))
        await until(lambda: [what for what, _ in watched.seen].count("ApiAway") == 2)
        tried.set()
        await until(lambda: watched.seen[-1] == (path_of(100), "half-open"))
        down = False
        ended = await asyncio.gather(one, other, return_exceptions=True)

    assert [isinstance(error, TransientError) and error.spends_attempt for error in ended] == [False, False]
    assert watched.breaker.state.value == "closed"
