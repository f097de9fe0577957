"""The sandbox's repositories and its kinds of search, as a bare client sees them."""

from datetime import timedelta

import pytest
from sandbox_client import OPENED_AT, Time, asking

from etl.sandbox import Behaviour, World

PROJECTS = "/api/v1/deployments/sandbox/projects"


async def test_projects_come_in_pages_until_one_is_empty() -> None:
    """100 at most, and those without scans have no `latest_scan_at`."""
    async with asking(World(scans=300, repositories=150, idle_repositories=3)) as (_, client):
        pages = [(await client.ask("GET", f"{PROJECTS}?page={page}")).json()["projects"] for page in range(3)]
        listed = await client.listed(limit=500)

    assert [len(page) for page in pages] == [100, 53, 0]
    newest: dict[str, str] = {}
    for one in listed:
        newest.setdefault(one["repository_id"], one["started_at"])
    said = {str(one["id"]): one.get("latest_scan_at") for page in pages for one in page}
    assert {number for number, at in said.items() if at} == newest.keys()
    assert all(str(said[number])[:10] == at[:10] for number, at in newest.items())


async def test_projects_come_go_and_get_other_names() -> None:
    """A scan is never of one that isn't there."""
    clock, world = Time(), World(scans=50, new_share=0.5, archived_share=0.5, renamed_share=0.5, changes_days=10)
    async with asking(world, clock=clock) as (_, client):
        before = {one["id"]: one["name"] for one in (await client.ask("GET", PROJECTS)).json()["projects"]}
        clock.now += timedelta(days=11)
        after = {one["id"]: one["name"] for one in (await client.ask("GET", PROJECTS)).json()["projects"]}
        listed = await client.listed(limit=500, since=(OPENED_AT + timedelta(days=10)).isoformat())

    assert before.keys() - after.keys()
    assert after.keys() - before.keys()
    assert any(after[number] == f"{before[number]}-renamed" for number in before.keys() & after.keys())
    assert {int(one["repository_id"]) for one in listed} <= after.keys()


@pytest.mark.parametrize(
    ("path", "status"), [("/api/v1/deployments/120/projects", 404), (f"{PROJECTS}?page=x", 400), (PROJECTS, 200)]
)
async def test_projects_are_found_by_slug(path: str, status: int) -> None:
    """Not by id; and a page is a number."""
    async with asking() as (_, client):
        assert (await client.ask("GET", path)).status == status


@pytest.mark.parametrize(("kind", "status"), [("refused", 400), ("empty", 200), ("nothing", 200)])
async def test_a_search_may_want_a_repository(kind: str, status: int) -> None:
    """Without one it is refused, or lists nothing; with one it lists the scans, unless it never lists any."""
    async with asking(behaviour=Behaviour(search=kind)) as (_, client):  # type: ignore[arg-type]  # one of its words
        whole = await client.page()
        of_one = (await client.page(repository_id=1_000_000)).json()["scans"]

    assert whole.status == status
    assert not whole.json().get("scans")
    assert bool(of_one) is (kind != "nothing")
