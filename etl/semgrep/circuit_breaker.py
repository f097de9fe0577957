"""Whose fault is a failure, that of the pair or of the API? Bad news is believed only after a second question.

    state      what goes out               what ends it                     next
    closed     everything                  a request fails                  suspect
    suspect    what worked before, again   it works: the pair is to blame   closed
                                           it fails: the API is to blame    open
    open       nothing                     1 to 8 s have passed             half-open
    half-open  one probe                   it works                         closed
                                           it fails                         open

A few pairs that always fail look like an outage when only they are left: so what worked before is asked again, by one
for all that have failed. If the API answers, but a scan fails and none has ever been shown, it is open for scans alone,
however few there are. Then each probe is one of the scans that wait, and another one each time, for those that have
failed may be to blame after all. A failure of the API spends nobody's attempt; one that lasts too long is a FatalError
(exit 4).
"""

import asyncio
import enum
import math
import time

from etl.backoff import backoff_seconds
from etl.errors import ItemError, TransientError
from etl.semgrep.rate_limiter import RateLimiter
from etl.semgrep.requests import DEPLOYMENTS, ApiResponse, Calls
from etl.semgrep.responses import RefusedPathError, api_away, refusal_of_token
from etl.telemetry.events import ApiAway, ApiBack, EventSink

FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS = 1.0, 8.0
"""So long after the end of an outage nobody knows of it: within ten seconds all is as before."""
MANY_FAILING = 0.25
"""Where so many of the latest requests fail, the API is more likely to blame for a failure than the pair."""
MANY_FAILED = 25
"""So many scans that fail, after no more than refusals, are not to blame: their endpoint doesn't work any more."""


