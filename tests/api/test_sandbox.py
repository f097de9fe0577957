"""What the sandbox plays: the scans, their shapes, the search, and time. Asked by a real client."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_client import OPENED_AT, Time, asking

from etl.sandbox import World
from etl.sandbox.answers import LOOK_AT_MOST
from etl.sandbox.world import newest_id, scan, started_at

MUCH_LATER = OPENED_AT + timedelta(days=2)
DOCUMENTED = {
    *("completed_at deployment_id enabled_products exit_code has_logs id meta repository_id".split()),
    *("started_at stats".split()),
}
DOCUMENTED_META = {
    *("true branch commit config repo_url ci_job_url repository commit_title pull_request_id".split()),
    *("pull_request_title commit_author_name commit_author_image_url commit_author_email".split()),
    *("commit_author_username pull_request_author_username pull_request_author_image_url".split()),
}


async def test_the_same_seed_gives_the_same_bytes() -> None:
    """Two sandboxes with one seed answer alike in every byte, whatever they were asked before."""
    async with asking(World(seed=3)) as (_, one), asking(World(seed=3)) as (_, two):
        upwards = [(await one.scan(scan_id)).body for scan_id in range(1, 101)]
        downwards = [(await two.scan(scan_id)).body for scan_id in range(100, 0, -1)]

        assert upwards == downwards[::-1]
        assert (await one.page()).body == (await two.page()).body


async def test_another_seed_gives_another_world() -> None:
    """No scan of one seed is the same in the world of another."""
    async with asking(World(seed=3)) as (_, one), asking(World(seed=4)) as (_, two):
        pairs = [(await one.scan(scan_id), await two.scan(scan_id)) for scan_id in range(1, 21)]

        assert all(a.body != b.body for a, b in pairs)


async def test_the_truth_is_what_the_api_gives_in_the_end() -> None:
    """Once all has finished, the details call gives `truth` for every scan."""
    clock = Time()
    async with asking(World(scans=300), clock=clock) as (sandbox, client):
        clock.now = MUCH_LATER
        seen = [await client.scan(scan_id) for scan_id in range(1, 301)]

        assert [one.json() for one in seen] == [sandbox.truth(scan_id) for scan_id in range(1, 301)]
        assert {one.headers["Content-Type"] for one in seen} == {"application/json"}


async def test_the_documented_shape() -> None:
    """With no share for the scanner's shape, no body has a field that the documentation lacks."""
    async with asking(World(scans=200, scanner_share=0)) as (_, client):
        bodies = [(await client.scan(scan_id)).json() for scan_id in range(1, 201)]
        stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

        assert set().union(*bodies) == DOCUMENTED
        assert set().union(*(body["meta"] for body in bodies)) == DOCUMENTED_META
        assert set().union(*(body["stats"] for body in bodies)) == {"findings", "total_time"}
        assert all(stamp.fullmatch(body["started_at"]) for body in bodies)
        assert any(isinstance(body["meta"]["commit_title"], dict) for body in bodies)


async def test_the_scanners_shape() -> None:
    """With all the share, every body has the key `on`, the scanner's extra fields and its timestamps."""
    async with asking(World(scans=200, scanner_share=1)) as (_, client):
        bodies = [(await client.scan(scan_id)).json() for scan_id in range(1, 201)]
        stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00")

        assert set().union(*bodies) == DOCUMENTED
        assert all("on" in body["meta"] and "true" not in body["meta"] for body in bodies)
        assert all({"scan_environment", "is_full_scan", "base_sha"} <= set(body["meta"]) for body in bodies)
        assert any("parse_rate" in body["stats"] for body in bodies)
        assert all(stamp.fullmatch(body["started_at"]) for body in bodies)


async def test_numbers_may_come_as_strings() -> None:
    """With all the share, ids and exit codes are strings of digits."""
    async with asking(World(scans=5, string_number_share=1)) as (_, client):
        body = (await client.scan(1)).json()

        assert body["id"] == "1"
        assert body["deployment_id"] == "120"
        assert body["repository_id"].isdecimal()


