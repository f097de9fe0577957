"""`discover` and `sync` as cron calls them: the real command against a real server and a real database."""

import json
import random
import signal
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from quiet_sandbox import is_over, latest, quiet_sandbox
from sandbox_client import OPENED_AT, Time
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from sqlalchemy import insert, select, text, update
from tables_of import ask, change, count

from etl.database.schema import dead_letters, fetch_queue, runs, scan_listings, scans, watermarks, workers
from etl.sandbox import Behaviour, Deployment, Fault, Token, World

DAY = timedelta(days=1)


def variables(sandbox: RunningSandbox, url: str, **additions: str) -> dict[str, str]:
    return sandbox.environment(**{"SCAN_ETL_DATABASE__URL": url, "SCAN_ETL_QUEUE__LEASE_SECONDS": "1", **additions})


def now() -> datetime:
    return datetime.now(UTC)


def requests(sandbox: RunningSandbox) -> dict[str, int]:
    """Those since the last look, by call."""
    found: dict[str, int] = {}
    for (endpoint, _), number in sandbox.sandbox.stats.requests.items():
        found[endpoint] = found.get(endpoint, 0) + number
    sandbox.sandbox.stats.requests.clear()
    return found


def test_a_sync_finds_and_fetches_and_the_next_costs_one_page(cli: Command, database_url: str) -> None:
    """What the list has is stored, and status accounts for it; a night with nothing new is one request."""
    with quiet_sandbox(700) as (sandbox, scans_there):
        first = cli("sync", "--json", environment=variables(sandbox, database_url))
        asked = requests(sandbox)
        second = cli("sync", "--json", environment=variables(sandbox, database_url))

    assert (first.exit_code, second.exit_code) == (0, 0), first
    assert " [warning] " not in first.stderr + second.stderr
    assert asked == {"deployments": 1, "search": 2, "projects": 2, "details": scans_there}
    summary = first.json()
    assert [summary[name] for name in ("discovered", "fetched", "inserted", "remaining")] == [*[scans_there] * 3, 0]
    assert (second.json()["discovered"], second.json()["requests"], requests(sandbox)) == (0, 1, {"search": 1})
    assert count(database_url, scans) == count(database_url, scan_listings) == scans_there
    status = cli("status", "--json", environment=variables(sandbox, database_url)).json()
    (covered,) = status["coverage"]
    assert [covered[name] for name in ("listed", "stored", "waiting", "dead", "expired", "missing")] == [
        700,
        700,
        0,
        0,
        0,
        0,
    ]
    assert status["gaps"] == []
    assert status["runs"][0]["command"] == "sync"


def test_discover_fetches_nothing_and_run_does(cli: Command, sqlite_url: str) -> None:
    """`discover` fills the queue that any run or worker drains."""
    with quiet_sandbox(20) as (sandbox, scans_there):
        found = cli("discover", "--json", environment=variables(sandbox, sqlite_url))
        asked = requests(sandbox)
        fetched = cli("run", "--json", environment=variables(sandbox, sqlite_url))

    assert (found.exit_code, found.json()["discovered"], found.json()["remaining"]) == (0, scans_there, scans_there)
    assert asked == {"deployments": 1, "search": 1, "projects": 2}
    assert fetched.json()["fetched"] == scans_there


def test_a_sync_drains_what_any_program_has_queued_and_leaves_a_file_to_its_run(
    cli: Command, database_url: str
) -> None:
    """A backfill of millions beside it neither delays it nor moves the watermark."""
    with quiet_sandbox(6) as (sandbox, _):
        environment = variables(sandbox, database_url)
        cli("sync", environment=environment)
        mark = ask(database_url, select(watermarks))
        backfill = cli("run", "-", "--json", stdin="120 99999999\n", environment=environment)
        moved = ask(database_url, select(watermarks)) != mark
        files = [
            {"deployment_id": 121, "scan_id": number, "batch": "theirs", "priority": 10} for number in range(1, 500)
        ]
        at_work = {"run_id": "theirs", "token": "theirs", "version": "1", "started_at": now(), "seen_at": now()}
        change(database_url, insert(workers).values(at_work))
        change(database_url, insert(fetch_queue).values(files), text("DELETE FROM scans WHERE scan_id = 3"))
        change(database_url, text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 3)"))
        outcome = cli("sync", "--json", environment=environment)

    assert backfill.exit_code == 1
    assert not moved
    assert outcome.exit_code == 0, outcome
    assert (outcome.json()["fetched"], outcome.json()["remaining"]) == (1, 0)
    assert count(database_url, fetch_queue) == 499


