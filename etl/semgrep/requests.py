"""Calls to the API: each in its turn, what its answer means, and the quick retries of what may work the next moment.

Every answer becomes a decoded document or one of our errors, here and in `responses`; error texts are cleaned of
secrets.
"""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import stamina
from msgspec import Struct

from etl.config.settings import ApiSettings
from etl.errors import UNAVAILABLE_EXIT, ApiError, FatalError, TransientError
from etl.semgrep.rate_limiter import RateLimiter, Request
from etl.semgrep.responses import REFUSALS, RefusedPathError, document, meaning, quoted, used_up_seconds
from etl.semgrep.transport import Http, HttpResponse
from etl.telemetry.events import RunCounts

DEPLOYMENTS = "/api/v1/deployments"
LATEST_REQUESTS = 30
LONGEST_PAUSE_SECONDS = 5.0
"""The longest wait between quick retries; whatever needs more is the queue's to retry."""

# The run counts retries and tells of them in its own words.
stamina.instrumentation.set_on_retry_hooks([])


class ApiResponse(Struct, frozen=True):
    """An answer as it should be: its body, decoded, its headers, and when it was asked for (monotonic)."""

    document: object
    headers: Mapping[str, str]
    sent_at: float


class Calls:
    """Calls with one token, at its pace, over an HTTP client that the caller opens and closes.

    `counts` counts requests, retries and refusals as they happen. If it `gives_up`, an API that refuses everything for
    longer than max_wait_seconds is a FatalError.
    """

    def __init__(
        self,
        http: Http,
        token: str,
        limiter: RateLimiter,
        settings: ApiSettings,
        counts: RunCounts,
        *,
        gives_up: bool,
    ) -> None:
        self._http = http
        self._token = token
        self._secrets = http.secrets(token)
        self._limiter = limiter
        self._counts = counts
        self._gives_up = gives_up
        self._max_wait_seconds = settings.max_wait_seconds
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=settings.retries + 1, timeout=None, wait_initial=0.2, wait_max=LONGEST_PAUSE_SECONDS
        ).on(_quick_retry)
        self.failing = 0.0
        """Which share of the latest requests has failed."""
        self.answered_at = -math.inf
        """When the request went out that was answered as it should be, and as the latest."""

    async def send(self, path: str, query: bytes | None = None, *, past_the_gate: bool = False) -> ApiResponse:
        """One request, a POST if it has a query: the decoded body of a 200, or the error that the answer means."""
        async with self._limiter.request(past_the_gate=past_the_gate) as request:
            self._counts.requests += 1
            began_at = time.monotonic()
            try:
                answer = await self._http.ask(path, self._token, query)
            except (TransientError, FatalError):
                self._count(failed=True)
                raise
            finally:
                self._counts.request_seconds.observe(time.monotonic() - began_at)
            self._count(failed=answer.status >= 500)
            now = datetime.now(UTC)
            error = self._error_of(answer, path, now)
            if isinstance(error, TransientError) and _asks_for_less(error):
                await self._report_refusal(request, error)
            else:
                request.accepted()
                if seconds := used_up_seconds(answer.headers, now):  # nobody meets the refusal that would come next
                    await self._limiter.hold(seconds)
        if error is not None:
            raise error
        found = document(answer.body, answer.headers.get("Content-Type", "application/json"), path, *self._secrets)
        self.answered_at = request.sent_at
        return ApiResponse(found, answer.headers, request.sent_at)

    def _count(self, *, failed: bool) -> None:
        self.failing += (failed - self.failing) / LATEST_REQUESTS

    def _error_of(self, answer: HttpResponse, path: str, now: datetime) -> ApiError | RefusedPathError | None:
        if answer.status == 200:
            return None
        said = f"HTTP {answer.status} from {path}{quoted(answer.body, *self._secrets)}"
        return meaning(answer.status, said, answer.headers, now, answer.body, *self._secrets)

    async def _report_refusal(self, request: Request, error: TransientError) -> None:
        """The API asks for less: the gate closes for all who use the token. FatalError (exit 4) in the long run."""
        is_limit = error.http_status == 429
        self._counts.rate_limited += is_limit
        if not await request.refused(error.retry_after_seconds, is_limit=is_limit) and self._gives_up:
            raise FatalError(
                f"the API has refused every request for {self._max_wait_seconds:g} s: {error}",
                kind="rate_limited",
                stop_code=UNAVAILABLE_EXIT,
                http_status=error.http_status,
            )

    async def patiently(self, path: str, query: bytes | None = None) -> ApiResponse:
        """One call, with the quick retries if it fails."""
        try:
            return await self.send(path, query)
        except TransientError as failure:
            return await self.retry(failure, path, query)

    async def retry(self, failure: TransientError, path: str, query: bytes | None = None) -> ApiResponse:
        """The quick retries after a first failure."""
        first: TransientError | None = failure

        async def again() -> ApiResponse:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            self._counts.retried += 1
            return await self.send(path, query)

        return await self._retrying(again)


def _asks_for_less(error: TransientError) -> bool:
    """A 503 that doesn't say for how long is an outage: a slower pace is no help, and would outlast it."""
    return error.http_status == 429 or (error.http_status in REFUSALS and error.retry_after_seconds is not None)


def _quick_retry(error: Exception) -> bool | float:
    """Whether to try again in place, or after how many seconds. A refused one waits at the gate instead."""
    if not isinstance(error, TransientError):
        return False
    if error.kind == "rate_limited":
        return 0.001
    wait = error.retry_after_seconds
    return True if wait is None else wait <= LONGEST_PAUSE_SECONDS and wait
