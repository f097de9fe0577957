"""The Semgrep API: the only file that speaks HTTP.

Every answer becomes a decoded document or one of our errors, here and nowhere else. The token goes into the
Authorization header only; error texts are cleaned of it.
"""

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import aiohttp
import stamina
from yarl import URL

from etl import __version__
from etl.config import ApiSettings, Tokens
from etl.errors import FatalError, ItemError, TransientError
from etl.events import GateClosed, Tally, Tell
from etl.flatten import decode
from etl.model import Pair
from etl.pacing import Pace, retry_after_seconds

CONNECT_TIMEOUT_SECONDS = 10.0
ERROR_BODY_BYTES = 2_000
QUOTED_CHARACTERS = 200
BELIEVED_SECONDS = 60.0
"""How long an answer of `GET /api/v1/deployments` counts when a 404 is judged by it."""
LONGEST_PAUSE_SECONDS = 5.0
"""The longest wait between quick retries; whatever needs more is the queue's to retry."""

TOKEN_EXIT, UNAVAILABLE_EXIT = 3, 4
RETRIED_STATUSES = frozenset({408, 413, 425})
"""What is retried apart from 429 and 5xx. The vendor's own client retries 413 too."""
FATAL_STATUSES = {
    401: ("token_refused", "the token is refused", TOKEN_EXIT),
    403: ("token_refused", "the token isn't allowed to read scans", TOKEN_EXIT),
    410: ("endpoint_retired", "the endpoint is retired, look for a newer scan-etl", UNAVAILABLE_EXIT),
}


# The run counts retries and tells of them in its own words.
stamina.instrumentation.set_on_retry_hooks([])


class _NotFoundError(Exception):
    """A 404: true only if the token is good."""