@pytest.mark.slow
def test_a_sync_that_is_killed_loses_nothing(cli: Command, database_url: str) -> None:
    """Killed at random moments, in the walk and after it: the next ones miss nothing, and double nothing."""
    draw = random.Random(7)
    behaviour = Behaviour(latency_seconds=0.01, offset_cursors=True)
    with quiet_sandbox(1_200, behaviour) as (sandbox, scans_there):
        environment = variables(sandbox, database_url, SCAN_ETL_DATABASE__FLUSH_SECONDS="0.05")
        for _ in range(4):
            with cli.start("sync", environment=environment) as process:
                time.sleep(draw.uniform(0.2, 1.2))
                process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while cli("sync", "--json", environment=environment).json()["remaining"] or count(database_url, fetch_queue):
            assert time.monotonic() < deadline

    assert count(database_url, scans) == count(database_url, scan_listings) == scans_there
    assert count(database_url, dead_letters) == 0


def test_two_syncs_at_once_share_the_work_and_a_single_one_leaves(
    cli: Command, server_url: str, tmp_path: Path
) -> None:
    """Started together they find and fetch everything once. With `--single` a third leaves at once and says so: as a
    skip, which is no success in `runs`, nor in the metrics."""
    with quiet_sandbox(100, Behaviour(latency_seconds=0.3)) as (sandbox, scans_there):
        environment = variables(sandbox, server_url, SCAN_ETL_QUEUE__LEASE_SECONDS="60", SCAN_ETL_API__CONCURRENCY="4")
        with (
            cli.start("sync", "--json", environment=environment) as first,
            cli.start("sync", "--json", environment=environment) as second,
        ):
            while count(server_url, workers) < 2:
                time.sleep(0.05)
            metrics = {"SCAN_ETL_OBSERVE__METRICS_FILE": "of_a_skip.prom"}
            single = cli("sync", "--single", "--json", environment=environment | metrics)
            is_at_work = None in (first.poll(), second.poll())
            summaries = [json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0]) for process in (first, second)]
        alone = cli("sync", "--single", "--json", environment=environment)

    assert is_at_work
    assert (single.exit_code, single.json()["requests"]) == (0, 0)
    assert "another sync is at work" in single.stderr
    assert "which began at" in single.json()["stop_reason"]
    assert not (tmp_path / "of_a_skip.prom").exists()
    states = Counter(row[0] for row in ask(server_url, select(runs.c.state)))
    assert states == {"ended": 3, "skipped": 1}
    assert [summary["exit_code"] for summary in summaries] == [0, 0]
    assert sum(summary["inserted"] for summary in summaries) == count(server_url, scans) == scans_there
    assert (alone.exit_code, alone.json()["requests"]) == (0, 1)


def test_each_deployment_is_walked_with_its_token(cli: Command, sqlite_url: str) -> None:
    """Those in the settings, or those that the tokens see; one bad token doesn't stop the others."""
    deployments = (Deployment(120, tokens=(Token("a"),)), Deployment(121, tokens=(Token("b"),)))
    with quiet_sandbox(20, deployments=deployments) as (sandbox, scans_there):
        tokens = {"SEMGREP_APP_TOKEN": "a", "SEMGREP_APP_TOKEN__121": "b"}
        both = cli("sync", "--json", environment=variables(sandbox, sqlite_url) | tokens)
        named = cli(
            "sync", "--json", environment=variables(sandbox, sqlite_url, SCAN_ETL_DISCOVER__DEPLOYMENTS="121") | tokens
        )
        asked = requests(sandbox)
        bad = cli(
            "sync", "--json", environment=variables(sandbox, sqlite_url) | tokens | {"SEMGREP_APP_TOKEN__121": "x"}
        )

    assert (both.exit_code, both.json()["fetched"]) == (0, scans_there)
    assert [
        row[0] for row in ask(sqlite_url, select(watermarks.c.deployment_id).order_by(watermarks.c.deployment_id))
    ] == [120, 121]
    assert (named.exit_code, named.json()["requests"]) == (0, 1)
    assert asked["search"] == 3
    assert bad.exit_code == 3
    assert "the token is refused" in bad.stderr
    assert requests(sandbox)["search"] == 2


