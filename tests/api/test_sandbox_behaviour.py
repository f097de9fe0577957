"""How the sandbox behaves: tokens, pace, faults, and what it counts. Asked by a real client."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

import pytest
from sandbox_client import OPENED_AT, Seen, Time, asking

from etl.sandbox import FAULTS, Behaviour, Deployment, Fault, Sandbox, Token, World, serve

HUGE_BYTES = 2 * 2**20
TWO_DEPLOYMENTS = World(
    scans=40,
    deployments=(
        Deployment(120, "one", "One", (Token("one-a"), Token("one-b"))),
        Deployment(121, "two", "Two", (Token("two"), Token("blind", web_api=False))),
    ),
)
FIRST_ANSWERS: dict[str, Callable[[Seen], bool]] = {
    "status-500": lambda seen: seen.status == 500,
    "status-502": lambda seen: seen.status == 502 and b"<h1>" in seen.body,
    "status-503": lambda seen: seen.status == 503 and seen.headers["Retry-After"] == "1",
    "status-504": lambda seen: seen.status == 504 and b"<h1>" in seen.body,
    "status-408": lambda seen: seen.status == 408,
    "status-413": lambda seen: seen.status == 413,
    "status-425": lambda seen: seen.status == 425,
    "status-429": lambda seen: seen.status == 429 and seen.headers["Retry-After"] == "1",
    "status-401": lambda seen: seen.status == 401,
    "status-403": lambda seen: seen.status == 403,
    "status-404": lambda seen: seen.status == 404,
    "status-410": lambda seen: seen.status == 410 and seen.json()["code"] == "DEPLOYMENT_MIGRATED",
    "broken-json": lambda seen: seen.complete and seen.status == 200 and not _is_json(seen.body),
    "empty-body": lambda seen: seen.complete and seen.status == 200 and seen.body == b"",
    "not-an-object": lambda seen: isinstance(seen.json(), list),
    "nan": lambda seen: b"NaN" in seen.body,
    "nul-text": lambda seen: "\x00" in seen.json()["meta"]["commit_title"],
    "surrogate-text": lambda seen: "\ud800" in seen.json()["meta"]["commit_title"],
    "big-integer": lambda seen: seen.json()["stats"]["findings"] >= 2**64,
    "deep-json": lambda seen: seen.body.count(b"[") > 10_000 and seen.body.count(b"]") > 10_000,
    "bom": lambda seen: seen.body.startswith(b"\xef\xbb\xbf") and _is_json(seen.body[3:]),
    "wrong-id": lambda seen: int(seen.json()["id"]) == 2,
    "html": lambda seen: seen.status == 200 and seen.headers["Content-Type"].startswith("text/html"),
    "redirect": lambda seen: seen.status == 302 and "elsewhere" in seen.headers["Location"],
    "bad-encoding": lambda seen: seen.headers["Content-Encoding"] == "gzip" and _is_json(seen.body),
    "reset": lambda seen: seen.status == 0,
    "hang": lambda seen: seen.status == 0,
    "slow-body": lambda seen: seen.complete and _is_json(seen.body) and seen.pieces > 1,
    "truncated": lambda seen: seen.status == 200 and not seen.complete and _is_json(seen.body),
    "huge-body": lambda seen: seen.complete and len(seen.body) > HUGE_BYTES,
}


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_is_seen_once(name: str) -> None:
    """A fault spoils the first try of a scan in its own way; the second try gets the truth."""
    # Where a connection ends without an answer, aiohttp's client asks once more by itself.
    times = 2 if name in ("reset", "hang") else 1
    behaviour = Behaviour(
        faults=(Fault(name, times=times),), hang_seconds=0.05, drip_seconds=0.4, huge_bytes=HUGE_BYTES
    )
    clock = Time(OPENED_AT + timedelta(days=2))
    async with asking(World(scans=3, opened_at=OPENED_AT), behaviour, clock) as (sandbox, client):
        first, second = await client.scan(1), await client.scan(1)

        assert FIRST_ANSWERS[name](first)
        assert second.status == 200
        assert second.json() == sandbox.truth(1)
        assert sandbox.stats.times_seen(1) == times + 1
        assert sandbox.stats.requests["details", first.status] >= times


async def test_a_poisoned_scan_never_gets_well() -> None:
    """With times=0 the fault hits every try."""
    behaviour = Behaviour(faults=(Fault("status-500", times=0),))
    async with asking(World(scans=1), behaviour) as (_, client):
        statuses = [(await client.scan(1)).status for _ in range(10)]

        assert statuses == [500] * 10


async def test_faults_follow_each_other() -> None:
    """Several faults of one scan are played in turn, each as often as it says."""
    behaviour = Behaviour(faults=(Fault("status-500", times=2), Fault("status-429"), Fault("status-503")))
    async with asking(World(scans=1), behaviour) as (_, client):
        statuses = [(await client.scan(1)).status for _ in range(6)]

        assert statuses == [500, 500, 429, 503, 200, 200]


async def test_a_share_of_the_scans_is_hit_and_always_the_same() -> None:
    """A fault with a share hits about so many scans, and the same ones in every sandbox of that seed."""
    behaviour = Behaviour(faults=(Fault("status-500", share=0.3),))
    world = World(seed=5, scans=300)
    async with asking(world, behaviour) as (_, one), asking(world, behaviour) as (_, two):
        upwards = [(await one.scan(scan_id)).status for scan_id in range(1, 301)]
        downwards = [(await two.scan(scan_id)).status for scan_id in range(300, 0, -1)]

        assert upwards == downwards[::-1]
        assert 60 < upwards.count(500) < 120


async def test_a_page_of_the_search_can_fail_too() -> None:
    """A fault of the search hits the first try of each page, and leaves the details call alone."""
    behaviour = Behaviour(faults=(Fault("broken-json", endpoint="search"),))
    async with asking(World(scans=150), behaviour) as (_, client):
        first, second = await client.page(), await client.page()
        cursor = second.json()["cursor"]
        third, fourth = await client.page(cursor=cursor), await client.page(cursor=cursor)

        assert not _is_json(first.body)
        assert not _is_json(third.body)
        assert len(second.json()["scans"] + fourth.json()["scans"]) == 150
        assert (await client.scan(1)).status == 200


@pytest.mark.parametrize(
    ("token", "statuses"),
    [
        ("one-a", (200, 200, 200, 404, 404, 200, 404)),
        ("one-b", (200, 200, 200, 404, 404, 200, 404)),
        ("two", (200, 200, 404, 404, 200, 404, 200)),
        ("blind", (404,) * 7),
        ("wrong", (200, *(401,) * 6)),
        ("", (200, *(401,) * 6)),
        (None, (200, *(401,) * 6)),
    ],
)
async def test_a_token_sees_one_deployment(token: str | None, statuses: tuple[int, ...]) -> None:
    """Another's deployment is 404, a bad token 401, and without the Web API scope all is 404."""
    async with asking(TWO_DEPLOYMENTS, token=token) as (_, client):
        seen = [
            await client.ask("GET", "/api/v1/ping"),
            await client.ask("GET", "/api/v1/deployments"),
            await client.scan(1, deployment_id=120),
            await client.scan(2, deployment_id=120),
            await client.scan(2, deployment_id=121),
            await client.page(deployment_id=120),
            await client.page(deployment_id=121),
        ]

        assert tuple(one.status for one in seen) == statuses


