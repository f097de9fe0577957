"""Whose a queued pair is: the runs of files, those beside them, and the syncs after them, by the real command."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from command import Command, Process
from patience import PATIENCE_SECONDS
from sandbox_thread import TOKEN, RunningSandbox, finished_world, running_sandbox
from small_api import Call, SmallApi, found, in_thread, until
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.engine import make_url
from tables_of import ask, change, count
from worker_processes import wait_until

from etl.database.schema import fetch_queue, scans, staged_pairs, staged_pieces, workers

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
UNKNOWN = 9_000_000
"""Scans from here on are on no list: only who names them asks for them."""


def queued(url: str) -> dict[int, tuple[int, str | None]]:
    """Priority and batch by scan, of those that aren't listed."""
    columns = (fetch_queue.c.scan_id, fetch_queue.c.priority, fetch_queue.c.batch)
    found = ask(url, select(*columns).where(fetch_queue.c.scan_id >= UNKNOWN))
    return {row.scan_id: (row.priority, row.batch) for row in found}


def queue(url: str, *scan_ids: int, **values: Any) -> None:
    change(url, *(insert(fetch_queue).values(deployment_id=120, scan_id=number, **values) for number in scan_ids))


def variables(sandbox: RunningSandbox, url: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url, SCAN_ETL_QUEUE__LEASE_SECONDS="1")


def put_to_work(url: str, run_id: str, seen_at: datetime | None = None) -> None:
    """Let a run have given a sign of life, just now unless told when."""
    now = datetime.now(UTC)
    row = {"token": run_id, "run_id": run_id, "version": "1", "started_at": now, "seen_at": seen_at or now}
    change(url, insert(workers).values(row))


def test_a_requeued_pair_of_a_file_is_fetched_by_the_next_sync(cli: Command, database_url: str) -> None:
    """Whoever sends a dead letter round again wants it now, whatever run it came from."""
    with running_sandbox(finished_world(3)) as sandbox:
        environment = variables(sandbox, database_url)
        cli("run", "-", stdin=f"120 {UNKNOWN}\n", environment=environment)
        cli("failures", "requeue", "--all", environment=environment)
        requeued = queued(database_url)
        outcome = cli("sync", "--json", environment=environment)

    assert requeued == {UNKNOWN: (0, None)}
    assert (outcome.exit_code, outcome.json()["dead"], outcome.json()["remaining"]) == (1, 1, 0)
    assert queued(database_url) == {}


def test_whoever_queues_a_pair_gives_it_the_better_priority(cli: Command, database_url: str) -> None:
    """`enqueue` lifts what a file has queued, and what goes before it stays there."""
    first, second, third, fourth = range(UNKNOWN, UNKNOWN + 4)
    queue(database_url, first, second, priority=10, batch="theirs")
    queue(database_url, third, priority=-10)
    environment = {"SCAN_ETL_DATABASE__URL": database_url}

    cli("enqueue", "-", stdin=f"120 {first}\n120 {third}\n120 {fourth}\n", environment=environment)

    assert queued(database_url) == {
        first: (0, "theirs"),
        second: (10, "theirs"),
        third: (-10, None),
        fourth: (0, None),
    }


def test_a_sync_drains_all_that_no_run_at_work_has_queued(cli: Command, database_url: str) -> None:
    """Rows of any priority and what killed runs left behind. The pairs of a run at work are left to it."""
    with running_sandbox(finished_world(3)) as sandbox:
        environment = variables(sandbox, database_url)
        put_to_work(database_url, "killed", LONG_AGO)
        put_to_work(database_url, "at work")
        queue(database_url, UNKNOWN, UNKNOWN + 1, priority=10, batch="killed")
        queue(database_url, UNKNOWN + 2, priority=0, batch="forgotten")
        queue(database_url, UNKNOWN + 3, priority=10, batch="at work")
        queue(database_url, UNKNOWN + 4, priority=50)
        beside = cli("sync", "--json", environment=environment).json()
        left = queued(database_url)
        change(database_url, update(workers).values(seen_at=LONG_AGO))
        alone = cli("sync", "--json", environment=environment).json()

    assert (beside["dead"], beside["remaining"]) == (3, 0)
    assert set(left) == {UNKNOWN + 3, UNKNOWN + 4}
    assert (alone["dead"], alone["remaining"]) == (2, 0)
    assert queued(database_url) == {}