@pytest.mark.parametrize("command", ["sync", "discover"])
def test_a_first_night_without_the_api_is_not_a_success(cli: Command, sqlite_url: str, command: str) -> None:
    """Nothing is queued and nothing is known, and still it isn't "all done"."""
    environment = {
        "SCAN_ETL_DATABASE__URL": sqlite_url,
        "SCAN_ETL_API__BASE_URL": "http://127.0.0.1:1",
        "SCAN_ETL_API__MAX_WAIT_SECONDS": "1",
        "SEMGREP_APP_TOKEN": "a",
    }
    outcome = cli(command, "--json", environment=environment)

    assert (outcome.exit_code, outcome.json()["exit_code"]) == (4, 4)
    assert ask(sqlite_url, select(runs.c.exit_code))[0][0] == 4


def test_a_useless_token_does_not_stop_the_deployments_that_have_their_own(cli: Command, sqlite_url: str) -> None:
    """The exit code tells of it all the same."""
    deployments = (Deployment(120, tokens=(Token("a"),)), Deployment(121, tokens=(Token("b"),)))
    with quiet_sandbox(20, deployments=deployments) as (sandbox, _):
        tokens = {"SEMGREP_APP_TOKEN": "useless", "SEMGREP_APP_TOKEN__121": "b"}
        outcome = cli("sync", "--json", environment=variables(sandbox, sqlite_url) | tokens)

    assert (outcome.exit_code, outcome.json()["remaining"]) == (3, 0)
    assert outcome.json()["fetched"] > 0
    assert {row[0] for row in ask(sqlite_url, select(scans.c.deployment_id))} == {121}
    assert "a token shows no deployment" in outcome.stderr
    assert outcome.json()["stop_reason"].startswith("the token is refused: HTTP 401")


def test_a_list_that_fails_is_exit_4_and_the_rest_is_done(cli: Command, sqlite_url: str) -> None:
    """The queue is drained all the same, and the watermark stays."""
    with quiet_sandbox(5, Behaviour(faults=(Fault("html", times=0, endpoint="search"),))) as (sandbox, _):
        environment = variables(sandbox, sqlite_url, SCAN_ETL_QUEUE__MAX_ATTEMPTS="2", SCAN_ETL_API__RETRIES="0")
        change(sqlite_url, text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 3)"))
        outcome = cli("sync", "--json", environment=environment)

    assert (outcome.exit_code, outcome.json()["fetched"], outcome.json()["remaining"]) == (4, 1, 0)
    assert "list not walked to its end" in outcome.stderr
    assert count(sqlite_url, watermarks) == 0


def test_a_deadline_counts_for_all_of_a_sync(cli: Command, sqlite_url: str) -> None:
    """Also while the list is walked: what was found by then stays queued."""
    with quiet_sandbox(600, Behaviour(latency_seconds=1.0)) as (sandbox, _):
        outcome = cli("sync", "--json", "--deadline", "1.5", environment=variables(sandbox, sqlite_url))

    assert outcome.exit_code == 4
    assert "deadline of 1.5 s" in outcome.stderr
    assert count(sqlite_url, watermarks) == 0


def test_a_stop_while_the_list_is_walked_is_clean(cli: Command, sqlite_url: str) -> None:
    """SIGTERM ends the walk, and the exit code says so."""
    with (
        quiet_sandbox(10, Behaviour(latency_seconds=3.0)) as (sandbox, _),
        cli.start("sync", "--json", environment=variables(sandbox, sqlite_url)) as process,
    ):
        while not sandbox.sandbox.stats.in_flight:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)

    assert process.returncode == 143
    assert ask(sqlite_url, select(runs.c.exit_code)) == [(143,)]