class Semgrep:
    """The API for any number of deployments. Use it as an async context manager.

    All requests of one token share one pace. `tally` counts requests, retries and refusals as they happen.
    """

    def __init__(self, settings: ApiSettings, tokens: Tokens, tally: Tally, tell: Tell) -> None:
        self._settings = settings
        self._tokens = tokens
        self._tally = tally
        self._tell = tell
        self._paces: dict[str, Pace] = {}
        self._hushed = False
        self._seen: dict[str, tuple[float, frozenset[int]]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=settings.retries + 1, timeout=None, wait_initial=0.2, wait_max=LONGEST_PAUSE_SECONDS
        ).on(_quick_retry)

    async def __aenter__(self) -> Self:
        seconds = self._settings.timeout_seconds
        connect = min(CONNECT_TIMEOUT_SECONDS, seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            # The bound on the whole request is asyncio's: aiohttp's own costs three times as much.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=seconds),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": f"scan-etl/{__version__}",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # aiohttp would send a GET once more, on its own, when a kept connection turns out dead: a request that
        # no pace has let through and no one counts.
        self._session._retry_connection = False  # noqa: SLF001 - there is no public switch
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def scan(self, pair: Pair) -> object:
        """The decoded details of one scan.

        Raises TransientError, ItemError (this scan is gone), FatalError (the token, or the whole endpoint)
        and StoppedError.
        """
        token = self._token(pair.deployment_id)
        path = f"/api/v1/deployments/{pair.deployment_id}/scan/{pair.scan_id}"
        try:
            return await self._patiently(path, token)
        except _NotFoundError as error:
            await self._judge_not_found(pair, token)
            raise ItemError(f"no such scan: {error}", kind="not_found", http_status=404) from error
        except FatalError as error:
            if error.stop_code == TOKEN_EXIT:
                error.deployment_id = pair.deployment_id
            raise

    async def check_token(self, deployment_id: int, wanted: Collection[int]) -> None:
        """FatalError if the token for this deployment is missing, refused, lacks the scope, or sees only
        deployments of which none is `wanted`."""
        token = self._token(deployment_id)
        try:
            visible = await self._visible(token)
        except FatalError as error:
            error.deployment_id = deployment_id
            raise
        if visible and visible.isdisjoint(wanted):
            raise _token_of_another(deployment_id, visible)

    def hush(self) -> None:
        """Send no more requests: whoever waits for its turn gets StoppedError."""
        self._hushed = True
        for pace in self._paces.values():
            pace.close()

    def _pace_of(self, token: str) -> Pace:
        pace = self._paces.get(token)
        if pace is None:
            pace = self._paces[token] = Pace(
                self._settings.rate,
                self._settings.max_wait_seconds,
                on_gate=lambda seconds: self._tell(GateClosed(seconds)),
            )
            if self._hushed:
                pace.close()
        return pace

    def _token(self, deployment_id: int) -> str:
        token = self._tokens.for_deployment(deployment_id)
        if token is None:
            raise FatalError(
                f"no token for deployment {deployment_id}:"
                f" set SEMGREP_APP_TOKEN or SEMGREP_APP_TOKEN__{deployment_id}",
                kind="token_missing",
                stop_code=TOKEN_EXIT,
                deployment_id=deployment_id,
            )
        return token

    async def _judge_not_found(self, pair: Pair, token: str) -> None:
        """Return if a 404 can be believed. A token without the Web API scope gets 404 for everything."""
        visible = await self._visible(token)
        if visible and pair.deployment_id not in visible:
            raise _token_of_another(pair.deployment_id, visible)

    async def _visible(self, token: str) -> frozenset[int]:
        lock = self._asking.setdefault(token, asyncio.Lock())
        async with lock:
            asked_at, visible = self._seen.get(token, (-BELIEVED_SECONDS, frozenset[int]()))
            if time.monotonic() - asked_at < BELIEVED_SECONDS:
                return visible
            try:
                answer = await self._patiently("/api/v1/deployments", token)
            except _NotFoundError as error:
                raise FatalError(
                    "the token lacks the Web API scope (404 from /api/v1/deployments): make one with 'Web API'"
                    " enabled in Semgrep's settings, Tokens; if it has the scope, look at api.base_url",
                    kind="token_without_scope",
                    stop_code=TOKEN_EXIT,
                    http_status=404,
                ) from error
            visible = _deployment_ids(answer)
            self._seen[token] = time.monotonic(), visible
            return visible

    async def _patiently(self, path: str, token: str) -> object:
        """One GET with the quick retries. The retrying machinery starts at the first failure only: it
        costs 32 us a call, a third of a whole request."""
        try:
            return await self._get(path, token)
        except TransientError as error:
            first: TransientError | None = error

        async def again() -> object:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            self._tally.retried += 1
            return await self._get(path, token)

        return await self._retrying(again)

    async def _get(self, path: str, token: str) -> object:
        """One request: the decoded body of a 200, or the error that the answer means."""
        pace = self._pace_of(token)
        await pace.acquire()
        self._tally.requests += 1
        url = URL(self._settings.base_url + path, encoded=True)
        with _translated(path, self._settings.timeout_seconds):
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                self._session.get(
                    url, headers={"Authorization": f"Bearer {token}"}, allow_redirects=False
                ) as response,
            ):
                if response.status == 200:
                    body = await _read(response, self._settings.max_body_bytes)
                else:
                    with contextlib.suppress(aiohttp.ClientError, TransientError):
                        body = b""
                        body = await _read(response, ERROR_BODY_BYTES, cut=True)
        if response.status == 200:
            pace.accepted()
            return _document(response, body, path)
        said = f"HTTP {response.status} from {path}{_quote(body, token)}"
        wait = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
        if response.status == 429:
            raise self._refusal(said, wait, pace)
        pace.accepted()
        raise _meaning(response.status, said, wait, response.headers.get("Location", ""))

    def _refusal(self, said: str, wait: float | None, pace: Pace) -> TransientError | FatalError:
        """A 429 closes the gate for all who use the token. No pair is to blame, so it spends no attempt."""
        self._tally.rate_limited += 1
        if pace.refused(wait):
            return TransientError(said, kind="rate_limited", http_status=429, spends_attempt=False)
        return FatalError(
            f"the API has refused every request for {self._settings.max_wait_seconds:g} s: {said}",
            kind="rate_limited",
            stop_code=UNAVAILABLE_EXIT,
            http_status=429,
        )


