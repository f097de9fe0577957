"""What was written while a clock was ahead is not believed: nothing waits for an instant that no wait leads to."""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from command import Command
from sandbox_thread import TOKEN, finished_world, running_sandbox
from scan_rows import scan_rows
from sqlalchemy import Connection, Table, insert, select, update

from etl.database.connection import Database
from etl.database.schema import fetch_queue, rate_budgets, scans, workers
from etl.errors import RefusedError
from etl.model import RUN_COUNTS, STILL_RUNNING
from etl.store import queue, rate_slots, runs, status
from etl.store.scans import load_scans

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC) - datetime.now(UTC)
NO_COUNTS = dict.fromkeys(RUN_COUNTS, 0)
LONGEST = queue.LongestWaits(60, 300, 4_200)


def add(database: Database, table: Table, *rows: Mapping[str, Any]) -> None:
    """Insert rows, each with columns of its own."""

    def work(connection: Connection) -> None:
        for row in rows:
            connection.execute(insert(table).values(row))

    database.run_here(work)


@pytest.fixture(params=[HOUR, DAY, END_OF_TIME], ids=["hour", "day", "9999"])
def ahead_at(request: pytest.FixtureRequest) -> datetime:
    """An instant that a clock wrote which was ahead."""
    ahead: timedelta = request.param
    return datetime.now(UTC) + ahead


def test_a_token_does_not_wait_for_a_time_that_no_wait_leads_to(database: Database, ahead_at: datetime) -> None:
    """Its line of time begins anew, and goes on from there."""
    add(database, rate_budgets, {"token_key": "key", "next_free_at": ahead_at})

    first = database.run_here(partial(rate_slots.reserve, key="key", seconds=100))
    second = database.run_here(partial(rate_slots.reserve, key="key", seconds=100))

    assert first == 0
    assert 0 < second <= 100


def test_a_refusal_counts_though_the_clock_was_ahead(database: Database, ahead_at: datetime) -> None:
    """It holds the token for as long as it says."""
    add(database, rate_budgets, {"token_key": "key", "next_free_at": ahead_at})

    database.run_here(partial(rate_slots.hold, key="key", seconds=300))
    begins_in = database.run_here(partial(rate_slots.reserve, key="key", seconds=1))

    assert 0 < begins_in <= 300


@pytest.mark.parametrize(("seconds", "longest_wait_seconds"), [(600, 900), (7_000, 7_200)])
def test_a_wait_that_can_be_is_believed(database: Database, seconds: float, longest_wait_seconds: float) -> None:
    """How long that is the settings say."""
    hold = partial(rate_slots.hold, key="key", longest_wait_seconds=longest_wait_seconds)
    reserve = partial(rate_slots.reserve, key="key", longest_wait_seconds=longest_wait_seconds)
    add(database, rate_budgets, {"token_key": "key", "next_free_at": datetime.now(UTC)})

    database.run_here(partial(hold, seconds=seconds))
    database.run_here(partial(hold, seconds=1))
    begins_in = database.run_here(partial(reserve, seconds=1))

    assert seconds - 60 < begins_in <= seconds


def put_off(until: datetime) -> list[dict[str, Any]]:
    """Pairs that are leased and failed, and one that another program has scheduled."""
    row = {"deployment_id": 120, "due_at": until}
    return [
        {**row, "scan_id": 1, "lease_token": "theirs"},
        {**row, "scan_id": 2, "error_kind": "timeout"},
        {**row, "scan_id": 3, "lease_token": "theirs", "error_kind": STILL_RUNNING},
        {**row, "scan_id": 4},
    ]


def leased(database: Database) -> list[int]:
    """The scans that a worker gets."""
    brought_back = database.run_here(partial(queue.disbelieve, longest=LONGEST))
    leases = database.run_here(partial(queue.lease, token="ours", limit=100, lease_seconds=60))
    assert len(leases) == brought_back
    return sorted(lease.pair.scan_id for lease in leases)


def test_what_workers_have_put_off_too_far_comes_back(database: Database, ahead_at: datetime) -> None:
    """What another program has scheduled for then stays."""
    add(database, fetch_queue, *put_off(ahead_at))

    assert leased(database) == [1, 2, 3]


def test_a_running_scan_is_put_off_for_longer_than_a_failure(database: Database) -> None:
    """But not for a day."""
    row = {"deployment_id": 120, "error_kind": STILL_RUNNING}
    now = datetime.now(UTC)
    add(database, fetch_queue, {**row, "scan_id": 1, "due_at": now + HOUR}, {**row, "scan_id": 2, "due_at": now + DAY})

    assert leased(database) == [2]


def test_what_is_put_off_as_it_may_be_stays(database: Database) -> None:
    """A lease and a retry of workers that have longer ones than we have, too."""
    add(database, fetch_queue, *put_off(datetime.now(UTC) + timedelta(minutes=10)))

    assert leased(database) == []