def test_since_wins_over_the_watermark_and_goes_by_the_apis_clock(cli: Command, sqlite_url: str) -> None:
    """`--since 2d` is two days before the API's now; a walk that leaves a hole moves no watermark."""
    clock = Time(OPENED_AT)
    world = World(scans=30, scans_per_day=3, never_finished_share=0, cancelled_share=0, opened_at=OPENED_AT - DAY)
    with running_sandbox(world, clock=clock) as sandbox:
        environment = variables(sandbox, sqlite_url)
        two_days = cli("discover", "--json", "--since", "2d", environment=environment).json()["discovered"]
        marks = count(sqlite_url, watermarks)
        whole = cli("discover", "--json", "--since", "2026-01-01", environment=environment).json()["discovered"]
        wrong = cli("discover", "--since", "yesterday", environment=environment)

    assert 0 < two_days < 12
    assert marks == 0
    assert two_days + whole >= 30
    assert ask(sqlite_url, select(watermarks.c.walked_at)) == [(OPENED_AT.replace(tzinfo=UTC),)]
    assert wrong.exit_code == 2
    assert "neither a duration" in wrong.stderr


def test_a_lookback_holds_for_all_walks_until_since_goes_behind_it(cli: Command, sqlite_url: str) -> None:
    """The second walk leaves out what the first one did, and nobody is told of a gap."""
    with quiet_sandbox(700) as (sandbox, scans_there):
        environment = variables(sandbox, sqlite_url, SCAN_ETL_DISCOVER__LOOKBACK="1d")
        first, second = (cli("discover", "--json", environment=environment) for _ in range(2))
        whole = cli("discover", "--json", "--since", "30d", environment=environment)

    assert 0 < first.json()["discovered"] < 100
    assert second.json()["discovered"] == 0
    assert first.json()["discovered"] + whole.json()["discovered"] == scans_there
    assert "are no longer available" not in first.stderr + second.stderr + whole.stderr
    ((since, until),) = ask(sqlite_url, select(watermarks.c.complete_since, watermarks.c.walked_at))
    assert until - since == 30 * DAY


def test_a_scan_that_runs_is_fetched_the_night_after(cli: Command, sqlite_url: str) -> None:
    """One request for its details, once the list says that it has ended."""
    world = finished_world(40, scans_per_day=60.0)
    clock = Time(world.opened_at or OPENED_AT)
    with running_sandbox(world, clock=clock) as sandbox:
        environment = variables(sandbox, sqlite_url)
        while not (running := sum(not is_over(world, number, clock.now) for number in latest(world, clock.now))):
            clock.now += timedelta(minutes=5)
        first = cli("sync", "--json", environment=environment)
        clock.now += DAY
        second = cli("sync", "--json", environment=environment)
        asked = requests(sandbox)

    assert (first.exit_code, first.json()["waiting"]) == (0, running)
    assert (second.exit_code, second.json()["retried"]) == (0, 0)
    assert asked["details"] == first.json()["fetched"] + second.json()["fetched"] == count(sqlite_url, scans)
    assert count(sqlite_url, scan_listings) == count(sqlite_url, scans) + second.json()["waiting"]


def test_expired_and_gone_scans_are_reported(cli: Command, sqlite_url: str) -> None:
    """What was queued when nobody called for 40 days is tried once, and status says what is lost."""
    clock = Time(datetime.now(UTC))
    world = World(scans=10, scans_per_day=10, never_finished_share=0, cancelled_share=0, opened_at=clock.now - DAY)
    with running_sandbox(world, Behaviour(details_days=30), clock) as sandbox:
        environment = variables(sandbox, sqlite_url)
        cli("discover", environment=environment)
        change(sqlite_url, update(fetch_queue).where(fetch_queue.c.scan_id > 5).values(priority=20))
        clock.now += 40 * DAY
        outcome = cli("sync", "--json", environment=environment)
        status = cli("status", "--json", environment=environment).json()

    assert outcome.exit_code == 1
    (covered,) = status["coverage"]
    assert covered["listed"] == covered["stored"] + covered["waiting"] + covered["dead"] + covered["expired"]
    assert covered["expired"] >= 10
    assert len(status["gaps"]) == 1
    assert "are no longer available" in outcome.stderr
