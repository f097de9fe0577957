"""Calls to the API: each in its turn, what its answer means, and the quick retries of what may work the next moment.

Every answer becomes a decoded document or one of our errors, here and in `responses`; error texts are cleaned of the
token.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import stamina
from msgspec import Struct

from etl.config.settings import ApiSettings
from etl.errors import UNAVAILABLE_EXIT, FatalError, TransientError
from etl.semgrep.adaptive_limit import Sent
from etl.semgrep.rate_limiter import RateLimiter
from etl.semgrep.responses import document, meaning, quota, quoted, server_time
from etl.semgrep.token_state import TokenState
from etl.semgrep.transport import Http, HttpResponse
from etl.telemetry.events import RunCounts

LONGEST_PAUSE_SECONDS = 5.0
"""The longest wait between quick retries; whatever needs more is the queue's to retry."""
REFUSALS = (429, 503)
PING = "/api/v1/ping"

# The run counts retries and tells of them in its own words.
stamina.instrumentation.set_on_retry_hooks([])


class Ping(NamedTuple):
    """How the API answered a ping: after so many seconds, connecting included, and what its clock said."""

    status: int
    seconds: float
    server_time: datetime | None


class ApiResponse(Struct, frozen=True):
    """An answer as it should be: its body, decoded, and its headers."""

    document: object
    headers: Mapping[str, str]


class Calls:
    """Calls with any number of tokens, over one HTTP client, which the caller opens and closes.

    `tally` counts requests, retries and refusals as they happen. If it `gives_up`, an API that refuses everything for
    longer than max_wait_seconds is a FatalError.
    """

    def __init__(self, http: Http, settings: ApiSettings, tally: RunCounts, *, gives_up: bool) -> None:
        self._http = http
        self._tally = tally
        self._gives_up = gives_up
        self._max_wait_seconds = settings.max_wait_seconds
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=settings.retries + 1, timeout=None, wait_initial=0.2, wait_max=LONGEST_PAUSE_SECONDS
        ).on(_quick_retry)

    async def ping(self) -> Ping:
        """Ask whether the API lives, without a token. TransientError and FatalError if no answer comes."""
        began_at = time.monotonic()
        self._tally.requests += 1
        answer = await self._ask(PING)
        return Ping(answer.status, time.monotonic() - began_at, server_time(answer.headers))

    async def send(
        self, path: str, credit: TokenState, query: bytes | None = None, *, past_the_gate: bool = False
    ) -> ApiResponse:
        """One request, a POST if it has a query: the decoded body of a 200, or the error that the answer means."""
        pace = credit.pace
        sent = pace.sent() if past_the_gate else await pace.acquire()
        self._tally.requests += 1
        try:
            answer = await self._ask(path, credit.token, query)
        except (TransientError, FatalError):
            credit.count(failed=True)
            raise
        finally:
            pace.done()
        status, headers = answer.status, answer.headers
        if credit.failing or status >= 500:
            credit.count(failed=status >= 500)
        now = datetime.now(UTC)
        left = quota(headers, now)
        until_more = left[1] if left and left[0] <= 0 else 0.0
        if status not in REFUSALS:
            pace.accepted(sent)
            if until_more:  # the API says that this was the last request for now: nobody meets the refusal
                await pace.hold(until_more)
        if status == 200:
            found = document(answer.body, headers.get("Content-Type", "application/json"), path, credit.token)
            credit.answered_at = sent.at
            return ApiResponse(found, headers)
        error = meaning(status, f"HTTP {status} from {path}{quoted(answer.body, credit.token)}", headers, now)
        if isinstance(error, TransientError) and status in REFUSALS:
            error.retry_after_seconds = max(until_more, error.retry_after_seconds or 0.0) or None
            await self._refused(error, sent, pace)
        raise error

    async def _ask(self, path: str, token: str | None = None, query: bytes | None = None) -> HttpResponse:
        """One request. FatalError (exit 4) for a server that can't be trusted: whoever gives up does so at once."""
        try:
            return await self._http.ask(path, token, query)
        except TransientError as error:
            if error.kind == "tls" and self._gives_up:
                raise FatalError(str(error), kind="tls", stop_code=UNAVAILABLE_EXIT) from error.__cause__
            raise

    async def patiently(self, path: str, credit: TokenState) -> ApiResponse:
        """One call, with the quick retries if it fails."""
        try:
            return await self.send(path, credit)
        except TransientError as failure:
            return await self.retry(failure, path, credit)

    async def retry(
        self, failure: TransientError, path: str, credit: TokenState, query: bytes | None = None
    ) -> ApiResponse:
        """The quick retries after a first failure. None while scans aren't shown: they are tried one at a time then."""
        if credit.is_doubted:
            raise failure
        first: TransientError | None = failure
        first_failed_at = time.monotonic()

        async def again() -> ApiResponse:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            self._tally.retried += 1
            return await self.send(path, credit, query)

        try:
            return await self._retrying(again)
        except TransientError as error:
            error.first_failed_at = first_failed_at
            raise

    async def _refused(self, error: TransientError, sent: Sent, pace: RateLimiter) -> None:
        """The API asks for less: the gate closes for all who use the token. FatalError (exit 4) in the long run."""
        is_limit = error.http_status == 429
        self._tally.rate_limited += is_limit
        if not is_limit and error.retry_after_seconds is None:
            pace.unavailable(sent)
        elif not await pace.refused(sent, error.retry_after_seconds, is_limit=is_limit) and self._gives_up:
            raise FatalError(
                f"the API has refused every request for {self._max_wait_seconds:g} s: {error}",
                kind="rate_limited",
                stop_code=UNAVAILABLE_EXIT,
                http_status=error.http_status,
            )


def _quick_retry(error: Exception) -> bool | float:
    """Whether to try again in place, or after how many seconds. A refused one waits at the gate instead."""
    if not isinstance(error, TransientError):
        return False
    if error.kind == "rate_limited":
        return 0.001
    wait = error.retry_after_seconds
    return True if wait is None else wait <= LONGEST_PAUSE_SECONDS and wait
