"""How the sandbox behaves, and everything that can go wrong with a details call: one function each."""

import asyncio
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
from aiohttp import web

from etl.sandbox.answers import SPOILT
from etl.sandbox.world import dice

TIMES_MOST = 2**16 - 1
_JSON = {"Content-Type": "application/json"}
_PIECES = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault `name` (a key of `FAULTS`) hits a `share`, 0 to 1, of the scans, or of the search's pages.

    It hits the first `times` tries of such a scan or page, or all of them where `times` is 0. Where several
    faults chose the same one, they follow each other. A client on aiohttp asks once more by itself after
    `reset` and `hang`, and sees them only if `times` isn't 1. Raises ValueError for an unknown name.
    """

    name: str
    share: float = 1.0
    times: int = 1
    endpoint: Literal["details", "search", "projects"] = "details"

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise ValueError(f"no fault {self.name!r}: there are {', '.join(FAULTS)}")
        if not 0 <= self.share <= 1 or not 0 <= self.times < TIMES_MOST:
            raise ValueError(f"fault {self.name}: share is 0 to 1, times 0 or more")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the API behaves. The default is an API that is fast, patient and sound.

    Each answer takes `latency_seconds` and up to `latency_spread_seconds` more. `rate_limit` is in requests
    per second and token, None for none; `burst` requests may come at once, as many as one second's where
    it is None. `retry_after` is the form in which a 429 or 503 says how long to wait, at least a second.
    The details of a scan are gone `details_days` after its start, None for never. With `offset_cursors` the
    search's pages shift when scans arrive between them. Without a `repository_id` the `search` lists the whole
    deployment, or is refused, or gives an empty list; `nothing` is empty with one, too. The faults `hang` and
    `slow-body` take `hang_seconds` and `drip_seconds`; `huge-body` sends `huge_bytes`.
    """

    latency_seconds: float = 0.0
    latency_spread_seconds: float = 0.0
    rate_limit: float | None = None
    burst: int | None = None
    retry_after: Literal["seconds", "date", "absent"] = "seconds"
    rate_limit_headers: bool = False
    details_days: float | None = None
    offset_cursors: bool = False
    search: Literal["whole", "refused", "empty", "nothing"] = "whole"
    faults: tuple[Fault, ...] = ()
    hang_seconds: float = 3_600.0
    drip_seconds: float = 2.0
    huge_bytes: int = 72 * 2**20

    def __post_init__(self) -> None:
        if self.rate_limit is not None and self.rate_limit <= 0:
            raise ValueError("rate_limit is above 0, or None")
        if self.burst is not None and self.burst < 1:
            raise ValueError("burst starts at 1")

    @property
    def bucket_size(self) -> float:
        return self.burst if self.burst is not None else max(1.0, self.rate_limit or 0.0)


class Call(NamedTuple):
    """What a fault may need: the request, the honest body, and another scan's or page's body."""

    request: web.BaseRequest
    behaviour: Behaviour
    now: datetime
    body: dict[str, Any]
    other_body: dict[str, Any]


def answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), headers={**_JSON, **(headers or {})})


def retry_after_header(behaviour: Behaviour, wait_seconds: float, now: datetime) -> dict[str, str]:
    whole_seconds = max(1, math.ceil(wait_seconds))
    if behaviour.retry_after == "seconds":
        return {"Retry-After": str(whole_seconds)}
    if behaviour.retry_after == "date":
        at = now.astimezone(UTC) + timedelta(seconds=whole_seconds)
        return {"Retry-After": format_datetime(at, usegmt=True)}
    return {}


async def _status(code: int, call: Call) -> web.StreamResponse:
    if code == 410:
        return answer(410, {"code": "DEPLOYMENT_MIGRATED", "message": "this endpoint has moved"})
    if code in (502, 504):  # these come from a proxy, which knows no JSON
        return web.Response(status=code, text="<h1>Bad gateway</h1>", content_type="text/html")
    headers = retry_after_header(call.behaviour, 1, call.now) if code in (429, 503) else {}
    return answer(code, {"message": f"sandbox fault: {code}"}, headers)


async def _spoilt(spoil: Callable[[dict[str, Any]], bytes], call: Call) -> web.StreamResponse:
    return web.Response(body=spoil(call.body), headers=_JSON)


async def _wrong_id(call: Call) -> web.StreamResponse:
    return answer(200, call.other_body)


async def _html(_: Call) -> web.StreamResponse:
    return web.Response(text="<!doctype html><title>Sign in</title>", content_type="text/html")


async def _redirect(_: Call) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://elsewhere.invalid/login"})


async def _bad_encoding(call: Call) -> web.StreamResponse:
    return web.Response(body=msgspec.json.encode(call.body), headers=_JSON | {"Content-Encoding": "gzip"})


async def _reset(call: Call) -> web.StreamResponse:
    if call.request.transport is not None:
        connection = call.request.transport.get_extra_info("socket")
        # Closing with a linger time of zero sends RST where a plain close sends FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        call.request.transport.abort()
    return web.Response(status=500)


async def _hang(call: Call) -> web.StreamResponse:
    await asyncio.sleep(call.behaviour.hang_seconds)
    return await _reset(call)


async def _slow_body(call: Call) -> web.StreamResponse:
    body = msgspec.json.encode(call.body)
    response = await _begin(call, len(body))
    step = math.ceil(len(body) / _PIECES)
    for start in range(0, len(body), step):
        await asyncio.sleep(call.behaviour.drip_seconds / _PIECES)
        await response.write(body[start : start + step])
    return response


async def _truncated(call: Call) -> web.StreamResponse:
    body = msgspec.json.encode(call.body)
    response = await _begin(call, len(body) + 100)
    await response.write(body)
    if call.request.transport is not None:
        call.request.transport.close()
    return response


async def _huge_body(call: Call) -> web.StreamResponse:
    response = await _begin(call, None)
    await response.write(msgspec.json.encode(call.body)[:-1] + b',"padding":"')
    piece = b"x" * 2**20
    for _ in range(math.ceil(call.behaviour.huge_bytes / len(piece))):
        await response.write(piece)
    await response.write(b'"}')
    return response


async def _begin(call: Call, length_bytes: int | None) -> web.StreamResponse:
    response = web.StreamResponse(headers=_JSON)
    response.content_length = length_bytes
    await response.prepare(call.request)
    return response


FAULTS: dict[str, Callable[[Call], Awaitable[web.StreamResponse]]] = {
    **{
        f"status-{code}": partial(_status, code)
        for code in (500, 502, 503, 504, 408, 413, 425, 429, 401, 403, 404, 410)
    },
    **{name: partial(_spoilt, spoil) for name, spoil in SPOILT.items()},
    "wrong-id": _wrong_id,
    "html": _html,
    "redirect": _redirect,
    "bad-encoding": _bad_encoding,
    "reset": _reset,
    "hang": _hang,
    "slow-body": _slow_body,
    "truncated": _truncated,
    "huge-body": _huge_body,
}
"""Fault name -> what answers instead of the honest body."""


def chosen_fault(seed: int, faults: tuple[Fault, ...], endpoint: str, what: int | str, tries: int) -> Fault | None:
    """The fault that hits this try of `what`, a scan id or a page's cursor; `tries` counts from 1."""
    for fault in faults:
        if fault.endpoint == endpoint and dice(seed, fault.name, what) < fault.share:
            if fault.times == 0 or tries <= fault.times:
                return fault
            tries -= fault.times
    return None
