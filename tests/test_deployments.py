"""Several deployments in one run: what is wrong with one of them doesn't reach the others."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from command import Command
from scan_rows import document
from small_api import SmallApi, in_thread, json_answer, never

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
