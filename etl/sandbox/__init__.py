"""A stand-in for the Semgrep API, for demos, rehearsals and tests. It knows nothing of the other floors.

    async with Sandbox(World(seed=7, scans=1_000)) as base_url:
        ...  # ask base_url, with the token `sandbox-token`, for scans 1 to 1,000 of deployment 120

`World` says what there is to fetch, `Behaviour` how the API behaves while it is asked; the Date of its answers is
that of the sandbox's own clock. Beside the five calls of the API there are `GET /sandbox/stats` (what it was
asked; `?scans=true` adds how often each scan was) and `GET /sandbox/scans?limit=&offset=` (the
[deployment_id, scan_id] pairs that exist; an empty page is the end). These two need no token and are neither
slowed down nor counted.
"""

import asyncio
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, NamedTuple

from aiohttp import web

from etl.sandbox.answers import details, read_query, search
from etl.sandbox.faults import FAULTS, TIMES_MOST, Behaviour, Call, Fault, answer, chosen_fault, retry_after_header
from etl.sandbox.projects import Projects
from etl.sandbox.world import Deployment, Token, World, deployment_of, newest_id, rng, scan, started_at

__all__ = ["FAULTS", "Behaviour", "Deployment", "Fault", "Sandbox", "Stats", "Token", "World", "serve"]

Clock = Callable[[], datetime]

_SECONDS_KEPT = 3_600
_PAGES_KEPT = 10_000
_PAIRS_AT_MOST = 10_000


def utc_now() -> datetime:
    return datetime.now(UTC)


class Route(NamedTuple):
    endpoint: str
    deployment_id: int = 0
    scan_id: int = 0
    slug: str = ""


def route(method: str, path: str) -> Route:
    """Which call this is; the endpoint `unknown` is none of them."""
    match [method, *path.split("/")[1:]]:
        case ["GET", "api", "v1", "ping"]:
            return Route("ping")
        case ["GET", "api", "v1", "deployments"]:
            return Route("deployments")
        case ["GET", "api", "v1", "deployments", of, "scan", scan_id] if _are_ids(of, scan_id):
            return Route("details", int(of), int(scan_id))
        case ["POST", "api", "v1", "deployments", of, "scans", "search"] if _are_ids(of):
            return Route("search", int(of))
        case ["GET", "api", "v1", "deployments", slug, "projects"]:
            return Route("projects", slug=slug)
    return Route("unknown")


def _are_ids(*texts: str) -> bool:
    return all(text.isascii() and text.isdigit() and len(text) <= 20 for text in texts)


@dataclass(slots=True)
class Stats:
    """What the sandbox was asked. `requests` counts by (endpoint, status); status 0 means that no answer
    got through. `details_per_second` counts the details calls by token and by second since the start,
    for the last hour. `largest_in_flight` is the most requests that were under way at the same time.
    `scans_by_times_seen` says how many scans were seen once, twice, and so on.
    """

    first_scan_id: int = 1
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    details_per_second: dict[str, dict[int, int]] = field(default_factory=dict)
    in_flight: int = 0
    largest_in_flight: int = 0
    scans_by_times_seen: Counter[int] = field(default_factory=Counter)
    _times_seen: "array[int]" = field(default_factory=lambda: array("H"))

    def times_seen(self, scan_id: int) -> int:
        """How often the details of the scan were asked for, with a good token and within the rate limit."""
        place = scan_id - self.first_scan_id
        return self._times_seen[place] if 0 <= place < len(self._times_seen) else 0

    def as_json(self, *, with_scans: bool) -> dict[str, Any]:
        """`with_scans` adds how often each scan was seen: as many entries as there are scans."""
        requests: dict[str, dict[str, int]] = {}
        for (endpoint, status), count in sorted(self.requests.items()):
            requests.setdefault(endpoint, {})[str(status)] = count
        page: dict[str, Any] = {
            "requests": requests,
            "details_per_second": self.details_per_second,
            "in_flight": self.in_flight,
            "largest_in_flight": self.largest_in_flight,
            "scans_by_times_seen": +self.scans_by_times_seen,  # plus leaves the zeros out
        }
        if with_scans:
            seen = enumerate(self._times_seen, self.first_scan_id)
            page["times_seen"] = {scan_id: times for scan_id, times in seen if times}
        return page

    def saw(self, scan_id: int) -> int:
        """Counts one more try of the scan and says how many that makes."""
        place = scan_id - self.first_scan_id
        if place >= len(self._times_seen):
            missing = place + 1 - len(self._times_seen)
            self._times_seen.frombytes(bytes(missing * self._times_seen.itemsize))
        before = self._times_seen[place]
        times = min(before + 1, TIMES_MOST)
        self._times_seen[place] = times
        self.scans_by_times_seen[times] += 1
        if before:
            self.scans_by_times_seen[before] -= 1
        return times

    def saw_token(self, token: str, second: int) -> None:
        counts = self.details_per_second.setdefault(token, {})
        counts[second] = counts.get(second, 0) + 1
        if len(counts) > _SECONDS_KEPT:
            del counts[next(iter(counts))]


