"""The Semgrep API: what is asked of it, and what is believed of its answers.

Bad news is believed only after a second question: a 404 after the token has proved good, a failure after something that
worked before has been asked again.
"""

import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

from etl.backoff import backoff_seconds
from etl.config.settings import ApiSettings
from etl.config.tokens import Tokens
from etl.errors import UNAVAILABLE_EXIT, FatalError, ItemError, StoppedError, TransientError
from etl.model import PAGE_SIZE, Pair, SearchResponse
from etl.semgrep.rate_limiter import Budget, RateLimiter
from etl.semgrep.requests import ApiResponse, Calls
from etl.semgrep.responses import (
    OF_ANOTHER,
    NotFoundError,
    deployment_ids,
    server_time,
    token_missing,
    token_of_another,
    token_without_scope,
)
from etl.semgrep.token_state import MANY_FAILING, TokenState
from etl.semgrep.transport import Http
from etl.telemetry.events import ApiAway, ApiBack, EventSink, GateClosed, GateOpened, PaceReserved, RunCounts

PROOF_SECONDS, PROOF_REQUESTS = 0.25, 4
"""How long a 404 waits for another scan to show that the token is good, before a question is spent on it: so long at
most, and no longer than so many requests take. 404s that wait together share one question."""
FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS = 1.0, 30.0
DEPLOYMENTS = "/api/v1/deployments"


