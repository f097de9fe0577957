"""The search call as the client makes it: against the sandbox, with its own clock."""

from datetime import timedelta

import pytest
from sandbox_client import OPENED_AT, SANDBOX_TOKEN, Time, asking
from semgrep_client import asking_at

from etl.errors import FatalError, ItemError, TransientError
from etl.sandbox import Behaviour, Deployment, Fault, Token, World
from etl.transform.search_page import read_page

TOKENS = {"SEMGREP_APP_TOKEN": SANDBOX_TOKEN}


async def test_pages_follow_each_other_and_tell_the_apis_time() -> None:
    """`since` and the cursor are honoured, 500 scans are asked for, and the time is that of the API's clock."""
    clock = Time()
    async with asking(World(scans=1_200, scans_per_day=100), clock=clock) as (_, client):
        clock.now += timedelta(seconds=3)
        async with asking_at(client.base_url, TOKENS) as asked:
            first = await asked.semgrep.search(120, None, "")
            page = read_page(120, first.document)
            second = read_page(120, (await asked.semgrep.search(120, None, page.cursor)).document)
            recent = await asked.semgrep.search(120, OPENED_AT - timedelta(days=1), "")

    assert first.at == clock.now
    assert (len(page.listings), len(second.listings), len({one.pair for one in page.listings + second.listings})) == (
        500,
        500,
        1_000,
    )
    ages = [OPENED_AT - one.started_at for one in read_page(120, recent.document).listings if one.started_at]
    assert 50 < len(ages) < 200
    assert max(ages) < timedelta(days=1)
    assert asked.counts.requests == 3


async def test_a_search_proves_the_token() -> None:
    """After a page of a deployment nobody has to ask whether the token sees it."""
    async with asking() as (sandbox, client), asking_at(client.base_url, TOKENS) as asked:
        await asked.semgrep.search(120, None, "")
        await asked.semgrep.check_token(120)

    assert sandbox.stats.requests == {("search", 200): 1}


async def test_the_search_of_another_deployment_is_the_tokens_fault() -> None:
    """404 there means a token of another deployment, as it does for the details."""
    async with asking() as (_, client), asking_at(client.base_url, TOKENS) as asked:
        with pytest.raises(FatalError, match="belongs to deployment 120") as caught:
            await asked.semgrep.search(121, None, "")

    assert caught.value.stop_code == 3


async def test_a_token_without_the_scope_is_found_out_by_the_search() -> None:
    """The 404 that it gets isn't taken for an empty list."""
    world = World(deployments=(Deployment(tokens=(Token(web_api=False),)),))
    async with asking(world) as (_, client), asking_at(client.base_url, TOKENS) as asked:
        with pytest.raises(FatalError, match="lacks the Web API scope"):
            await asked.semgrep.search(120, None, "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("status-400", None),
        ("status-500", "http_status"),
        ("broken-json", "broken_json"),
        ("status-429", "rate_limited"),
    ],
)
async def test_a_page_that_fails_is_no_page(name: str, kind: str | None) -> None:
    """Errors of the search are those of the details call: refused, retried, or told."""
    if kind is None:
        async with asking() as (_, client), asking_at(client.base_url, TOKENS) as asked:
            with pytest.raises(ItemError, match="HTTP 400"):
                await asked.semgrep.search(120, None, "no-cursor")
        return
    behaviour = Behaviour(faults=(Fault(name, endpoint="search"),))
    async with asking(behaviour=behaviour) as (_, client), asking_at(client.base_url, TOKENS) as asked:
        with pytest.raises(TransientError) as caught:
            await asked.semgrep.search(120, None, "")
        found = await asked.semgrep.search(120, None, "")

    assert caught.value.kind == kind
    assert len(read_page(120, found.document).listings) == 50


async def test_with_offset_cursors_pages_shift() -> None:
    """A scan that arrives between two pages moves the last ones of the first page to the second."""
    clock = Time()
    async with asking(World(scans=50), Behaviour(offset_cursors=True), clock) as (_, client):
        first = (await client.page(limit=10)).json()
        clock.now += timedelta(minutes=5)
        second = (await client.page(limit=10, cursor=first["cursor"])).json()

    assert {one["id"] for one in first["scans"]} & {one["id"] for one in second["scans"]}


async def test_details_can_be_gone_before_their_listing() -> None:
    """A scan of twelve days is listed, but has no details any more where these are kept for ten."""
    world = World(scans=30, scans_per_day=2)
    async with asking(world, Behaviour(details_days=10)) as (_, client):
        listed = [int(one["id"]) for one in await client.listed()]
        seen = {scan_id: (await client.scan(scan_id)).status for scan_id in (1, 5, 29, 30)}

    assert set(seen) <= set(listed)
    assert seen == {1: 404, 5: 404, 29: 200, 30: 200}


async def test_an_outcome_can_come_days_later() -> None:
    """It is NEVER_FINISHED until then, and its total time is as long as that took."""
    clock = Time()
    async with asking(World(scans=20, late_share=1.0), clock=clock) as (sandbox, client):
        clock.now += timedelta(hours=2)
        before = {one["status"] for one in await client.listed() if int(one["id"]) <= 10}
        clock.now += timedelta(days=4)
        after = {one["status"] for one in await client.listed() if int(one["id"]) <= 10}

    assert "SCAN_STATUS_NEVER_FINISHED" in before
    assert after <= {
        "SCAN_STATUS_COMPLETED",
        "SCAN_STATUS_ERROR",
        "SCAN_STATUS_CANCELLED",
        "SCAN_STATUS_NEVER_FINISHED",
    }
    took = [sandbox.truth(number)["stats"].get("total_time", 0) for number in range(1, 11)]
    assert max(took) > timedelta(days=1).total_seconds()