async def test_deployments_names_the_one_of_the_token() -> None:
    """The preflight call names the deployment that the token may see, and no other."""
    async with asking(TWO_DEPLOYMENTS, token="two") as (_, client):
        (deployment,) = (await client.ask("GET", "/api/v1/deployments")).json()["deployments"]

        assert (deployment["id"], deployment["slug"], deployment["name"]) == (121, "two", "Two")


async def test_deployments_share_the_scans_out() -> None:
    """Each scan is listed in one deployment: the one that its pair names."""
    async with asking(TWO_DEPLOYMENTS, token="one-a") as (_, one):
        pairs = (await one.ask("GET", "/sandbox/scans")).json()
        of_one = await one.listed(120, limit=7)
        one.token = "two"
        of_two = await one.listed(121, limit=7)
        listed = [[int(each["deployment_id"]), int(each["id"])] for each in of_one + of_two]

        assert len(of_one) == len(of_two) == 20
        assert sorted(listed, key=lambda pair: pair[1]) == pairs


async def test_a_token_can_be_revoked() -> None:
    """From the moment of its revocation a token gets 401."""
    clock = Time()
    token = Token("short", revoked_at=OPENED_AT + timedelta(hours=1))
    world = World(deployments=(Deployment(tokens=(token,)),))
    async with asking(world, clock=clock, token="short") as (_, client):
        before = await client.scan(1)
        clock.now += timedelta(hours=1)

        assert before.status == 200
        assert (await client.scan(1)).status == 401