def test_the_world_is_lifelike() -> None:
    """A few repositories are busy, most exit codes are 0 or 1, durations go from seconds to hours."""
    world = World(opened_at=OPENED_AT, repositories=50, managed_share=0.3)
    scans = [scan(world, scan_id) for scan_id in range(1, 2_001)]
    by_repository = sorted((sum(one.repository.id == 1_000_000 + k for one in scans) for k in range(50)), reverse=True)

    assert by_repository[0] > 5 * by_repository[25]
    assert 0.85 < sum(one.exit_code in (0, 1) for one in scans) / 2_000 < 0.98
    assert {2, 3, 4, 5, 7, 13} < {one.exit_code for one in scans}
    assert min(one.duration_seconds for one in scans) < 10
    assert max(one.duration_seconds for one in scans) > 3_600
    assert {one.trigger for one in scans} >= {"pull_request", "push", "schedule", "unknown"}
    assert any(re.fullmatch(r"refs/pull/\d+/merge", one.branch) for one in scans)
    assert all(sum(one.findings.values()) > 0 for one in scans if one.exit_code == 1)
    assert len({one.repository.products for one in scans}) > 3
    assert any(one.repository.managed for one in scans)


@given(
    seed=st.integers(0, 2**32),
    scans=st.integers(0, 10**7),
    scans_per_day=st.floats(300, 10**6),
    first_scan_id=st.integers(1, 2**53),
    minutes=st.integers(0, 60 * 24 * 400),
)
def test_ids_rise_with_time(seed: int, scans: int, scans_per_day: float, first_scan_id: int, minutes: int) -> None:
    """A new world has just its history, and at any time the newest scan is the last that has begun."""
    world = World(seed, scans, scans_per_day, OPENED_AT, first_scan_id)
    now = OPENED_AT + timedelta(minutes=minutes)
    newest = newest_id(world, now)

    assert newest_id(world, OPENED_AT) == first_scan_id + scans - 1
    assert started_at(world, newest) <= now < started_at(world, newest + 1)


def test_scans_arrive_through_a_year() -> None:
    """A year later the world has a year's scans more."""
    world = World(scans=10, scans_per_day=200, opened_at=OPENED_AT)
    arrived = newest_id(world, OPENED_AT + timedelta(days=364)) - 10

    assert arrived == pytest.approx(364 * 200, abs=2)


@pytest.mark.parametrize("limit", [1, 7, 100, 500])
async def test_paging_gives_each_scan_of_30_days_once(limit: int) -> None:
    """Whatever the page size, the pages hold all scans of the last 30 days once, the newest first."""
    async with asking(World(scans=200, scans_per_day=5)) as (sandbox, client):
        pages = await client.pages(limit=limit)
        expected = [
            scan_id
            for scan_id in range(200, 0, -1)
            if started_at(sandbox.world, scan_id) > OPENED_AT - timedelta(days=30)
        ]

        assert 0 < len(expected) < 200
        assert [int(one["id"]) for page in pages for one in page] == expected
        assert all(len(page) == limit for page in pages[:-1])


async def test_scans_that_arrive_between_pages_disturb_nothing() -> None:
    """What begins during the paging comes into no later page, and pushes nothing out of one."""
    clock = Time()
    async with asking(World(scans=250), clock=clock) as (_, client):
        first = (await client.page()).json()
        clock.now += timedelta(hours=1)
        second = (await client.page(cursor=first["cursor"])).json()

        assert [int(one["id"]) for one in first["scans"] + second["scans"]] == list(range(250, 50, -1))