class Sandbox:
    """The server. `clock` gives the aware instant that scans, tokens and dates go by; waiting and the rate
    limit go by real time. Raises ValueError where two deployments share a token.
    """

    def __init__(self, world: World, behaviour: Behaviour | None = None, clock: Clock = utc_now) -> None:
        self.world = world if world.opened_at is not None else replace(world, opened_at=clock())
        self.behaviour = behaviour or Behaviour()
        self.stats = Stats(world.first_scan_id)
        self._clock = clock
        self._spread = rng(world.seed, "latency", 0)
        self._tokens = {token.text: (token, each) for each in world.deployments for token in each.tokens}
        self._buckets: dict[str, tuple[float, float]] = {}
        self._page_tries: Counter[tuple[str, str]] = Counter()
        self._projects = Projects(self.world)
        self._newest_id = 0
        self._started_at_seconds = 0.0
        self._runner: web.ServerRunner | None = None
        if len(self._tokens) < sum(len(each.tokens) for each in world.deployments):
            raise ValueError("a token can see one deployment only")

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False) -> str:
        """Listens, on a free port for port 0, and gives the base URL. Raises ValueError for a host that
        others can reach, unless that is meant.
        """
        if not allow_remote and host != "localhost" and not ip_address(host).is_loopback:
            raise ValueError(f"{host} can be reached from outside: the sandbox listens on loopback only")
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self._started_at_seconds = asyncio.get_running_loop().time()
        bound_port = self._runner.addresses[0][1]
        return f"http://[{host}]:{bound_port}" if ":" in host else f"http://{host}:{bound_port}"

    async def stop(self) -> None:
        """Stops listening and ends what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def truth(self, scan_id: int) -> dict[str, Any]:
        """The details of the scan as a sound API gives them once all has finished. Raises LookupError for
        an id before the first.
        """
        if scan_id < self.world.first_scan_id:
            raise LookupError(f"the first scan is {self.world.first_scan_id}")
        return details(scan(self.world, scan_id), None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/sandbox/"):
            return self._own(request)
        asked = route(request.method, request.path)
        self.stats.in_flight += 1
        self.stats.largest_in_flight = max(self.stats.largest_in_flight, self.stats.in_flight)
        status = 0
        try:
            await self._take_time(request, asked)
            now = self._clock()
            response = await self._respond(request, asked, now)
            if not response.prepared:
                response.headers["Date"] = format_datetime(now.astimezone(UTC), usegmt=True)
            if request.transport is not None and (response.prepared or not request.transport.is_closing()):
                status = response.status
            return response
        finally:
            self.stats.in_flight -= 1
            self.stats.requests[asked.endpoint, status] += 1

    async def _take_time(self, request: web.BaseRequest, asked: Route) -> None:
        """Note when a token has asked, and wait for the latency."""
        token, _ = self._tokens.get(_bearer(request), (None, None))
        if token is not None and asked.endpoint == "details":
            second = asyncio.get_running_loop().time() - self._started_at_seconds
            self.stats.saw_token(token.text, int(second))
        spread = self.behaviour.latency_spread_seconds * self._spread.random()
        if self.behaviour.latency_seconds or spread:
            await asyncio.sleep(self.behaviour.latency_seconds + spread)

    async def _respond(self, request: web.BaseRequest, asked: Route, now: datetime) -> web.StreamResponse:
        """The gates in the API's order: scope, token, pace; then the call itself."""
        token, deployment = self._tokens.get(_bearer(request), (None, None))
        if token is not None and not token.web_api:
            return answer(404, {"message": "not found"})
        if asked.endpoint == "ping":
            return answer(200, {})
        if token is None or deployment is None or (token.revoked_at is not None and now >= token.revoked_at):
            return answer(401, {"message": "this token is not valid"})
        wait_seconds = self._take(token.text)
        if wait_seconds > 0:
            headers = retry_after_header(self.behaviour, wait_seconds, now)
            response: web.StreamResponse = answer(429, {"message": "too many requests"}, headers)
        else:
            response = await self._call(request, asked, deployment, now)
        if self.behaviour.rate_limit_headers and self.behaviour.rate_limit and not response.prepared:
            response.headers.update(self._rate_limit_headers(token.text))
        return response

    async def _call(
        self, request: web.BaseRequest, asked: Route, deployment: Deployment, now: datetime
    ) -> web.StreamResponse:
        if asked.endpoint == "deployments":
            return answer(200, {"deployments": [_deployment_body(deployment, request)]})
        if asked.endpoint == "details" and asked.deployment_id == deployment.id:
            return await self._details(request, asked.scan_id, deployment, now)
        if asked.endpoint == "search" and asked.deployment_id == deployment.id:
            return await self._search(request, deployment, now)
        if asked.endpoint == "projects" and asked.slug == deployment.slug:
            return await self._list_projects(request, deployment, now)
        return answer(404, {"message": "not found"})

    async def _list_projects(
        self, request: web.BaseRequest, deployment: Deployment, now: datetime
    ) -> web.StreamResponse:
        page, size = request.query.get("page", "0"), request.query.get("page_size", "100")
        if not _are_ids(page, size):
            return answer(400, {"message": "page and page_size are numbers"})
        body = self._projects.page(deployment, now, int(page), int(size))
        return await self._or_fault(request, now, body, "projects", page)

    async def _details(
        self, request: web.BaseRequest, scan_id: int, deployment: Deployment, now: datetime
    ) -> web.StreamResponse:
        world = self.world
        if scan_id > self._newest_id:
            self._newest_id = newest_id(world, now)
        exists = world.first_scan_id <= scan_id <= self._newest_id
        if not exists or deployment_of(world, scan_id) is not deployment or self._is_gone(scan_id, now):
            return answer(404, {"message": "no such scan"})
        body = details(scan(world, scan_id), now)
        fault = chosen_fault(world.seed, self.behaviour.faults, "details", scan_id, self.stats.saw(scan_id))
        if fault is None:
            return answer(200, body)
        other_body = details(scan(world, scan_id + len(world.deployments)), now)
        return await FAULTS[fault.name](Call(request, self.behaviour, now, body, other_body))

    def _is_gone(self, scan_id: int, now: datetime) -> bool:
        days = self.behaviour.details_days
        return days is not None and started_at(self.world, scan_id) < now - timedelta(days=days)

    async def _search(self, request: web.BaseRequest, deployment: Deployment, now: datetime) -> web.StreamResponse:
        try:
            query = read_query(await request.read())
            body = search(self.world, deployment, query, now, by_offset=self.behaviour.offset_cursors)
        except ValueError as exc:
            return answer(400, {"message": str(exc)})
        if query.repository_id is None and self.behaviour.search == "refused":
            return answer(400, {"message": "repository_id is missing"})
        if self.behaviour.search == "nothing" or (query.repository_id is None and self.behaviour.search == "empty"):
            body = {"scans": []}
        return await self._or_fault(request, now, body, "search", query.cursor)

    async def _or_fault(
        self, request: web.BaseRequest, now: datetime, body: dict[str, Any], endpoint: str, page: str
    ) -> web.StreamResponse:
        """The body of a page, or the fault that has chosen the page."""
        if len(self._page_tries) > _PAGES_KEPT:
            self._page_tries.clear()
        self._page_tries[endpoint, page] += 1
        tries = self._page_tries[endpoint, page]
        fault = chosen_fault(self.world.seed, self.behaviour.faults, endpoint, page, tries)
        if fault is None:
            return answer(200, body)
        empty = {name: [] if isinstance(value, list) else value for name, value in body.items()}
        return await FAULTS[fault.name](Call(request, self.behaviour, now, body, empty))

    def _take(self, token: str) -> float:
        """Takes one request out of the token's bucket. Gives the seconds to wait where it is empty."""
        rate = self.behaviour.rate_limit
        if rate is None:
            return 0.0
        at = asyncio.get_running_loop().time()
        level, since = self._buckets.get(token, (self.behaviour.bucket_size, at))
        level = min(self.behaviour.bucket_size, level + (at - since) * rate)
        wait_seconds = max(0.0, (1 - level) / rate)
        self._buckets[token] = (level if wait_seconds else level - 1, at)
        return wait_seconds

    def _rate_limit_headers(self, token: str) -> dict[str, str]:
        size, rate = self.behaviour.bucket_size, self.behaviour.rate_limit or 1.0
        level, _ = self._buckets.get(token, (size, 0.0))
        return {
            "X-RateLimit-Limit": str(math.floor(size)),
            "X-RateLimit-Remaining": str(math.floor(level)),
            "X-RateLimit-Reset": str(math.ceil((size - level) / rate)),
        }

    def _own(self, request: web.BaseRequest) -> web.StreamResponse:
        """The sandbox's own two pages."""
        query = request.query
        if request.path == "/sandbox/stats":
            return answer(200, self.stats.as_json(with_scans=query.get("scans") == "true"))
        if request.path != "/sandbox/scans":
            return answer(404, {"message": "there are /sandbox/stats and /sandbox/scans"})
        limit, offset = query.get("limit", "1000"), query.get("offset", "0")
        if not _are_ids(limit, offset):
            return answer(400, {"message": "limit and offset are numbers"})
        first = self.world.first_scan_id + int(offset)
        last = min(newest_id(self.world, self._clock()), first + min(int(limit), _PAIRS_AT_MOST) - 1)
        pairs = [(deployment_of(self.world, scan_id).id, scan_id) for scan_id in range(first, last + 1)]
        return answer(200, pairs)


async def serve(
    sandbox: Sandbox,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    allow_remote: bool = False,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Runs the sandbox until the task is cancelled. `on_start` is told the base URL once it listens."""
    base_url = await sandbox.start(host, port, allow_remote=allow_remote)
    try:
        if on_start is not None:
            on_start(base_url)
        await asyncio.Event().wait()
    finally:
        await sandbox.stop()


def _bearer(request: web.BaseRequest) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _deployment_body(deployment: Deployment, request: web.BaseRequest) -> dict[str, Any]:
    findings_url = f"http://{request.host}/api/v1/deployments/{deployment.slug}/findings"
    named = {"id": deployment.id, "slug": deployment.slug, "name": deployment.name}
    return named | {"findings": {"url": findings_url}}