@pytest.mark.parametrize("scan_id", [0, 51, 2**63 - 1, 2**64 - 1, 10**30])
async def test_an_unknown_scan_is_404(scan_id: int) -> None:
    """What has not begun, and what can't be, is not found."""
    async with asking(World(scans=50)) as (sandbox, client):
        seen = await client.scan(scan_id)

        assert seen.status == 404
        assert sandbox.stats.times_seen(scan_id) == 0


@pytest.mark.parametrize(
    ("retry_after", "fits"),
    [
        ("seconds", lambda header: 90 < int(header) <= 100),
        ("date", lambda header: 90 < (parsedate_to_datetime(header) - OPENED_AT).total_seconds() <= 100),
        ("absent", lambda header: header is None),
    ],
)
async def test_the_rate_limit(
    retry_after: Literal["seconds", "date", "absent"], fits: Callable[[str | None], bool]
) -> None:
    """After the burst a token gets 429, and is told how long to wait in the form that was chosen."""
    behaviour = Behaviour(rate_limit=0.01, burst=3, retry_after=retry_after)
    async with asking(World(scans=9), behaviour) as (sandbox, client):
        seen = [await client.scan(scan_id) for scan_id in range(1, 6)]

        assert [one.status for one in seen] == [200, 200, 200, 429, 429]
        assert sandbox.stats.times_seen(5) == 0
        assert fits(seen[4].headers.get("Retry-After"))


async def test_the_rate_limit_is_told_in_headers() -> None:
    """With rate_limit_headers every answer says what is left of the burst, and when it is full again."""
    behaviour = Behaviour(rate_limit=0.01, burst=2, rate_limit_headers=True)
    async with asking(World(scans=9), behaviour) as (_, client):
        seen = [await client.scan(scan_id) for scan_id in (1, 2, 3)]

        assert [one.headers["X-RateLimit-Limit"] for one in seen] == ["2", "2", "2"]
        assert [one.headers["X-RateLimit-Remaining"] for one in seen] == ["1", "0", "0"]
        assert [int(one.headers["X-RateLimit-Reset"]) > 90 for one in seen] == [True] * 3


async def test_each_token_has_its_own_rate_limit() -> None:
    """A token that has used up its burst leaves the other's alone."""
    async with asking(TWO_DEPLOYMENTS, Behaviour(rate_limit=0.01, burst=1), token="one-a") as (_, client):
        first = [await client.scan(1), await client.scan(1)]
        client.token = "one-b"

        assert [one.status for one in first] == [200, 429]
        assert (await client.scan(1)).status == 200


async def test_it_counts_what_it_was_asked() -> None:
    """The counts by endpoint and status, by token and by scan are in the stats and on their page."""
    async with asking(World(scans=50)) as (sandbox, client):
        for scan_id in (1, 2, 2, 3, 3, 3, 99):
            await client.scan(scan_id)
        await client.page()
        await client.ask("GET", "/elsewhere")
        page = (await client.ask("GET", "/sandbox/stats?scans=true")).json()

        assert sandbox.stats.requests == {
            ("details", 200): 6,
            ("details", 404): 1,
            ("search", 200): 1,
            ("unknown", 404): 1,
        }
        assert [sandbox.stats.times_seen(scan_id) for scan_id in range(5)] == [0, 1, 2, 3, 0]
        assert sum(sandbox.stats.details_per_second["sandbox-token"].values()) == 7
        assert page["requests"]["details"] == {"200": 6, "404": 1}
        assert page["times_seen"] == {"1": 1, "2": 2, "3": 3}
        assert page["scans_by_times_seen"] == {"1": 1, "2": 1, "3": 1}
        assert page["in_flight"] == 0