def _meaning(status: int, said: str, wait: float | None, location: str) -> Exception:
    """The error that an answer other than 200 and 429 stands for."""
    if status in FATAL_STATUSES:
        kind, sentence, stop_code = FATAL_STATUSES[status]
        return FatalError(f"{sentence}: {said}", kind=kind, stop_code=stop_code, http_status=status)
    if status == 404:
        return _NotFoundError(said)
    if 300 <= status < 400:
        place = URL(location).host or "nowhere"
        said = f"{said}: redirected to {place}, not followed; look at api.base_url"
    if status < 400 or status in RETRIED_STATUSES or status >= 500:
        return TransientError(said, kind="http_status", http_status=status, retry_after_seconds=wait)
    return ItemError(said, kind="http_status", http_status=status)


def _token_of_another(deployment_id: int, visible: Collection[int]) -> FatalError:
    names = ", ".join(map(str, sorted(visible)))
    return FatalError(
        f"the token for deployment {deployment_id} belongs to deployment {names}:"
        f" set SEMGREP_APP_TOKEN__{deployment_id} to a token of its own",
        kind="token_of_another_deployment",
        stop_code=TOKEN_EXIT,
        deployment_id=deployment_id,
    )


def _quick_retry(error: Exception) -> bool | float:
    """Whether to try again in place, or after how many seconds. A refusal waits at the gate instead."""
    if not isinstance(error, TransientError):
        return False
    if error.kind == "rate_limited":
        return 0.001
    wait = error.retry_after_seconds
    return True if wait is None else wait <= LONGEST_PAUSE_SECONDS and wait


@contextlib.contextmanager
def _translated(path: str, timeout_seconds: float) -> Iterator[None]:
    """aiohttp's errors become ours, most specific first."""
    try:
        yield
    except TimeoutError as error:
        raise TransientError(f"no answer within {timeout_seconds:g} s from {path}", kind="timeout") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise FatalError(
            f"the server's certificate isn't trusted: {error.certificate_error}",
            kind="tls",
            stop_code=UNAVAILABLE_EXIT,
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise TransientError(f"can't connect to {error.host}: {error.os_error}", kind="connection") from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
        raise TransientError(f"broken answer from {path}: {_short(error)}", kind="broken_answer") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError(f"connection lost at {path}: {_short(error)}", kind="connection") from error


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:QUOTED_CHARACTERS]


async def _read(response: aiohttp.ClientResponse, limit: int, *, cut: bool = False) -> bytes:
    """The body, unpacked. Past `limit` bytes it is cut, or refused with ItemError."""
    content = response.content
    body = await content.readany()
    while not content.at_eof():
        if len(body) > limit:
            break
        body += await content.readany()
    if len(body) <= limit:
        return body
    response.close()
    if cut:
        return body[:limit]
    raise ItemError(
        f"the answer is larger than api.max_body_bytes ({limit})", kind="too_large", http_status=200
    )


def _document(response: aiohttp.ClientResponse, body: bytes, path: str) -> object:
    kind = response.headers.get("Content-Type", "application/json")
    if "json" not in kind.lower():
        raise TransientError(
            f"{path} answered 200 with {kind[:60]!r}, not JSON: {_quote(body, '')[2:]}",
            kind="not_json",
            http_status=200,
        )
    try:
        return decode(body)
    except ValueError as error:
        raise TransientError(
            f"broken JSON from {path} ({len(body)} bytes): {_short(error)}",
            kind="broken_json",
            http_status=200,
        ) from error


def _quote(body: bytes, token: str) -> str:
    """A piece of an answer for a person to read, on one line, without the token."""
    text = " ".join(body.decode("utf-8", "replace").split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    if token:
        text = text.replace(token, "***")
    return f": {text[:QUOTED_CHARACTERS]}" if text else ""


def _deployment_ids(answer: object) -> frozenset[int]:
    """The ids in an answer of `GET /api/v1/deployments`, numbers or strings; empty if it has none."""
    found = answer.get("deployments") if isinstance(answer, dict) else None
    ids = [entry.get("id") for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return frozenset(int(str(value)) for value in ids if str(value).isdecimal())
