"""What an HTTP answer of the API means. Pure: statuses, headers and bodies in, our errors and numbers out."""

import math
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from urllib.parse import urlsplit

from etl.config.secret import masked, without_cut_secret
from etl.errors import TOKEN_EXIT, UNAVAILABLE_EXIT, ApiError, FatalError, ItemError, TransientError, printable
from etl.model import INT64_MAX
from etl.transform.privacy import without_people
from etl.transform.readers import header_date
from etl.transform.sanitize import decode

QUOTED_CHARACTERS = 200
_READ_BYTES = 10_000  # of a body, for those: to look through 10 MiB for secrets and people takes seconds
RETRIED_STATUSES = frozenset({408, 413, 425})
"""What is retried apart from 429 and 5xx. The vendor's own client retries 413 too."""
REFUSED_PATHS = frozenset({401, 403, 404, 410})
"""With these a path is refused: because of what it names, or because of the token."""
MIGRATED = b"DEPLOYMENT_MIGRATED"
"""The code in a 410 with which the API retires an endpoint, whatever is asked of it."""
REFUSALS = frozenset({429, 503})
"""With these the API asks for less, or for patience where it says for how long."""
OF_ANOTHER = "token_of_another_deployment"
_EPOCH_SECONDS = 1_000_000_000  # a reset beyond it is an instant, not a wait


class RefusedPathError(Exception):
    """A path is refused: that says something of the scan only if the token is good."""

    def __init__(self, said: str, http_status: int) -> None:
        super().__init__(said)
        self.http_status = http_status


def document(body: bytes, content_type: str, path: str, *secrets: str) -> object:
    """The decoded body of a 200, without secrets where it is quoted. TransientError if it isn't whole JSON: the next
    answer may be."""
    if "json" not in content_type.lower():
        said = printable(without_people(masked(content_type, *secrets)), 60)
        raise TransientError(
            f"{path} answered 200 with {said!r}, not JSON{quoted(body, *secrets)}",
            kind="not_json",
            http_status=200,
        )
    try:
        return decode(body)
    except ValueError as error:
        raise TransientError(
            f"broken JSON from {path} ({len(body)} bytes): {one_line(error)}", kind="broken_json", http_status=200
        ) from error


def meaning(
    status: int, said: str, headers: Mapping[str, str], now: datetime, body: bytes = b"", *secrets: str
) -> ApiError | RefusedPathError:
    """The error that a status other than 200 stands for. `said` is what a person should read of the answer."""
    if status == 410 and MIGRATED in body:
        return _retired(said)
    if status in REFUSED_PATHS:
        return RefusedPathError(said, status)
    wait = retry_after_seconds(headers.get("Retry-After"), server_time(headers) or now)
    if status in REFUSALS:
        wait = max(used_up_seconds(headers, now), wait or 0.0) or None
    if status == 429:
        return TransientError(
            said, kind="rate_limited", http_status=429, retry_after_seconds=wait, spends_attempt=False
        )
    if 300 <= status < 400:
        said = f"{said}: redirected to {_host(headers, *secrets)}, not followed; look at api.base_url"
    if status < 400 or status in RETRIED_STATUSES or status >= 500:
        return TransientError(said, kind="http_status", http_status=status, retry_after_seconds=wait)
    return ItemError(said, kind="http_status", http_status=status)


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header: a number or an HTTP date. None if it says nothing sensible."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        at = header_date(header)
        if at is None:
            return None
        seconds = (at - now).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _host(headers: Mapping[str, str], *secrets: str) -> str:
    """Where a redirect leads, without its user and query, which may hold secrets of others."""
    try:
        host = urlsplit(headers.get("Location", "")).netloc.rpartition("@")[2]
        return one_line(host or "nowhere", *secrets)
    except ValueError:
        return "nowhere"


def quota(headers: Mapping[str, str], now: datetime) -> tuple[int, float] | None:
    """Requests left, and the seconds until there are more, by RateLimit-* or X-RateLimit-* headers.

    The forms of the IETF drafts (`RateLimit: limit=100, remaining=50, reset=5`, `RateLimit: "default";r=50;t=5`,
    `RateLimit-Remaining`) and the older X-RateLimit ones, whose reset is a wait or an epoch. None without them.
    """
    reset: str | None
    if (remaining := headers.get("X-RateLimit-Remaining")) is not None:
        reset = headers.get("X-RateLimit-Reset")
    elif (remaining := headers.get("RateLimit-Remaining")) is not None:
        reset = headers.get("RateLimit-Reset")
    elif (whole := headers.get("RateLimit")) is not None:
        found = re.search(r"\b(?:remaining|r)=(\d+)", whole), re.search(r"\b(?:reset|t)=(\d+)", whole)
        remaining, reset = (match and match[1] for match in found)
    else:
        return None
    try:
        left, seconds = int(remaining or ""), float(reset or "")
    except ValueError:
        return None
    if seconds > _EPOCH_SECONDS:
        seconds -= (server_time(headers) or now).timestamp()
    return (left, seconds) if left >= 0 and 0 < seconds < _EPOCH_SECONDS else None


