"""The counts of a run: what is in the tables, whatever was lost on the way, and in every ending they add up."""

import asyncio
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from command import Command, CommandResult
from cutting_proxy import cutting_proxy
from patience import PATIENCE_SECONDS
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from scan_rows import scan_rows
from semgrep_client import TOKEN, asking_at
from sqlalchemy import Connection, insert, text

from etl.app.adapters import Patience, PatientDatabase, RunPorts
from etl.app.context import RunContext
from etl.config.settings import Settings
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.model import Complete, Discard, Outcome, Pair, Snooze
from etl.pipeline.run_state import RunRequest, RunState
from etl.sandbox import Behaviour, Fault
from etl.store import runs
from etl.telemetry.events import RunCounts
from etl.telemetry.reporter import Reporter

RUN = "5" * 32


def adds_up(summary: Mapping[str, Any]) -> bool:
    parts = ("invalid", "duplicate", "already_final", "fetched", "dead", "remaining")
    return bool(summary["requested"] == sum(summary[name] for name in parts))


def context() -> RunContext:
    """A run of the whole queue."""
    counts = RunCounts()
    reporter, state = Reporter(counts, interactive=False), RunState(counts, lambda _: None)
    return RunContext(RunRequest("run"), Settings(), load_tokens({}), reporter, state, run_id=RUN, token=TOKEN)


async def settled_by(url: str, outcomes: list[Outcome], lose: Any = lambda: None) -> tuple[Any, dict[str, int]]:
    """Queue and lease the pairs of the outcomes, settle them after `lose`, and what the run has counted then."""

    def begin(connection: Connection) -> None:
        runs.start_run(connection, run_id=RUN, command="run", version="0", started_at=datetime.now(UTC))
        rows = [{"deployment_id": 120, "scan_id": number} for number in range(1, len(outcomes) + 1)]
        connection.execute(insert(fetch_queue), rows)

    with closing(Database(url)) as database:
        await database.run(begin)
        patient = PatientDatabase(database, Patience(30, asyncio.Event(), lambda _: None))
        async with asking_at("http://127.0.0.1:1") as asking:
            ports = RunPorts(patient, asking.semgrep, context())
            await ports.lease(10, ())
            lose()
            settled = await ports.settle(outcomes)
        return settled, await database.run(partial(runs.counted, run_id=RUN))


async def test_a_commit_whose_answer_is_lost_is_counted_once(server_url: str) -> None:
    """As what is in the tables: the second try finds nothing to do, and that isn't somebody else's work."""
    rows = [scan_rows(number) for number in (1, 2, 3)]
    outcomes: list[Outcome] = [
        Complete(rows[0]),
        Snooze(rows[1], 60.0, rows[1].fetched_at),
        Complete(rows[2]),
        Discard(Pair(120, 4), 1, "not_found", "no such scan", 404),
    ]
    with cutting_proxy(server_url) as proxy:
        settled, counted = await settled_by(proxy.url(server_url), outcomes, lambda: proxy.trap(b"COMMIT", "cut after"))

    assert counted == {"discovered": 0, "fetched": 3, "inserted": 3, "updated": 0, "unchanged": 0, "dead": 1}
    assert settled.lost == 0


async def test_a_lease_whose_answer_is_lost_is_waited_for(server_url: str) -> None:
    """Its pairs are leased by nobody else than the run itself, which would leave them to itself otherwise."""

    def begin(connection: Connection) -> None:
        connection.execute(insert(fetch_queue), [{"deployment_id": 120, "scan_id": number} for number in (1, 2)])

    with cutting_proxy(server_url) as proxy, closing(Database(proxy.url(server_url))) as database:
        await database.run(begin)
        patient = PatientDatabase(database, Patience(30, asyncio.Event(), lambda _: None))
        async with asking_at("http://127.0.0.1:1") as asking:
            ports = RunPorts(patient, asking.semgrep, context())
            await ports.lease(0, ())
            proxy.trap(b"COMMIT", "cut after")
            leases = await ports.lease(10, ())
            seconds = await ports.next_due_seconds(())

    assert leases == []
    assert seconds is not None
    assert 0 < seconds <= 60


async def test_a_scan_that_is_looked_at_again_counts_once(database_url: str) -> None:
    """A run that lasts for hours looks at a running scan many times, and has fetched one."""
    first, second = scan_rows(1), scan_rows(2)
    _, counted = await settled_by(database_url, [Complete(first, again=True), Complete(second)])

    assert (counted["fetched"], counted["inserted"]) == (1, 1)


PAIRS = "".join(f"120 {number}\n" for number in range(1, 101)) + "120 5\nnonsense\n120 0\n120 99\n"
ENDINGS = {
    "to its end": (),
    "by its limit": ("--limit", "20"),
    "by its failures": ("--max-failures", "1"),
    "by its deadline": ("--deadline", "2"),
}


def environment(sandbox: RunningSandbox, url: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url, SCAN_ETL_API__CONCURRENCY="4")


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_counts_add_up_however_a_run_ends(cli: Command, sqlite_url: str, ending: str) -> None:
    """Some of the pairs are stored already, some still run, some are no scans, and some are twice in the file; and so
    in a second run of the same file."""
    behaviour = Behaviour(latency_seconds=0.05, faults=(Fault("status-404", 0.1, times=0),))
    with running_sandbox(finished_world(100, late_share=0.3), behaviour) as sandbox:
        variables = environment(sandbox, sqlite_url)
        cli("run", "-", stdin="120 1\n120 2\n", environment=variables)
        outcomes = [cli("run", "-", "--json", *ENDINGS[ending], stdin=PAIRS, environment=variables) for _ in "12"]

    for outcome in outcomes:
        assert adds_up(outcome.json()), outcome
    if not ENDINGS[ending]:
        assert [outcome.json()["invalid"] for outcome in outcomes] == [2, 2]
        assert outcomes[0].json()["duplicate"] == 2


def test_the_counts_add_up_beside_a_worker_and_after_a_signal(cli: Command, postgres_url: str) -> None:
    """What a worker has done of a file counts as stored already, or as dead."""
    behaviour = Behaviour(latency_seconds=0.02, faults=(Fault("status-404", 0.1, times=0),))
    with running_sandbox(finished_world(400), behaviour) as sandbox:
        variables = environment(sandbox, postgres_url)
        pairs = cli.folder / "pairs.txt"
        pairs.write_text(sandbox.pairs_text())
        with (
            cli.start("worker", environment=variables),
            cli.start("run", pairs, "--json", environment=variables) as run,
        ):
            stdout, stderr = run.communicate(timeout=PATIENCE_SECONDS)
        shared = CommandResult(run.wait(), stdout, stderr)
        with cli.start("run", pairs, "--refresh", "--json", environment=variables) as run:
            asked = sandbox.details_requests()
            while sandbox.details_requests() < asked + 40:
                time.sleep(0.01)
            run.send_signal(signal.SIGINT)
            stdout, stderr = run.communicate(timeout=PATIENCE_SECONDS)
        stopped = CommandResult(run.wait(), stdout, stderr)

    assert (shared.exit_code, shared.json()["remaining"]) == (1, 0), shared
    assert adds_up(shared.json()), shared
    assert stopped.exit_code == 130, stopped
    assert adds_up(stopped.json()), stopped
    assert stopped.json()["remaining"] > 0
    with closing(Database(postgres_url)) as database:
        dead = database.run_here(
            lambda connection: connection.execute(text("SELECT count(*) FROM dead_letters")).scalar()
        )
    assert shared.json()["dead"] == dead
