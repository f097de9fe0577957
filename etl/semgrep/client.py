"""The Semgrep API: what is asked of it.

A refusal of a path says something of its scan only after the token has proved good. The other bad news goes through
`circuit_breaker`.
"""

import json
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

from etl.backoff import backoff_seconds
from etl.config.proxies import Proxy
from etl.config.settings import ApiSettings
from etl.config.tokens import Tokens
from etl.errors import UNAVAILABLE_EXIT, ConfigError, FatalError, ItemError, TransientError
from etl.model import PAGE_SIZE, Pair, SearchResponse
from etl.semgrep.circuit_breaker import FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS, CircuitBreaker
from etl.semgrep.rate_limiter import RateLimiter
from etl.semgrep.requests import DEPLOYMENTS, ApiResponse, Calls
from etl.semgrep.responses import (
    OF_ANOTHER,
    RefusedPathError,
    api_away,
    deployment_ids,
    refusal_of_scan,
    refusal_of_token,
    server_time,
    token_missing,
    token_of_another,
)
from etl.semgrep.slot_schedule import Budget
from etl.semgrep.token_state import TokenState
from etl.semgrep.transport import Http
from etl.telemetry.events import (
    EventSink,
    GateClosed,
    GateOpened,
    PaceFallen,
    PaceRegained,
    PaceReserved,
    RunCounts,
    TokenReadAgain,
)

PROOF_SECONDS, PROOF_REQUESTS = 0.25, 4
"""How long a refusal waits for another scan to show that the token is good, before a question is spent on it: so long
at most, and no longer than so many requests take. Refusals that wait together share one question."""
PING = "/api/v1/ping"
REFUSED = "repositories_refused"


class Ping(NamedTuple):
    """How the API answered a ping: after so many seconds, connecting included, and what its clock said."""

    status: int
    seconds: float
    server_time: datetime | None


class Pace(NamedTuple):
    """What may be asked with the token of a deployment, if it may be asked at all now."""

    deployment_id: int
    requests_per_second: float
    is_open: bool