def used_up_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """The seconds until there are requests again, if the headers say that none are left; else 0."""
    left = quota(headers, now)
    return left[1] if left and left[0] == 0 else 0.0


def server_time(headers: Mapping[str, str]) -> datetime | None:
    """The Date of an answer, to the second: what the instants in its other headers go by. None if it has none that can
    be true."""
    return header_date(headers.get("Date", ""))


def deployment_ids(answer: object) -> frozenset[int]:
    """The ids in an answer of `GET /api/v1/deployments`, numbers or strings; empty if it has none.

    What is no id of a deployment would name none, and no database could hold it.
    """
    found = answer.get("deployments") if isinstance(answer, dict) else None
    ids = [entry.get("id") for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    numbers = (int(str(value)) for value in ids if re.fullmatch("[0-9]{1,19}", str(value)))
    return frozenset(number for number in numbers if 1 <= number <= INT64_MAX)


def refusal_of_scan(noun: str, error: RefusedPathError) -> ItemError:
    """The token is good, and one path is refused all the same."""
    kind, sentence = {
        404: ("not_found", f"no such {noun}"),
        410: ("gone", f"the {noun} is gone"),
    }.get(error.http_status, ("refused", f"the token is valid, but this {noun} is refused"))
    return ItemError(f"{sentence}: {error}", kind=kind, http_status=error.http_status)


def refusal_of_token(error: RefusedPathError) -> FatalError:
    """The deployments call, which names nothing that could be gone, is refused."""
    if error.http_status == 404:
        return _token_without_scope()
    if error.http_status == 410:
        return _retired(str(error))
    return FatalError(
        f"the token is refused: {error}", kind="token_refused", stop_code=TOKEN_EXIT, http_status=error.http_status
    )


def _retired(said: str) -> FatalError:
    return FatalError(
        f"the endpoint is retired, look for a newer scan-etl: {said}",
        kind="endpoint_retired",
        stop_code=UNAVAILABLE_EXIT,
        http_status=410,
    )


def token_missing(deployment_id: int) -> FatalError:
    """There is no token for a deployment."""
    return FatalError(
        f"no token for deployment {deployment_id}: set SEMGREP_APP_TOKEN or SEMGREP_APP_TOKEN__{deployment_id}",
        kind="token_missing",
        stop_code=TOKEN_EXIT,
    )


def _token_without_scope() -> FatalError:
    """The deployments call gives 404, as everything does for a token without the scope."""
    return FatalError(
        "the token lacks the Web API scope (404 from /api/v1/deployments): create one with 'Web API' enabled in"
        " Semgrep's settings, Tokens; if it has the scope, look at api.base_url",
        kind="token_without_scope",
        stop_code=TOKEN_EXIT,
        http_status=404,
    )


def token_of_another(deployment_id: int, visible: Collection[int]) -> FatalError:
    """The token works, but for other deployments than this one."""
    names = ", ".join(map(str, sorted(visible)))
    return FatalError(
        f"the token for deployment {deployment_id} belongs to deployment {names}:"
        f" set SEMGREP_APP_TOKEN__{deployment_id} to a token of its own",
        kind=OF_ANOTHER,
        stop_code=TOKEN_EXIT,
    )


def api_away(seconds: float, reason: object) -> FatalError:
    """The API has been waited for, in vain."""
    return FatalError(
        f"the API has been unavailable for {seconds:g} s: {reason}", kind="api_away", stop_code=UNAVAILABLE_EXIT
    )


def quoted(body: bytes, *secrets: str) -> str:
    """`: ` and a piece of a body for a person to read, on one line, without secrets and without people; nothing of an
    empty one."""
    piece = body if len(body) <= _READ_BYTES else without_cut_secret(body[:_READ_BYTES], *secrets)
    said = masked(piece.decode("utf-8", "replace"), *secrets)
    text = printable(without_people(said), QUOTED_CHARACTERS)
    return f": {text}" if text else ""


def one_line(error: object, *secrets: str) -> str:
    """An error's text, without secrets, cut to one short line."""
    return (masked(str(error), *secrets).strip() or type(error).__name__).splitlines()[0][:QUOTED_CHARACTERS]
