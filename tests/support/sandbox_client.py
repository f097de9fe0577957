"""A bare client for the tests of the sandbox: it shows what came, and fixes nothing."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aiohttp

from etl.sandbox import Behaviour, Sandbox, Token, World

OPENED_AT = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
SANDBOX_TOKEN = Token().text


class Time:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = OPENED_AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class Seen(NamedTuple):
    """What came back: `status` is 0 where the connection ended first, `pieces` counts what was read."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int
    complete: bool

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks one sandbox with one token. Answers come as they are: no redirects, nothing unpacked."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, token: str | None) -> None:
        self.session = session
        self.base_url = base_url
        self.token = token

    async def ask(self, method: str, path: str, body: Any = None) -> Seen:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        request = self.session.request(method, self.base_url + path, json=body, headers=headers, allow_redirects=False)
        status, answered, came, pieces, complete = 0, {}, b"", 0, True
        try:
            async with request as response:
                status, answered = response.status, dict(response.headers)
                async for piece in response.content.iter_any():
                    came, pieces = came + piece, pieces + 1
        except aiohttp.ClientError:
            complete = False
        return Seen(status, answered, came, pieces, complete)

    async def scan(self, scan_id: int, deployment_id: int = 120) -> Seen:
        return await self.ask("GET", f"/api/v1/deployments/{deployment_id}/scan/{scan_id}")

    async def page(self, deployment_id: int = 120, **query: Any) -> Seen:
        return await self.ask("POST", f"/api/v1/deployments/{deployment_id}/scans/search", query)

    async def pages(self, deployment_id: int = 120, **query: Any) -> list[list[dict[str, Any]]]:
        body = (await self.page(deployment_id, **query)).json()
        pages = [body["scans"]]
        while cursor := body.get("cursor"):
            body = (await self.page(deployment_id, **query, cursor=cursor)).json()
            pages.append(body["scans"])
        return pages

    async def listed(self, deployment_id: int = 120, **query: Any) -> list[dict[str, Any]]:
        return [one for page in await self.pages(deployment_id, **query) for one in page]


@asynccontextmanager
async def asking(
    world: World | None = None,
    behaviour: Behaviour | None = None,
    clock: Callable[[], datetime] | None = None,
    token: str | None = SANDBOX_TOKEN,
) -> AsyncIterator[tuple[Sandbox, Client]]:
    """A running sandbox, and a client of it."""
    sandbox = Sandbox(world or World(scans=50), behaviour, clock or Time())
    async with sandbox as base_url, aiohttp.ClientSession(auto_decompress=False) as session:
        yield sandbox, Client(session, base_url, token)