async def test_the_listing_has_the_documented_types() -> None:
    """In the search call 64-bit integers are strings, and the other types are as documented."""
    async with asking(World(scans=300)) as (_, client):
        listed = await client.listed()
        finished = [one for one in listed if "completed_at" in one]

        assert finished
        assert all(re.fullmatch(r"-?\d+", one["exit_code"]) for one in finished)
        assert all(isinstance(one["total_time"], float) for one in finished)
        for one in listed:
            assert re.fullmatch(r"\d+", one["id"] + one["deployment_id"] + one["repository_id"])
            assert isinstance(one["is_full_scan"], bool)
            assert int(one["findings_counts"]["total"]) == sum(
                int(count) for name, count in one["findings_counts"].items() if name != "total"
            )


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ('{"branch": "main"}', lambda one: one["branch"] == "main"),
        ('{"repository_id": 1000000}', lambda one: one["repository_id"] == "1000000"),
        ('{"is_full_scan": true}', lambda one: one["is_full_scan"]),
        ('{"is_full_scan": 0}', lambda one: not one["is_full_scan"]),
        ('{"products": ["PRODUCT_SCA"]}', lambda one: "sca" in one["enabled_products"]),
        (
            '{"products": ["PRODUCT_SAST", "PRODUCT_SECRETS"]}',
            lambda one: {"sast", "secrets"} <= set(one["enabled_products"]),
        ),
        ('{"statuses": ["SCAN_STATUS_ERROR"]}', lambda one: one["status"] == "SCAN_STATUS_ERROR"),
        ('{"total_time": {"min": 60, "max": 90}}', lambda one: 60 <= one.get("total_time", 0) <= 90),
        ('{"total_time": {"max": 90}}', lambda one: one.get("total_time", 91) <= 90),
        ('{"since": "2026-11-24T08:00:00Z"}', lambda one: one["started_at"] > "2026-11-24T08:00:00Z"),
        ('{"since": "2026-11-24 08:00:00"}', lambda one: one["started_at"] > "2026-11-24T08:00:00Z"),
        ('{"since": "2020-01-01T00:00:00Z"}', lambda _: True),
        ('{"pageSize": 3, "hasMore": false}', lambda _: True),
    ],
)
async def test_each_filter(query: str, fits: Callable[[Any], bool]) -> None:
    """A filter leaves exactly the scans that fit it; a key that the API doesn't know changes nothing."""
    async with asking(World(scans=400)) as (_, client):
        everything = await client.listed()
        fitting = [one for one in everything if fits(one)]

        assert fitting
        assert await client.listed(**json.loads(query)) == fitting


@pytest.mark.parametrize(
    "query",
    ['{"limit": 501}', '{"limit": 0}', '{"cursor": "?"}', '{"statuses": ["DONE"]}', '{"since": "soon"}'],
)
async def test_a_bad_search_is_refused(query: str) -> None:
    """What isn't a search request gets 400."""
    async with asking() as (_, client):
        assert (await client.page(**json.loads(query))).status == 400


async def test_a_page_can_be_empty_and_not_the_last() -> None:
    """Where a filter fits nothing among many scans, a page without scans still has a cursor."""
    async with asking(World(scans=LOOK_AT_MOST + 10, scans_per_day=1_000)) as (_, client):
        pages = await client.pages(branch="no-such-branch")

        assert pages == [[], []]


async def test_a_running_scan_finishes_as_time_passes() -> None:
    """A scan has no completed_at and no exit code until its duration has passed; then it has both."""
    clock = Time()
    world = World(scans=1, never_finished_share=0, cancelled_share=0)
    async with asking(world, clock=clock) as (sandbox, client):
        fact = scan(sandbox.world, 1)
        clock.now = fact.started_at + timedelta(seconds=1)
        pending, running = (await client.listed())[0], (await client.scan(1)).json()
        clock.now = fact.started_at + timedelta(seconds=fact.duration_seconds + 1)
        listed = next(one for one in await client.listed() if one["id"] == "1")

        assert running.get("completed_at") is None
        assert running.get("exit_code") is None
        assert pending["status"] == "SCAN_STATUS_PENDING"
        assert "completed_at" not in pending
        assert (await client.scan(1)).json() == sandbox.truth(1)
        assert sandbox.truth(1)["completed_at"]
        assert listed["exit_code"] == str(sandbox.truth(1)["exit_code"])
        assert listed["status"] in ("SCAN_STATUS_COMPLETED", "SCAN_STATUS_ERROR")


@pytest.mark.parametrize(
    ("cancelled_share", "status_in_the_end"),
    [(0, "SCAN_STATUS_NEVER_FINISHED"), (1, "SCAN_STATUS_CANCELLED")],
)
async def test_some_scans_never_finish(cancelled_share: float, status_in_the_end: str) -> None:
    """A scan that never finishes, or is cancelled, runs first and has no completed_at for good."""
    clock = Time()
    world = World(scans=1, scans_per_day=5, never_finished_share=1, cancelled_share=cancelled_share)
    async with asking(world, clock=clock) as (sandbox, client):
        clock.now = started_at(sandbox.world, 1) + timedelta(seconds=6)
        running = (await client.listed())[-1]
        clock.now = OPENED_AT + timedelta(days=20)
        ended = (await client.listed())[-1]

        assert running["status"] == "SCAN_STATUS_RUNNING"
        assert ended["status"] == status_in_the_end
        assert "completed_at" not in ended
        assert (await client.scan(1)).json() == sandbox.truth(1)
        assert sandbox.truth(1).get("completed_at") is None
