"""The real command, and everything that `GET /api/v1/deployments` may answer: no run ends as a bug."""

import json

import pytest
from aiohttp import web
from command import Command
from faulty_runs import ONCE, as_it_was, rows, run
from small_api import Call, SmallApi, in_thread, json_answer

from etl.database.schema import dead_letters, fetch_queue
from etl.model import Pair

PAIRS = [Pair(120, number) for number in range(1, 21)]
QUICK = {**ONCE, "SCAN_ETL_API__MAX_WAIT_SECONDS": "0.5"}
DEEP = b"[" * 100_000
ANSWERS: dict[str, tuple[int, bytes]] = {
    **{str(status): (status, b'{"message": "no"}') for status in (400, 401, 402, 403, 404, 405, 407, 410, 418, 422)},
    **{str(status): (status, b"<h1>trouble</h1>") for status in (202, 204, 301, 302, 429, 451, 500, 503, 599)},
    "a retired endpoint": (410, b'{"code": "DEPLOYMENT_MIGRATED"}'),
    "no JSON": (200, b"<!doctype html>"),
    "half of it": (200, b'{"deployments": [{"id"'),
    "nothing": (200, b""),
    "too deep": (200, DEEP),
    "too large": (200, b'{"a": "' + b"x" * 600_000 + b'"}'),
}
ODD: dict[str, tuple[int, bytes]] = {
    "a list": (200, b"[]"),
    "a number": (200, b'{"deployments": 5}'),
    "none": (200, b'{"deployments": []}'),
    "entries that are none": (200, b'{"deployments": [null, 7, {"id": {}}, {"id": true}, {"name": "x"}]}'),
    "ids that are none": (200, json.dumps({"deployments": [{"id": 10**19 - 1}, {"id": 0}, {"id": -4}]}).encode()),
}


def api_with(status: int, body: bytes) -> SmallApi:
    """It shows no scan: so everything depends on what the call says of the token."""

    async def gone(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    async def deployments(_: Call) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})

    return SmallApi(gone, deployments)


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_the_call_answers_a_run_ends_with_a_sentence_and_its_queue_whole(
    cli: Command, sqlite_url: str, name: str
) -> None:
    """Exit 3 where the token is to blame, else 4; nothing dies, nothing is spent, and the summary says so."""
    with in_thread(api_with(*ANSWERS[name])) as base_url:
        outcome = run(cli, base_url, sqlite_url, PAIRS, **QUICK)

    queued = rows(sqlite_url, fetch_queue)
    assert outcome.exit_code == (3 if name in {"401", "403", "404"} else 4), outcome
    assert (outcome.json()["remaining"], outcome.json()["dead"], len(queued)) == (len(PAIRS), 0, len(PAIRS))
    assert as_it_was(queued)
    assert rows(sqlite_url, dead_letters) == []
    assert "deployment halted" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("name", ANSWERS | ODD)
def test_a_sync_that_learns_of_no_deployment_ends_with_a_sentence(cli: Command, sqlite_url: str, name: str) -> None:
    """It has no list to walk, and says why."""
    with in_thread(api_with(*(ANSWERS | ODD)[name])) as base_url:
        environment = {"SCAN_ETL_API__BASE_URL": base_url, "SCAN_ETL_DATABASE__URL": sqlite_url, **QUICK}
        outcome = cli("sync", "--json", environment=environment)

    assert outcome.exit_code in (3, 4), outcome
    assert outcome.json()["exit_code"] == outcome.exit_code
    assert "a token shows no deployment" in outcome.stderr
    assert "deployment 0" not in outcome.stderr
    assert "Traceback" not in outcome.stderr