class Circuit(enum.Enum):
    """The states of a circuit breaker."""

    CLOSED = "closed"
    SUSPECT = "suspect"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """What all calls with one token go through, and who makes them wait. Unless it `gives_up`, that takes as long as
    the API is unavailable, else `longest_seconds` at most."""

    def __init__(
        self,
        calls: Calls,
        limiter: RateLimiter,
        deployment_id: int | None,
        emit: EventSink,
        longest_seconds: float,
        *,
        gives_up: bool,
    ) -> None:
        self._calls = calls
        self._limiter = limiter
        self._deployment_id = deployment_id
        self._emit = emit
        self._longest_seconds = longest_seconds
        self._gives_up = gives_up
        self.state = Circuit.CLOSED
        self._is_for_scans = False  # whether it is open for them alone
        self._opened_at = self._closed_at = -math.inf
        self._reason = ""
        self._probes = 0
        self._worked = ""  # the scan that was answered as the latest
        self._worked_again_at = -math.inf
        self._is_any_shown = False  # or refused: an answer, too
        self._on_their_way = 0  # scans
        self._doubt_ends = asyncio.Event()  # one is shown, or none is on its way
        self._failed = set[str]()  # scans, since one has been answered
        self._judging = asyncio.Lock()  # held by the one that asks the second question, and waits until all works
        self._trying = asyncio.Lock()  # held by the one scan that is tried

    @property
    def away_because(self) -> str | None:
        """Why nothing but probes goes out, or no scans; None where all may."""
        return self._reason if self.state in (Circuit.OPEN, Circuit.HALF_OPEN) else None

    async def ask(self, path: str, query: bytes | None = None, *, past_the_gate: bool = False) -> ApiResponse:
        """The answer to a call, with the quick retries if it fails.

        TransientError if they fail, too. Where the API is to blame, it comes when that is over, and spends no attempt.
        """
        try:
            return await self._calls.send(path, query, past_the_gate=past_the_gate)
        except TransientError as failure:
            return await self._ask_again(failure, path, query)

    async def _ask_again(self, failure: TransientError, path: str, query: bytes | None) -> ApiResponse:
        failed_at = time.monotonic()
        try:
            if self._tries_scans:
                raise failure
            return await self._calls.retry(failure, path, query)
        except TransientError as error:
            if error.http_status != 429 and await self._is_to_blame(error, failed_at):
                raise _excused(error) from error
            raise

    async def scan(self, path: str) -> ApiResponse:
        """As `ask`, for the details of a scan. While no scan is shown, they are tried one at a time."""
        while self._tries_scans:
            async with self._trying:
                if self._tries_scans:
                    await self._wait_for_probe("it answers, but shows no scan")
                    return await self._ask_scan(path)
        return await self._ask_scan(path)

    async def _ask_scan(self, path: str) -> ApiResponse:
        try:
            answer = await self._ask_counted(path)
        except (ItemError, RefusedPathError):  # an answer, too
            self._a_scan_is_shown()
            raise
        except TransientError as error:
            if error.spends_attempt and await self._no_scan_is_shown(path, error):
                raise _excused(error) from error
            raise
        self._a_scan_is_shown()
        self._worked = path
        return answer

    async def _ask_counted(self, path: str) -> ApiResponse:
        self._on_their_way += 1
        try:
            return await self.ask(path)
        finally:
            self._on_their_way -= 1
            if not self._on_their_way:
                self._doubt_ends.set()

    @property
    def _tries_scans(self) -> bool:
        return self._is_for_scans and self.state in (Circuit.OPEN, Circuit.HALF_OPEN)

    async def _no_scan_is_shown(self, path: str, error: TransientError) -> bool:
        """A scan has failed. Whether it isn't to blame, for nothing shows that scans are answered at all: none that was
        on its way with it is."""
        if not self._is_any_shown and self._on_their_way:
            self._doubt_ends.clear()
            await self._doubt_ends.wait()
        if not self._worked and self.state is Circuit.CLOSED:
            self._failed.add(path)
            if not self._is_any_shown or len(self._failed) >= MANY_FAILED:
                self._open(error, for_scans=True)
        return self._tries_scans

    def _a_scan_is_shown(self) -> None:
        self._is_any_shown = True
        self._doubt_ends.set()
        self._failed.clear()
        if self._tries_scans:
            self._close()

    async def _is_to_blame(self, error: TransientError, first_failed_at: float) -> bool:
        """Whether the API is to blame for a failure, by a second question. If nothing works, wait until it does.

        One answer counts for all that failed before it was asked for.
        """
        failed_at = time.monotonic()
        async with self._judging:
            if self._tries_scans:
                self.state = Circuit.OPEN
                return True
            if self._closed_at > failed_at:
                return True
            others_work = self._calls.answered_at > first_failed_at
            if self._worked_again_at > failed_at or (others_work and self._calls.failing < MANY_FAILING):
                return False
            failure = await self._suspect()
            if failure is not None and not others_work:
                await self._wait_out(error, failure)
            return failure is not None

    async def _suspect(self) -> TransientError | None:
        """Ask in its turn for what worked before; the failure if it doesn't."""
        self.state, asked_at = Circuit.SUSPECT, time.monotonic()
        try:
            failure = await self._probe()
        finally:
            self.state = Circuit.CLOSED
        if failure is None:
            self._worked_again_at = asked_at
        return failure

    async def _wait_out(self, error: TransientError, failure: TransientError | None) -> None:
        """Let nobody else ask until a probe is answered."""
        self._open(error, for_scans=False)
        self._limiter.pause()
        try:
            while failure is not None:
                await self._wait_for_probe(failure, failure.retry_after_seconds or 0.0)
                failure = await self._probe(past_the_gate=True)
            self._close()
        finally:
            self.state = Circuit.CLOSED
            self._limiter.resume()

    async def _probe(self, *, past_the_gate: bool = False) -> TransientError | None:
        """Ask once for what has worked before; what is wrong. An API that asks for patience isn't away."""
        try:
            await self._calls.send(self._worked or DEPLOYMENTS, past_the_gate=past_the_gate)
        except TransientError as error:
            return error if error.http_status != 429 else None
        except RefusedPathError as error:
            if not self._worked:
                raise refusal_of_token(error) from error
            self._worked = ""
        except ItemError:
            self._worked = ""
        return None

    async def _wait_for_probe(self, reason: object, least_seconds: float = 0.0) -> None:
        """From open to half-open. FatalError if it has been open for too long."""
        if self._gives_up and time.monotonic() - self._opened_at >= self._longest_seconds:
            raise api_away(self._longest_seconds, reason)
        self.state = Circuit.OPEN
        self._probes += 1
        seconds = backoff_seconds(self._probes, FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS)
        await self._limiter.sleep(max(seconds, min(least_seconds, self._longest_seconds)))
        if self.state is Circuit.OPEN:  # a scan that was on its way since before may have closed it
            self.state = Circuit.HALF_OPEN

    def _open(self, error: TransientError, *, for_scans: bool) -> None:
        self.state, self._is_for_scans = Circuit.OPEN, for_scans
        self._opened_at, self._probes, self._reason = time.monotonic(), 0, str(error)
        self._emit(ApiAway(self._deployment_id, str(error)))

    def _close(self) -> None:
        self.state = Circuit.CLOSED
        self._closed_at = time.monotonic()
        self._emit(ApiBack(self._deployment_id, round(self._closed_at - self._opened_at, 1)))


def _excused(error: TransientError) -> TransientError:
    """The same of a pair that isn't to blame."""
    return TransientError(
        str(error),
        kind=error.kind,
        http_status=error.http_status,
        retry_after_seconds=error.retry_after_seconds,
        spends_attempt=False,
    )