class Semgrep:
    """The API for any number of deployments. Use it as an async context manager.

    `budget_of(token)` gives the line of time that all workers of a token share. `counts` counts requests, retries
    and refusals as they happen. Unless it `gives_up`, it waits for an unavailable API as long as it takes.
    """

    def __init__(
        self,
        settings: ApiSettings,
        tokens: Tokens,
        budget_of: Callable[[str], Budget],
        counts: RunCounts,
        emit: EventSink,
        *,
        proxy: Proxy | None = None,
        gives_up: bool = True,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._budget_of = budget_of
        self._counts = counts
        self._emit = emit
        self._gives_up = gives_up
        self._http = Http(settings, proxy, gives_up=gives_up)
        self._states: dict[int, TokenState] = {}  # by deployment; those with one token share one
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_sending()
        await self._http.__aexit__(kind, error, trace)

    async def ping(self) -> Ping:
        """Ask whether the API lives, without a token. TransientError and FatalError if no answer comes."""
        began_at = time.monotonic()
        self._counts.requests += 1
        answer = await self._http.ask(PING)
        return Ping(answer.status, time.monotonic() - began_at, server_time(answer.headers))

    async def scan(self, pair: Pair) -> object:
        """The decoded details of one scan.

        Raises TransientError, ItemError (this scan is gone or refused), FatalError (the token, or the whole endpoint)
        and StoppedError.
        """
        state = self._state(pair.deployment_id)
        call = state.breaker.scan(f"/api/v1/deployments/{pair.deployment_id}/scan/{pair.scan_id}")
        return (await self._answer(pair.deployment_id, state, call, "scan")).document

    async def search(
        self,
        deployment_id: int,
        since: datetime | None,
        cursor: str,
        repository_id: int | None = None,
        limit: int = PAGE_SIZE,
    ) -> SearchResponse:
        """One page of the scans that were created after `since`, of all repositories or of one. Raises as `scan`
        does."""
        query = {
            "limit": limit,
            **({"repository_id": repository_id} if repository_id is not None else {}),
            **({"since": since.astimezone(UTC).isoformat().replace("+00:00", "Z")} if since else {}),
            **({"cursor": cursor} if cursor else {}),
        }
        state = self._state(deployment_id)
        call = state.breaker.ask(f"/api/v1/deployments/{deployment_id}/scans/search", json.dumps(query).encode())
        answer = await self._answer(deployment_id, state, call, "search")
        return _dated(answer)

    async def deployments(self, deployment_id: int, *, again: bool = False) -> SearchResponse:
        """What the API says of the deployments that this one's token sees; as it said before, unless asked `again`."""
        state = self._state(deployment_id)
        async with state.asking:
            if again or state.deployments is None:
                await self._ask_token(state, state.breaker.ask)
            assert state.deployments is not None  # noqa: S101 - it has just been asked
            return _dated(state.deployments)

    async def repositories(self, deployment_id: int, slug: str, page: int) -> SearchResponse:
        """One page of a deployment's repositories, from 0 on. Raises as `scan` does; a token that may not list them is
        an ItemError, for it may be good for scans."""
        state = self._state(deployment_id)
        try:
            return _dated(await state.breaker.ask(f"{DEPLOYMENTS}/{quote(slug, safe='')}/projects?page={page}"))
        except RefusedPathError as error:
            status = error.http_status
            raise ItemError(
                f"the API refuses to list the repositories: {error}", kind=REFUSED, http_status=status
            ) from error
        except FatalError as error:
            if error.http_status != 410:  # this endpoint is retired, and says nothing of the others
                raise
            raise ItemError(str(error), kind=REFUSED, http_status=410) from error

    async def _answer(
        self, deployment_id: int, state: TokenState, call: Awaitable[ApiResponse], noun: str
    ) -> ApiResponse:
        """The answer to a call about one deployment. What is fatal for it ends all that is asked with its token."""
        try:
            try:
                answer = await call
            except RefusedPathError as error:
                # A token that is refused outright shouldn't be asked for by all that wait in line.
                await self._prove_token(deployment_id, state, at_once=error.http_status != 404)
                raise refusal_of_scan(noun, error) from error
        except FatalError as error:
            if error.kind != OF_ANOTHER and not self._is_stopped:  # else the token is good for another deployment
                state.end(error)
            raise
        state.proved_at[deployment_id] = answer.sent_at
        return answer

    async def _prove_token(self, deployment_id: int, state: TokenState, *, at_once: bool) -> None:
        """Return when the token has proved good for a deployment since now; FatalError if it is to blame for a refusal.

        A token that has just lost its scope gets 404 for everything, as a scan that is gone does. So only what was
        asked after the refusal shows whose fault it is: another scan of the deployment, or else the token itself.
        """
        refused_at = time.monotonic()

        def is_proved() -> bool:
            return state.proved_at.get(deployment_id, -math.inf) > refused_at

        async with state.asking:
            if state.asked_at <= refused_at and not is_proved():
                await state.limiter.sleep(min(PROOF_SECONDS, PROOF_REQUESTS / state.limiter.rate))
            if is_proved():
                return
            if state.asked_at <= refused_at:
                await self._ask_token(state, partial(state.breaker.ask, past_the_gate=at_once))
        if state.visible and deployment_id not in state.visible:
            raise token_of_another(deployment_id, state.visible)

    async def check_token(self, deployment_id: int) -> None:
        """FatalError if the token for this deployment is missing, refused, lacks the scope, or sees only others, or if
        the API is unavailable for too long."""
        state = self._state(deployment_id)
        if state.ended:
            raise state.ended
        if deployment_id in state.proved_at:
            return
        visible = await self._visible_in_the_end(state)
        if visible and deployment_id not in visible:
            raise token_of_another(deployment_id, visible)

    async def seen_by_token_of(self, deployment_id: int, *, patiently: bool = False) -> frozenset[int]:
        """The deployments that this one's token sees; FatalError as for `check_token`. TransientError if the API is
        away, unless that is borne patiently."""
        state = self._state(deployment_id)
        return await (self._visible_in_the_end(state) if patiently else self._visible(state, state.calls.patiently))

    async def _visible_in_the_end(self, state: TokenState) -> frozenset[int]:
        """The deployments that a token sees, waiting for an unavailable API if that doesn't end the run."""
        began_at, failures = time.monotonic(), 0
        while True:
            try:
                return await self._visible(state, state.breaker.ask)
            except TransientError as error:
                failures += 1
                if self._gives_up and time.monotonic() - began_at >= self._settings.max_wait_seconds:
                    raise api_away(self._settings.max_wait_seconds, error) from error
            if failures > 1:  # what else is asked may work all the while
                await state.limiter.sleep(backoff_seconds(failures, FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS))

    async def _visible(self, state: TokenState, ask: Callable[[str], Awaitable[ApiResponse]]) -> frozenset[int]:
        async with state.asking:
            if state.asked_at == -math.inf:
                await self._ask_token(state, ask)
            return state.visible

    async def _ask_token(self, state: TokenState, ask: Callable[[str], Awaitable[ApiResponse]]) -> None:
        """Learn which deployments a token sees: exactly one, as the API says of itself."""
        asked_at = time.monotonic()
        try:
            state.deployments = await ask(DEPLOYMENTS)
            state.visible = deployment_ids(state.deployments.document)
        except RefusedPathError as error:
            raise refusal_of_token(error) from error
        except ItemError as error:
            raise FatalError(
                f"the API doesn't list the deployments of the token: {error}",
                kind="deployments_refused",
                stop_code=UNAVAILABLE_EXIT,
                http_status=error.http_status,
            ) from error
        state.asked_at = asked_at

    def ask_again(self, deployment_id: int) -> None:
        """Forget that the token of a deployment was refused, and what it may see. It is read again, and may be new."""
        before, problem = self._tokens.for_deployment(deployment_id), None
        try:
            self._tokens = self._tokens.read_again()
        except ConfigError as error:
            problem = str(error)
        is_new = self._tokens.for_deployment(deployment_id) != before
        self._emit(TokenReadAgain(deployment_id, is_new, problem))
        refused = self._states.get(deployment_id)
        if is_new:
            self._states.pop(deployment_id, None)
        if refused is not None and refused.ended is None:  # it is good for another deployment
            refused.asked_at, refused.visible = -math.inf, frozenset()
            return
        self._states = {number: state for number, state in self._states.items() if state is not refused}

    def slow_pace(self) -> str | None:
        """Why less than a tenth of the rate is asked with a token; None where that isn't so."""
        found = {state.token: (number, state.slow_because()) for number, state in self._states.items()}
        reasons = [f"{_whose(number)}: {reason}" for number, reason in found.values() if reason is not None]
        return "; ".join(reasons) or None

    def paces(self) -> list[Pace]:
        """How each token may ask at present, by a deployment that it is for."""
        states = {state.token: (number, state.limiter) for number, state in sorted(self._states.items()) if number}
        return [Pace(number, limiter.rate, limiter.is_open) for number, limiter in states.values()]

    def stop_sending(self) -> None:
        """Send no more requests: whoever waits for its turn gets StoppedError."""
        self._is_stopped = True
        for state in self._states.values():
            state.limiter.close()

    def _state(self, deployment_id: int) -> TokenState:
        known = self._states.get(deployment_id)
        if known is not None:
            return known
        token = self._tokens.for_deployment(deployment_id)
        if token is None:
            raise token_missing(deployment_id)
        shared = (state for state in self._states.values() if state.token == token)
        state = self._states[deployment_id] = next(shared, None) or self._new_state(token, deployment_id or None)
        return state

    def _new_state(self, token: str, deployment_id: int | None) -> TokenState:
        settings, gives_up = self._settings, self._gives_up
        limiter = RateLimiter(
            settings.rate,
            settings.max_wait_seconds,
            self._budget_of(token),
            partial(self._emit_gate, deployment_id),
            lambda seconds: self._emit(PaceReserved(deployment_id, round(seconds, 1))),
            lambda: self._emit_pace(deployment_id, limiter),
        )
        if self._is_stopped:
            limiter.close()
        calls = Calls(self._http, token, limiter, settings, self._counts, gives_up=gives_up)
        breaker = CircuitBreaker(
            calls, limiter, deployment_id, self._emit, settings.max_wait_seconds, gives_up=gives_up
        )
        return TokenState(token, limiter, calls, breaker)

    def _emit_pace(self, deployment_id: int | None, limiter: RateLimiter) -> None:
        kind = PaceFallen if limiter.is_slow else PaceRegained
        self._emit(kind(deployment_id, round(limiter.rate, 2)))

    def _emit_gate(self, deployment_id: int | None, seconds: float) -> None:
        self._emit(GateClosed(deployment_id, round(seconds, 1)) if seconds else GateOpened(deployment_id))


def _dated(answer: ApiResponse) -> SearchResponse:
    return SearchResponse(answer.document, server_time(answer.headers) or datetime.now(UTC))


def _whose(deployment_id: int) -> str:
    return f"deployment {deployment_id}" if deployment_id else "the token without a deployment"