def test_a_run_after_one_with_the_clock_ahead_fetches_at_once(cli: Command, database_url: str) -> None:
    """Neither its leases and retries nor its pace are waited for."""
    ahead_at = datetime.now(UTC) + DAY
    with closing(Database(database_url)) as database:
        add(database, rate_budgets, {"token_key": rate_slots.key_of(TOKEN), "next_free_at": ahead_at})
        add(database, fetch_queue, *put_off(ahead_at))
    with running_sandbox(finished_world(10)) as sandbox:
        environment = sandbox.environment(SCAN_ETL_DATABASE__URL=database_url)
        summary = cli("run", "--json", environment=environment).json()

    assert (summary["fetched"], summary["remaining"], summary["exit_code"]) == (3, 1, 0)


def sign_of_life(token: str) -> Callable[[Connection], None]:
    """Of a worker with this token."""
    return partial(
        runs.sign_of_life,
        run_id=token,
        token=token,
        version="0.1.0",
        counts=NO_COUNTS,
        throughput=runs.Throughput(1.0, 1.0),
    )


def test_a_sign_of_life_from_the_future_is_none(database: Database, ahead_at: datetime) -> None:
    """Nobody leaves the work to such a worker, or counts it; it is forgotten when the next one begins."""
    early_at = datetime.now(UTC) - DAY
    for token in ("ahead", "ours"):
        start = partial(runs.start_run, run_id=token, command="sync", version="0.1.0", started_at=datetime.now(UTC))
        database.run_here(start)
    row = {"token": "ahead", "run_id": "ahead", "version": "0.1.0", "started_at": early_at, "seen_at": ahead_at}
    database.run_here(sign_of_life("ours"))
    add(database, workers, row)

    before = database.run_here(partial(runs.at_work_before, command="sync", token="ours"))
    at_work = [each["worker"] for each in database.run_here(status.at_work)]
    database.run_here(sign_of_life("next"))
    known = database.run_here(lambda connection: set(connection.execute(select(workers.c.token)).scalars()))

    assert before is None
    assert at_work == ["ours"]
    assert known == {"ours", "next"}


@pytest.mark.parametrize("changes", [{}, {"completed_at": None}], ids=["final", "running"])
def test_any_answer_is_newer_than_one_of_the_future(
    database: Database, ahead_at: datetime, changes: dict[str, Any]
) -> None:
    """And the one after it is compared with that."""

    def load(connection: Connection, minutes: int, exit_code: int) -> None:
        load_scans(connection, [scan_rows(1, minutes=minutes, exit_code=exit_code, **changes)], "run")

    def stored(connection: Connection) -> tuple[Any, ...]:
        return tuple(connection.execute(select(scans.c.exit_code, scans.c.fetched_at > ahead_at - HOUR)).one())

    database.run_here(partial(load, minutes=5, exit_code=0))
    future = update(scans).values(fetched_at=ahead_at + timedelta(seconds=60))
    database.run_here(lambda connection: connection.execute(future).close())
    database.run_here(partial(load, minutes=9, exit_code=1))
    database.run_here(partial(load, minutes=7, exit_code=2))

    assert database.run_here(stored) == (1, False)


def test_a_running_scan_does_not_replace_a_final_one_of_the_future(database: Database, ahead_at: datetime) -> None:
    """Its instants are no longer in the future then."""
    database.run_here(lambda connection: load_scans(connection, [scan_rows(1, minutes=5)], "run"))
    future = update(scans).values(fetched_at=ahead_at + timedelta(seconds=60), first_fetched_at=ahead_at)
    database.run_here(lambda connection: connection.execute(future).close())
    running = scan_rows(1, minutes=7, completed_at=None)
    database.run_here(lambda connection: load_scans(connection, [running], "run"))
    columns = (scans.c.completed_at.is_not(None), scans.c.first_fetched_at, scans.c.fetched_at)

    found = database.run_here(lambda connection: tuple(connection.execute(select(*columns)).one()))

    assert found == (True, running.fetched_at, running.fetched_at)


NO_INSTANTS = {
    "sqlite": [
        "unixepoch()",
        "0",
        "''",
        "'soon'",
        "'1970-01-01'",
        "'2026-03-01 12:00:00 or so'",
        "'1969-12-31 23:59:59'",
    ],
    "postgresql": ["'infinity'", "'-infinity'", "'1969-12-31 12:00+00'", "'10000-01-02'", "'0044-03-15 BC'"],
    "mysql": ["'1969-12-31 23:59:59'", "'1000-01-01'"],
}


@pytest.mark.parametrize("column", ["due_at", "expires_at", "enqueued_at"])
def test_a_program_that_queues_what_is_no_instant_is_told_so(database: Database, column: str) -> None:
    """By its own INSERT. In the queue it would stop every run, for no driver could read it, or no lease find it."""

    def insert_with(value: str) -> None:
        statement = f"INSERT INTO fetch_queue (deployment_id, scan_id, {column}) VALUES (120, 1, {value})"  # noqa: S608 - of this test
        database.run_here(lambda connection: connection.exec_driver_sql(statement).close())

    for value in NO_INSTANTS[database.engine.dialect.name]:
        with pytest.raises(RefusedError, match="ck_fetch_queue_instants"):
            insert_with(value)
    insert_with("'2026-03-01 12:00:00'")
    leases = database.run_here(partial(queue.lease, token="ours", limit=100, lease_seconds=60))

    assert [lease.pair.scan_id for lease in leases] == [1]
