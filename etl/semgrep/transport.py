"""One request to the API and its answer: the only HTTP client.

The token goes into the Authorization header only. What the answer means is decided in `responses`.
"""

import asyncio
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from msgspec import Struct
from yarl import URL

from etl import __version__
from etl.config.proxies import Proxy
from etl.config.secret import without_cut_secret
from etl.config.settings import ApiSettings
from etl.errors import UNAVAILABLE_EXIT, ApiError, FatalError, ItemError, TransientError
from etl.semgrep.connections import Connector, is_new, was_unread
from etl.semgrep.deadline import Deadline
from etl.semgrep.responses import one_line

CONNECT_TIMEOUT_SECONDS = 10.0
ERROR_BODY_BYTES, ERROR_BODY_SECONDS = 2_000, 2.0
MOST_HEADER_BYTES, MOST_HEADERS = 65_536, 1_000
"""Policies of 8 KB and more exist, and aiohttp reads no more than that of its own accord."""
PROXY_LOGIN = 407


class HttpResponse(Struct, frozen=True):
    """An answer, its body unpacked; of an error the body may be empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """The connections to the API. Use it as an async context manager.

    A server that can't be trusted, or a proxy that refuses, is a FatalError (exit 4) if it `gives_up`.
    """

    def __init__(self, settings: ApiSettings, proxy: Proxy | None = None, *, gives_up: bool) -> None:
        self._settings = settings
        self._proxy = proxy
        self._gives_up = gives_up

    async def __aenter__(self) -> Self:
        seconds = self._settings.timeout_seconds
        self._deadline = Deadline(seconds)
        self._session = aiohttp.ClientSession(
            connector=Connector(),
            # The whole request has its deadline.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_TIMEOUT_SECONDS, seconds)),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": f"scan-etl/{__version__}",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MOST_HEADER_BYTES,
            max_field_size=MOST_HEADER_BYTES,
            max_headers=MOST_HEADERS,
            # By `trust_env` aiohttp would find it itself, but read `~/.netrc` too, and refuse each request for a host
            # that stands there.
            proxy=URL(self._proxy.url) if self._proxy else None,
        )
        # aiohttp would send a GET once more, on its own, whenever a kept connection turns out dead: also one that the
        # server has read, which no pace has let through then and no one counts.
        self._session._retry_connection = False  # noqa: SLF001 - there is no public switch
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.close()
        await self._session.close()

    async def ask(self, path: str, token: str | None = None, query: bytes | None = None) -> HttpResponse:
        """Send one request, a POST if it has a query of JSON. No redirect is followed.

        A request that nobody has read, because a kept connection had ended, is sent on another one.

        TransientError if no whole answer comes in time, or if no server is there that can be trusted, which may be a
        FatalError; ItemError if the answer is too large.
        """
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if query is not None:
            headers["Content-Type"] = "application/json"
        settings = self._settings
        url = URL(settings.base_url + path, encoded=True)
        method = "GET" if query is None else "POST"
        has_begun = False
        if is_new.get():
            is_new.set(False)
        try:
            with self._deadline:
                async with self._session.request(
                    method, url, headers=headers, data=query, allow_redirects=False
                ) as response:
                    has_begun = True
                    if response.status == PROXY_LOGIN and self._proxy and url.scheme == "http":
                        raise _refused_by(self._proxy, PROXY_LOGIN, gives_up=self._gives_up)
                    if response.status == 200:
                        body = await _read(response, settings.max_body_bytes)
                    else:
                        body = await _read_some(response, settings.timeout_seconds, self.secrets(token))
                    return HttpResponse(response.status, response.headers, body)
        except (aiohttp.ClientError, OSError) as error:
            if has_begun or not was_unread(error):
                raise self._translated(error, path, self.secrets(token)) from error
        return await self.ask(path, token, query)

    def secrets(self, token: str | None) -> tuple[str, ...]:
        """What no error may quote of a request with this token."""
        return (token or "", *(self._proxy.secrets if self._proxy else ()))

    def _translated(self, error: Exception, path: str, secrets: Collection[str]) -> ApiError:
        """Ours for an error of aiohttp or of the system, most specific first."""
        match error:
            case aiohttp.ClientSSLError():
                return _untrusted(error, gives_up=self._gives_up)
            case aiohttp.ClientHttpProxyError() if self._proxy:
                return _refused_by(self._proxy, error.status, gives_up=self._gives_up)
            case aiohttp.ClientProxyConnectionError() if self._proxy:
                return _unreachable(self._proxy, error)
        through = f" through {self._proxy}" if self._proxy else ""
        return _failed(error, f"{path}{through}", self._settings.timeout_seconds, secrets)


def _untrusted(error: aiohttp.ClientSSLError, *, gives_up: bool) -> ApiError:
    fault = getattr(error, "certificate_error", error.__cause__)
    text = (
        f"no trusted TLS connection to {error.host}: {one_line(fault)}; look at api.base_url, or name the"
        " certificates of its authority in SSL_CERT_FILE or SSL_CERT_DIR"
    )
    if gives_up:
        return FatalError(text, kind="tls", stop_code=UNAVAILABLE_EXIT)
    return TransientError(text, kind="tls", spends_attempt=False)


def _refused_by(proxy: Proxy, status: int, *, gives_up: bool) -> ApiError:
    """Ours for what a proxy answers in place of the API. No pair is to blame for it."""
    if status == PROXY_LOGIN:
        fix = f"set {proxy.variable} to http://user:password@host:port with a user that it knows"
    else:
        fix = f"look at api.base_url and {proxy.variable}, or name the API's host in NO_PROXY"
    text = f"{proxy} refuses with HTTP {status}: {fix}"
    if gives_up and status in (403, PROXY_LOGIN):
        return FatalError(text, kind="proxy", stop_code=UNAVAILABLE_EXIT)
    return TransientError(text, kind="proxy", spends_attempt=False)


def _unreachable(proxy: Proxy, error: aiohttp.ClientProxyConnectionError) -> TransientError:
    fix = f"look at {proxy.variable}, or name the API's host in NO_PROXY"
    text = f"can't connect to {proxy}: {one_line(error.os_error)}; {fix}"
    return TransientError(text, kind="connection", spends_attempt=False)


def _failed(error: Exception, path: str, timeout_seconds: float, secrets: Collection[str]) -> TransientError:
    match error:
        case aiohttp.ConnectionTimeoutError():
            seconds = min(CONNECT_TIMEOUT_SECONDS, timeout_seconds)
            return TransientError(f"no connection within {seconds:g} s for {path}", kind="timeout")
        case TimeoutError():
            return TransientError(f"no answer within {timeout_seconds:g} s from {path}", kind="timeout")
        case aiohttp.ClientConnectorError():
            return TransientError(f"can't connect to {error.host}: {one_line(error.os_error)}", kind="connection")
        case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            # Its message alone: the rest is a status of aiohttp's own, which the answer didn't have.
            fault = getattr(error.__cause__ or error, "message", error)
            return TransientError(f"broken answer from {path}: {one_line(fault, *secrets)}", kind="broken_answer")
    return TransientError(f"connection lost at {path}: {one_line(error, *secrets)}", kind="connection")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, unpacked. ItemError past `limit` bytes."""
    content = response.content
    body = await content.readany()
    while not content.at_eof() and len(body) <= limit:
        body += await content.readany()
    if len(body) <= limit:
        return body
    response.close()
    raise ItemError(f"the answer is larger than api.max_body_bytes ({limit})", kind="too_large", http_status=200)


async def _read_some(response: aiohttp.ClientResponse, timeout_seconds: float, secrets: Collection[str]) -> bytes:
    """The beginning of an error's body. That it can't be read doesn't change what the status says."""
    content, body = response.content, b""
    try:
        async with asyncio.timeout(min(ERROR_BODY_SECONDS, timeout_seconds / 2)):
            while not content.at_eof() and len(body) < ERROR_BODY_BYTES:
                body += await content.readany()
    except (aiohttp.ClientError, TimeoutError):
        pass
    if content.at_eof() and content.exception() is None:
        return body
    response.close()
    return without_cut_secret(body[:ERROR_BODY_BYTES], *secrets)