class Semgrep:
    """The API for any number of deployments. Use it as an async context manager.

    `budget_of(token)` gives the line of time that all workers of a token share. `tally` counts requests, retries
    and refusals as they happen. Unless it `gives_up`, it waits for an unavailable API as long as it takes.
    """

    def __init__(
        self,
        settings: ApiSettings,
        tokens: Tokens,
        budget_of: Callable[[str], Budget],
        tally: RunCounts,
        emit: EventSink,
        *,
        gives_up: bool = True,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._budget_of = budget_of
        self._emit = emit
        self._gives_up = gives_up
        self._http = Http(settings)
        self._calls = Calls(self._http, settings, tally, gives_up=gives_up)
        self.ping = self._calls.ping
        self._credits: dict[int, TokenState] = {}  # by deployment; those with one token share one
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_sending()
        await self._http.__aexit__(kind, error, trace)

    async def scan(self, pair: Pair) -> object:
        """The decoded details of one scan.

        Raises TransientError, ItemError (this scan is gone), FatalError (the token, or the whole endpoint)
        and StoppedError.
        """
        deployment_id = pair.deployment_id
        path = f"/api/v1/deployments/{deployment_id}/scan/{pair.scan_id}"
        credit = self._credit(deployment_id)
        try:
            ask = self._in_turn if credit.failed else self._of_deployment
            answer = await ask(deployment_id, path, credit)
        except ItemError:
            self._trust(credit)  # an answer, too
            raise
        if credit.failed:
            self._trust(credit)
        credit.worked = path
        return answer.document

    async def _in_turn(self, deployment_id: int, path: str, credit: TokenState) -> ApiResponse:
        """The details of a scan, while none is shown: one is tried at a time, until the first that is answered."""
        while credit.is_doubted:
            async with credit.trying:
                if credit.is_doubted:
                    await self._wait_for_trial(credit)
                    return await self._of_deployment(deployment_id, path, credit)
        return await self._of_deployment(deployment_id, path, credit)

    def _doubts(self, credit: TokenState, error: TransientError, path: str) -> bool:
        """Whether the API lives, but shows no scan at all, so that one that fails isn't to blame."""
        if path != DEPLOYMENTS and credit.doubt(path, time.monotonic()):
            self._emit(ApiAway(credit.deployment_id, str(error)))
        return credit.is_doubted

    def _trust(self, credit: TokenState) -> None:
        """Scans are shown: forget those that have failed before."""
        if credit.is_doubted:
            self._emit(ApiBack(credit.deployment_id, round(time.monotonic() - credit.doubted_at, 1)))
        credit.failed.clear()

    async def _wait_for_trial(self, credit: TokenState) -> None:
        """Wait until it is time to try one more scan, while none is shown. It is another one each time, for those
        that have failed may be to blame after all. FatalError (exit 4) if that goes on for too long."""
        if self._gives_up and time.monotonic() - credit.doubted_at >= self._settings.max_wait_seconds:
            raise self._has_been_away("it answers, but no scan")
        credit.trials += 1
        await credit.pace.sleep(backoff_seconds(credit.trials, FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS))

    def _has_been_away(self, reason: object) -> FatalError:
        return FatalError(
            f"the API has been unavailable for {self._settings.max_wait_seconds:g} s: {reason}",
            kind="api_away",
            stop_code=UNAVAILABLE_EXIT,
        )

    async def search(self, deployment_id: int, since: datetime | None, cursor: str) -> SearchResponse:
        """One page of the scans that were created after `since`. Raises as `scan` does."""
        query = {
            "limit": PAGE_SIZE,
            **({"since": since.astimezone(UTC).isoformat().replace("+00:00", "Z")} if since else {}),
            **({"cursor": cursor} if cursor else {}),
        }
        path = f"/api/v1/deployments/{deployment_id}/scans/search"
        credit = self._credit(deployment_id)
        answer = await self._of_deployment(deployment_id, path, credit, json.dumps(query).encode())
        return SearchResponse(answer.document, server_time(answer.headers) or datetime.now(UTC))

    async def _of_deployment(
        self, deployment_id: int, path: str, credit: TokenState, query: bytes | None = None
    ) -> ApiResponse:
        """The answer to a call about one deployment.

        Most calls are answered at once. All that is for the others starts at a failure only: in a run every function on
        the way of a request costs it 1 to 2 us, however little it does, for the caches are full of other things.
        """
        try:
            answer = await self._calls.send(path, credit, query)
        except (TransientError, NotFoundError, FatalError, StoppedError) as failure:
            answer = await self._after_failure(failure, deployment_id, path, credit, query)
        # Nothing has run between that answer and this line.
        credit.proved_at[deployment_id] = credit.answered_at
        return answer

    async def _after_failure(
        self, failure: Exception, deployment_id: int, path: str, credit: TokenState, query: bytes | None
    ) -> ApiResponse:
        """What a call comes to whose first try has failed. A failure while the API is unavailable spends no attempt."""
        try:
            try:
                return await self._believed(failure, deployment_id, path, credit, query)
            except TransientError as error:
                if error.http_status != 429 and await self._is_away(credit, error, path):
                    error.spends_attempt = False
                raise
        except StoppedError:
            if self._is_stopped or credit.ended is None:
                raise
            raise credit.ended from None
        except FatalError as error:
            if error.kind != OF_ANOTHER:  # else the token is good for another deployment
                # Whoever waits for his turn isn't to ask, too.
                credit.ended = error
                credit.pace.close()
            raise

    async def _believed(
        self, failure: Exception, deployment_id: int, path: str, credit: TokenState, query: bytes | None
    ) -> ApiResponse:
        """The quick retries of what may work again; a 404 is believed only after the token has proved good."""
        try:
            if not isinstance(failure, TransientError):
                raise failure
            return await self._calls.retry(failure, path, credit, query)
        except NotFoundError as error:
            await self._prove_token(deployment_id, credit)
            noun = "scan" if query is None else "search"
            raise ItemError(f"no such {noun}: {error}", kind="not_found", http_status=404) from error

    async def _prove_token(self, deployment_id: int, credit: TokenState) -> None:
        """Return when the token has proved good for a deployment since now; FatalError if it is to blame for a 404.

        A token that has just lost its scope gets 404 for everything, as a scan that is gone does. So only what was
        asked after the 404 shows whose fault it is: another scan of the deployment, or else the token itself.
        """
        missed_at = time.monotonic()

        def is_proved() -> bool:
            return credit.proved_at.get(deployment_id, -math.inf) > missed_at

        async with credit.asking:
            if credit.asked_at <= missed_at and not is_proved():
                await credit.pace.sleep(min(PROOF_SECONDS, PROOF_REQUESTS / credit.pace.rate))
            if is_proved():
                return
            if credit.asked_at <= missed_at:
                await self._ask_token(credit)
        if credit.visible and deployment_id not in credit.visible:
            raise token_of_another(deployment_id, credit.visible)

    async def check_token(self, deployment_id: int) -> None:
        """FatalError if the token for this deployment is missing, refused, lacks the scope, or sees only others, or if
        the API is unavailable for too long."""
        credit = self._credit(deployment_id)
        if credit.ended:
            raise credit.ended
        if deployment_id in credit.proved_at:
            return
        visible = await self._visible_in_the_end(credit)
        if visible and deployment_id not in visible:
            raise token_of_another(deployment_id, visible)

    async def seen_by_token_of(self, deployment_id: int, *, patiently: bool = False) -> frozenset[int]:
        """The deployments that this one's token sees; FatalError as for `check_token`. TransientError if the API is
        away, unless that is borne patiently."""
        credit = self._credit(deployment_id)
        return await (self._visible_in_the_end(credit) if patiently else self._visible(credit))

    def ask_again(self, deployment_id: int) -> None:
        """Forget that the token of a deployment was refused, and what it may see."""
        refused = self._credits.get(deployment_id)
        if refused is not None and refused.ended is None:  # it is good for another deployment
            refused.asked_at, refused.visible = -math.inf, frozenset()
            return
        self._credits = {number: credit for number, credit in self._credits.items() if credit is not refused}

    def stop_sending(self) -> None:
        """Send no more requests: whoever waits for its turn gets StoppedError."""
        self._is_stopped = True
        for credit in self._credits.values():
            credit.pace.close()

    def _credit(self, deployment_id: int) -> TokenState:
        known = self._credits.get(deployment_id)
        if known is not None:
            return known
        token = self._tokens.for_deployment(deployment_id)
        if token is None:
            raise token_missing(deployment_id)
        shared = (credit for credit in self._credits.values() if credit.token == token)
        credit = self._credits[deployment_id] = next(shared, None) or self._new_credit(token, deployment_id)
        return credit

    def _new_credit(self, token: str, deployment_id: int) -> TokenState:
        named = deployment_id or None
        pace = RateLimiter(
            self._settings.rate,
            self._settings.max_wait_seconds,
            self._budget_of(token),
            partial(self._emit_gate, named),
            lambda seconds: self._emit(PaceReserved(named, round(seconds, 1))),
        )
        if self._is_stopped:
            pace.close()
        return TokenState(token, named, pace)

    def _emit_gate(self, deployment_id: int | None, seconds: float) -> None:
        self._emit(GateClosed(deployment_id, round(seconds, 1)) if seconds else GateOpened(deployment_id))

    async def _visible(self, credit: TokenState) -> frozenset[int]:
        """The deployments that a token sees: exactly one, as the API says of itself."""
        async with credit.asking:
            if credit.asked_at == -math.inf:
                await self._ask_token(credit)
            return credit.visible

    async def _ask_token(self, credit: TokenState) -> None:
        asked_at = time.monotonic()
        try:
            credit.visible = deployment_ids((await self._calls.patiently(DEPLOYMENTS, credit)).document)
        except NotFoundError as error:
            raise token_without_scope() from error
        except ItemError as error:
            raise FatalError(
                f"the API doesn't say what the token may see: {error}",
                kind="deployments_refused",
                stop_code=UNAVAILABLE_EXIT,
                http_status=error.http_status,
            ) from error
        credit.asked_at = asked_at

    async def _visible_in_the_end(self, credit: TokenState) -> frozenset[int]:
        """The same, waiting for an unavailable API, if it doesn't end the run."""
        began_at, failures = time.monotonic(), 0
        while True:
            try:
                return await self._visible(credit)
            except TransientError as error:
                await self._is_away(credit, error, DEPLOYMENTS)
                failures += 1
                if self._gives_up and time.monotonic() - began_at >= self._settings.max_wait_seconds:
                    raise self._has_been_away(error) from error
            if failures > 1:  # what else is asked may work all the while
                await credit.pace.sleep(backoff_seconds(failures, FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS))

    async def _is_away(self, credit: TokenState, error: TransientError, path: str) -> bool:
        """Whether the API is to blame for a failure. If nothing works, wait until it does, and let nobody else ask.

        A few pairs that always fail look like an outage when only they are left. So what has worked before is
        asked again: if that works, the pairs are to blame. One answer counts for all that failed before it was
        asked for. FatalError (exit 4) if the API is unavailable for too long.
        """
        failed_at = time.monotonic()
        if credit.is_doubted:
            return True
        async with credit.asking:
            if credit.back_at > failed_at:
                return True
            others_work = credit.answered_at > min(error.first_failed_at, failed_at)
            if credit.probed_at > failed_at or (others_work and credit.failing < MANY_FAILING):
                return self._doubts(credit, error, path)
            began_at = time.monotonic()
            failure = await self._failure(credit, paused=False)
            if failure is None:
                credit.probed_at = began_at
                return self._doubts(credit, error, path)
            if others_work:
                return True
            self._emit(ApiAway(credit.deployment_id, str(error)))
            async with self._pausing(credit):
                await self._wait_for(credit, failure)
            credit.back_at = time.monotonic()
            self._emit(ApiBack(credit.deployment_id, round(credit.back_at - failed_at, 1)))
            return True

    @contextlib.asynccontextmanager
    async def _pausing(self, credit: TokenState) -> AsyncIterator[None]:
        credit.pace.pause()
        try:
            yield
        finally:
            credit.pace.resume()

    async def _wait_for(self, credit: TokenState, failure: TransientError) -> None:
        began_at, probes, longest = time.monotonic(), 0, self._settings.max_wait_seconds
        while True:
            probes += 1
            wait = backoff_seconds(probes, FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS)
            await credit.pace.sleep(max(wait, min(failure.retry_after_seconds or 0.0, longest)))
            still = await self._failure(credit, paused=True)
            if still is None:
                return
            failure = still
            if self._gives_up and time.monotonic() - began_at >= longest:
                raise self._has_been_away(failure)

    async def _failure(self, credit: TokenState, *, paused: bool) -> TransientError | None:
        """Ask once more for what has worked before; what is wrong. An API that asks for patience isn't away."""
        try:
            await self._calls.send(credit.worked or DEPLOYMENTS, credit, past_the_gate=paused)
        except TransientError as error:
            return error if error.http_status != 429 else None
        except (NotFoundError, ItemError):
            credit.worked = ""
        return None
