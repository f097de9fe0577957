"""Several deployments in one run: what is wrong with one of them doesn't reach the others."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from command import Command
from scan_rows import document
from small_api import SmallApi, in_thread, json_answer, never
from sqlalchemy import select, update
from tables_of import ask, change

from etl.database.schema import dead_letters, fetch_queue
from etl.model import Pair

WELL, ILL = 120, 150
SCANS = 5
Trouble = Callable[[], Awaitable[web.StreamResponse]]


async def fails() -> web.StreamResponse:
    return json_answer({"message": "trouble"}, status=503)


async def hangs() -> web.StreamResponse:
    return await never(None)  # type: ignore[arg-type]  # it doesn't look at the call


async def is_retired() -> web.StreamResponse:
    return json_answer({"code": "DEPLOYMENT_MIGRATED"}, status=410)


class TwoDeployments(SmallApi):
    """Lists and shows scans of deployment 120. Whatever is asked about 150, or with its token, ends in `trouble`, once
    `is_ill`."""

    def __init__(self, trouble: Trouble, *, ill_after: int = 0) -> None:
        super().__init__()
        self.trouble = trouble
        self.ill_after = ill_after

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.times[request.path] += 1
        number = WELL if request.headers.get("Authorization") == "Bearer token-of-120" else ILL
        if number == ILL and sum(self.times.values()) > self.ill_after:
            return await self.trouble()
        if request.path == "/api/v1/deployments":
            return json_answer({"deployments": [{"id": number}]})
        if request.path.endswith("/search"):
            return json_answer({"scans": [listed(number, scan_id) for scan_id in range(1, SCANS + 1)]})
        return json_answer(document(Pair(number, int(request.path.rpartition("/")[2]))))


def listed(deployment_id: int, scan_id: int) -> dict[str, Any]:
    return {"id": str(scan_id), "deployment_id": str(deployment_id), "status": "SCAN_STATUS_COMPLETED"}


def environment(base_url: str, url: str) -> dict[str, str]:
    return {
        "SCAN_ETL_API__BASE_URL": base_url,
        "SCAN_ETL_API__RATE": "1000",
        "SCAN_ETL_API__RETRIES": "0",
        "SCAN_ETL_API__TIMEOUT_SECONDS": "1",
        "SCAN_ETL_API__MAX_WAIT_SECONDS": "2",
        "SCAN_ETL_DATABASE__URL": url,
        "SEMGREP_APP_TOKEN__120": "token-of-120",
        "SEMGREP_APP_TOKEN__150": "token-of-150",
    }


@pytest.mark.parametrize("trouble", [fails, hangs, is_retired])
def test_a_deployment_whose_api_is_unavailable_keeps_no_other_from_its_sync(
    cli: Command, sqlite_url: str, trouble: Trouble
) -> None:
    """The other one is walked and fetched, the exit code is 4, and the log names the deployment."""
    with in_thread(TwoDeployments(trouble)) as base_url:
        outcome = cli("sync", "--json", environment=environment(base_url, sqlite_url))

    assert (outcome.exit_code, outcome.json()["fetched"], outcome.json()["remaining"]) == (4, SCANS, 0), outcome
    assert f"deployment_id={ILL}" in outcome.stderr


@pytest.mark.parametrize("trouble", [fails, hangs, is_retired])
def test_an_outage_of_one_deployment_in_the_middle_of_a_run_stops_that_one_alone(
    cli: Command, sqlite_url: str, trouble: Trouble
) -> None:
    """The other one's pairs are all stored; its own stay queued, and cost no attempt."""
    pairs = "".join(f"{number} {scan_id}\n" for scan_id in range(1, 41) for number in (WELL, ILL))
    with in_thread(TwoDeployments(trouble, ill_after=20)) as base_url:
        outcome = cli("run", "-", "--json", stdin=pairs, environment=environment(base_url, sqlite_url))

    summary = outcome.json()
    assert outcome.exit_code == 4, outcome
    assert 40 <= summary["fetched"] < 80
    assert (summary["dead"], summary["remaining"]) == (0, 80 - summary["fetched"])
    assert f"deployment_id={ILL}" in outcome.stderr


def test_a_file_with_swapped_columns_stops_at_once(cli: Command, sqlite_url: str) -> None:
    """Nothing of it is queued and no scan is asked for: no token sees any of what stands for its deployments."""
    swapped = "".join(f"{scan_id} {WELL}\n" for scan_id in range(1_000, 3_000))
    api = TwoDeployments(fails)
    with in_thread(api) as base_url:
        given = environment(base_url, sqlite_url)
        named = cli("run", "-", "--json", stdin=swapped, environment=given)
        del given["SEMGREP_APP_TOKEN__120"], given["SEMGREP_APP_TOKEN__150"]
        unnamed = cli("run", "-", "--json", stdin=swapped, environment=given | {"SEMGREP_APP_TOKEN": "token-of-120"})

    for outcome in (named, unnamed):
        assert (outcome.exit_code, outcome.json()["remaining"], outcome.json()["requested"]) == (3, 2_000, 2_000), (
            outcome
        )
        assert "such as 1000, 1001, 1002" in outcome.stderr
        assert "are the columns swapped?" in outcome.stderr
    assert dict(api.times) == {"/api/v1/deployments": 1}
    assert ask(sqlite_url, select(fetch_queue)) == []


def test_pairs_that_no_token_may_ask_for_die_when_they_expire(cli: Command, sqlite_url: str) -> None:
    """Until then each run ends with 3 and leaves them; `queue drop` takes them away before that."""
    with in_thread(TwoDeployments(fails)) as base_url:
        given = environment(base_url, sqlite_url)
        cli("enqueue", "-", stdin="120 1\n999 1\n999 2\n999 3\n", environment=given)
        expired = datetime.now(UTC) - timedelta(seconds=1)
        change(sqlite_url, update(fetch_queue).where(fetch_queue.c.scan_id == 2).values(expires_at=expired))
        outcome = cli("run", "--json", environment=given)
        letters = ask(sqlite_url, select(dead_letters))
        again = cli("run", "--json", environment=given)
        dropped = cli("queue", "drop", "--deployment", "999", "--yes", "--json", environment=given)
        last = cli("run", "--json", environment=given)

    assert outcome.exit_code == 3, outcome
    assert [outcome.json()[name] for name in ("fetched", "dead", "remaining")] == [1, 1, 2]
    assert [(row.scan_id, row.error_kind) for row in letters] == [(2, "expired")]
    assert "no token for deployment 999" in letters[0].error
    assert (again.exit_code, again.json()["dead"]) == (3, 0)
    assert dropped.json() == {"dropped": 2, "in_work": 0}
    assert (last.exit_code, ask(sqlite_url, select(fetch_queue))) == (0, [])