def test_a_discover_fetches_nothing_of_a_run_that_is_not_at_work(cli: Command, sqlite_url: str) -> None:
    """It fills the queue, and drains none of it."""
    with running_sandbox(finished_world(3)) as sandbox:
        queue(sqlite_url, UNKNOWN, priority=10, batch="killed")
        outcome = cli("discover", environment=variables(sandbox, sqlite_url))
        asked = sandbox.details_requests()

    assert (outcome.exit_code, asked) == (0, 0)
    assert UNKNOWN in queued(sqlite_url)


SCANS = 200
SOON = 20


class TwoRuns(NamedTuple):
    """Two runs of one file. Once `hurry` is set, both get their answers at once."""

    first: Process
    second: Process
    hurry: Event


@contextmanager
def two_runs(cli: Command, url: str) -> Iterator[TwoRuns]:
    """The second has read the file while the first one works: but for a few, the API keeps its answers until then."""
    hurry = Event()

    async def answer(call: Call) -> web.StreamResponse:
        if len(api.seen) > SOON:
            await until(hurry.is_set)
        return await found(call)

    api = SmallApi(answer)
    pairs = cli.folder / "pairs.txt"
    pairs.write_text("".join(f"120 {number}\n" for number in range(1, SCANS + 1)))
    with in_thread(api) as base_url:
        environment = {
            "SCAN_ETL_API__BASE_URL": base_url,
            "SCAN_ETL_API__CONCURRENCY": "4",
            "SCAN_ETL_API__RATE": "5000",
            "SCAN_ETL_DATABASE__BATCH_SIZE": "10",
            "SCAN_ETL_DATABASE__URL": url,
            "SCAN_ETL_QUEUE__LEASE_SECONDS": "1",
            "SEMGREP_APP_TOKEN": TOKEN,
        }
        with cli.start("run", pairs, "--json", environment=environment) as first:
            wait_until("the first works", lambda: count(url, scans))
            with cli.start("run", pairs, "--json", environment=environment) as second:
                wait_until("the second has read the file", lambda: shares_pairs(url))
                yield TwoRuns(first, second, hurry)


def shares_pairs(url: str) -> bool:
    """Whether a stage has pairs that have been merged: its mark is gone."""
    found = ask(url, select(func.count(), func.min(staged_pairs.c.scan_id)))
    return bool(found[0][0] and found[0][1])


def summary_of(process: Process) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    return dict(json.loads(stdout))


def test_a_second_run_of_a_file_takes_nothing_from_the_first(cli: Command, database_url: str) -> None:
    """However it ends, the first one has all of its pairs done at its end."""
    with two_runs(cli, database_url) as both:
        both.second.kill()
        both.hurry.set()
        found = summary_of(both.first)

    assert (found["requested"], found["fetched"], found["remaining"]) == (SCANS, SCANS, 0)
    assert (count(database_url, scans), count(database_url, fetch_queue)) == (SCANS, 0)


def test_a_run_ends_when_its_pairs_are_done_by_whomever(cli: Command, database_url: str) -> None:
    """The second of two runs of a file waits for the pairs of the first, and fetches none of them again."""
    with two_runs(cli, database_url) as both:
        both.hurry.set()
        found = [summary_of(process) for process in (both.first, both.second)]

    assert [one["remaining"] for one in found] == [0, 0]
    assert sum(one["fetched"] for one in found) == SCANS
    assert (count(database_url, scans), count(database_url, fetch_queue)) == (SCANS, 0)
    assert (count(database_url, staged_pairs), count(database_url, staged_pieces)) == (0, 0)