async def test_it_knows_how_many_requests_were_under_way() -> None:
    """Slow answers overlap, and the most at one time is kept."""
    behaviour = Behaviour(latency_seconds=0.3, latency_spread_seconds=0.1)
    async with asking(World(scans=9), behaviour) as (sandbox, client):
        await asyncio.gather(*(client.scan(scan_id) for scan_id in range(1, 6)))
        await client.scan(6)

        assert sandbox.stats.largest_in_flight == 5
        assert sandbox.stats.in_flight == 0


async def test_the_pairs_come_in_pages() -> None:
    """`/sandbox/scans` gives the pairs from an offset on; an empty page is the end."""
    async with asking(World(scans=25, first_scan_id=2**40)) as (_, client):
        pages = [
            (await client.ask("GET", f"/sandbox/scans?limit=10&offset={offset}")).json() for offset in (0, 10, 20, 30)
        ]

        assert [pair for page in pages for pair in page] == [[120, 2**40 + place] for place in range(25)]
        assert pages[3] == []
        assert (await client.scan(2**40 + 24)).status == 200


async def test_millions_of_scans_cost_nothing() -> None:
    """The last of ten million scans is there at once, and so is the page that holds it."""
    async with asking(World(scans=10_000_000, scans_per_day=20_000)) as (_, client):
        listed = (await client.page(limit=1)).json()["scans"]

        assert (await client.scan(10_000_000)).status == 200
        assert listed[0]["id"] == "10000000"
        assert (await client.ask("GET", "/sandbox/stats")).json()["scans_by_times_seen"] == {"1": 1}


async def test_stopping_ends_a_hang() -> None:
    """A request that hangs is cut off when the sandbox stops, and counts as not answered."""
    under_way = asyncio.Event()

    def clock() -> datetime:
        under_way.set()
        return OPENED_AT

    world, behaviour = World(scans=1, opened_at=OPENED_AT), Behaviour(faults=(Fault("hang"),))
    async with asking(world, behaviour, clock) as (sandbox, client):
        hanging = asyncio.create_task(client.scan(1))
        await under_way.wait()
        await sandbox.stop()

        assert (await hanging).status == 0
        assert sandbox.stats.requests == {("details", 0): 1}


async def test_it_listens_on_loopback_only() -> None:
    """A host that others can reach is refused, unless that is meant."""
    sandbox = Sandbox(World())

    with pytest.raises(ValueError, match="loopback"):
        await sandbox.start("0.0.0.0")  # noqa: S104 - this is what is refused


async def test_serve_runs_until_it_is_cancelled() -> None:
    """`serve` answers while it runs, and frees the port when it is cancelled."""
    async with asking() as (_, client):
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(Sandbox(World()), on_start=listening.set_result))
        client.base_url = await listening
        seen = await client.ask("GET", "/api/v1/ping")
        task.cancel()
        await asyncio.wait([task])

        assert (seen.status, seen.json()) == (200, {})
        assert task.cancelled()
        assert (await client.ask("GET", "/api/v1/ping")).status == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: World(repositories=0),
        lambda: World(scans=-1),
        lambda: World(scans=10**9, scans_per_day=1),
        lambda: World(opened_at=OPENED_AT.replace(tzinfo=None)),
        lambda: World(deployments=(Deployment(), Deployment())),
        lambda: Fault("no-such-fault"),
        lambda: Fault("reset", share=2),
        lambda: Behaviour(rate_limit=0),
        lambda: Behaviour(burst=0),
        lambda: Sandbox(World(deployments=(Deployment(1), Deployment(2)))),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], object]) -> None:
    """A world, a fault or a behaviour that makes no sense is an error where it is written."""
    with pytest.raises(ValueError, match=r"\w"):
        build()