@pytest.mark.parametrize(
    ("number", "database_url"),
    [(signal.SIGTERM, "sqlite"), (signal.SIGKILL, "sqlite"), (signal.SIGKILL, "postgresql"), (signal.SIGKILL, "mysql")],
    indirect=["database_url"],
)
def test_a_run_takes_over_the_pairs_of_another_that_is_no_longer_at_work(
    cli: Command, database_url: str, number: int
) -> None:
    """Those that both files name: once the first was stopped, or was killed a minute ago, the second does the rest."""
    with two_runs(cli, database_url) as both:
        both.first.send_signal(number)
        both.hurry.set()
        both.first.wait(PATIENCE_SECONDS)
        [killed] = ask(database_url, select(fetch_queue.c.batch).distinct())
        change(database_url, update(workers).where(workers.c.run_id == killed[0]).values(seen_at=LONG_AGO))
        found = summary_of(both.second)

    assert (found["requested"], found["remaining"]) == (SCANS, 0)
    assert 0 < found["fetched"] < SCANS
    assert (count(database_url, scans), count(database_url, fetch_queue)) == (SCANS, 0)


def test_pairs_that_are_queued_already_are_not_written_again(cli: Command, postgres_url: str) -> None:
    """To enqueue a file a second time leaves each row where it is."""
    environment = {"SCAN_ETL_DATABASE__URL": postgres_url}
    pairs = "".join(f"120 {number}\n" for number in range(1, 101))
    places = text("SELECT scan_id, ctid::text FROM fetch_queue ORDER BY scan_id")
    cli("enqueue", "-", stdin=pairs, environment=environment)
    before = ask(postgres_url, places)

    again = cli("enqueue", "-", "--json", stdin=pairs, environment=environment)

    assert again.json()["queued"] == 100
    assert ask(postgres_url, places) == before


@contextmanager
def writer_without_temporary(url: str) -> Iterator[str]:
    """The URL of a role that may read and write all tables, and make none."""
    database = make_url(url).database
    name = f"writer_of_{database}"
    statements = [
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw'",
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
    ]
    change(url, *map(text, statements))
    try:
        yield make_url(url).set(username=name, password="pw").render_as_string(hide_password=False)
    finally:
        change(url, text(f"DROP OWNED BY {name}"), text(f"DROP ROLE {name}"))


def test_a_role_that_may_make_no_temporary_tables_can_queue_and_plan_a_file(cli: Command, postgres_url: str) -> None:
    """The right to read and to write the tables is enough."""
    with writer_without_temporary(postgres_url) as url:
        environment = {"SCAN_ETL_DATABASE__URL": url}
        queued = cli("enqueue", "-", "--json", stdin="120 1\n120 2\n120 1\n", environment=environment)
        plan = cli("plan", "-", "--json", stdin="120 1\n120 2\n120 1\n", environment=environment)

    assert (queued.exit_code, plan.exit_code) == (0, 0), (queued, plan)
    assert (queued.json()["queued"], plan.json()["to_fetch"], plan.json()["duplicate"]) == (2, 2, 1)


def test_what_a_killed_run_has_staged_is_removed_by_a_later_one(cli: Command, database_url: str) -> None:
    """What runs at work have staged stays."""
    put_to_work(database_url, "killed", LONG_AGO)
    put_to_work(database_url, "at work")
    batches = ("killed", "at work", "unknown")
    pieces = [{"batch": batch, "digest": "0", "pairs": "[[120, 1]]"} for batch in batches]
    shared = [{"batch": batch, "deployment_id": 120, "scan_id": 1} for batch in batches]
    change(database_url, insert(staged_pieces).values(pieces), insert(staged_pairs).values(shared))

    with running_sandbox(finished_world(1)) as sandbox:
        outcome = cli("run", environment=variables(sandbox, database_url))

    assert outcome.exit_code == 0
    left = [ask(database_url, select(table.c.batch)) for table in (staged_pieces, staged_pairs)]
    assert left == [[("at work",)]] * 2


def test_what_somebody_else_has_leased_is_left_to_them_and_that_is_said(cli: Command, database_url: str) -> None:
    """They may have been killed: who reads the log sees why pairs remain."""
    with running_sandbox(finished_world(5)) as sandbox:
        queue(database_url, 1, 2, lease_token="killed", due_at=datetime.now(UTC) + timedelta(hours=1))
        queue(database_url, 3)
        given = variables(sandbox, database_url) | {"SCAN_ETL_QUEUE__LEASE_SECONDS": "7200"}
        outcome = cli("run", "--json", environment=given)

    assert [outcome.json()[name] for name in ("fetched", "remaining", "exit_code")] == [1, 2, 0]
    assert "pairs left to other workers, which have leased them count=2" in outcome.stderr
