"""The queue's promises, on each dialect: one lease at a time, an outcome only by its holder, nothing lost."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from patience import PATIENCE_SECONDS
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, func, insert, select, text, update

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, scans
from etl.database.types import utc_now
from etl.model import (
    RETENTION,
    STILL_RUNNING,
    Complete,
    Discard,
    Enqueued,
    Lease,
    Outcome,
    Pair,
    Release,
    Retry,
    Settled,
    Snooze,
)
from etl.store import queue, status
from etl.store import settle as settling

NOTHING = Settled(inserted=0, updated=0, unchanged=0, waiting=0, later=0, dead=0, released=0, lost=0)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def fill(database: Database, *pairs: Pair, batch: str | None = None, refresh: bool = False) -> Enqueued:
    return enqueue(database, pairs, batch=batch, refresh=refresh)


def lease(database: Database, token: str, limit: int = 100, seconds: float = 60, **options: Any) -> list[Lease]:
    return database.run_here(lambda connection: queue.lease(connection, token, limit, seconds, **options))


def settle(database: Database, token: str, *outcomes: Outcome) -> Settled:
    return database.run_here(lambda connection: settling.settle(connection, token, outcomes, "run"))


def rows(database: Database) -> list[dict[str, Any]]:
    statement = select(fetch_queue).order_by(*fetch_queue.primary_key)
    return database.run_here(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])


def count(database: Database, table: Any) -> int:
    return database.run_here(
        lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
    )


def pairs(*scan_ids: int, deployment_id: int = 120) -> list[Pair]:
    return [Pair(deployment_id, scan_id) for scan_id in scan_ids]


def end_leases(database: Database) -> None:
    """Let the time pass that a lease lasts."""
    database.run_here(lambda connection: connection.execute(update(fetch_queue).values(due_at=utc_now())))


def test_a_plain_insert_is_enough_to_queue_a_pair(database: Database) -> None:
    """Any program may fill the queue: every column but the two ids has a default, and the row is due at once.

    The API shows a scan for 30 days, and it can't be older than its row.
    """
    sql = text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 5)")
    database.run_here(lambda connection: connection.execute(sql))
    [row] = rows(database)

    assert lease(database, "a") == [Lease(Pair(120, 5), 0, row["expires_at"])]
    assert abs(row["expires_at"] - row["enqueued_at"] - RETENTION) < timedelta(seconds=1)
    assert abs(row["enqueued_at"] - datetime.now(UTC)) < timedelta(minutes=5)


def test_each_pair_is_queued_once_and_final_ones_not_at_all(database: Database) -> None:
    """Duplicates in the input and scans that are stored and final are counted, not queued; `refresh` queues them."""
    fill(database, *pairs(1))
    lease(database, "a")
    settle(database, "a", Complete(scan_rows(1)))

    assert fill(database, *pairs(1, 2, 2, 3)) == Enqueued(valid=4, duplicate=1, already_final=1, queued=2)
    assert [row["scan_id"] for row in rows(database)] == [2, 3]
    assert fill(database, *pairs(1), refresh=True).queued == 1


def test_a_final_scan_that_is_queued_on_purpose_stays_queued(database: Database) -> None:
    """A file that names it again doesn't undo the `refresh`, and each pair of the file is counted once."""
    fill(database, *pairs(1, 2))
    lease(database, "a")
    settle(database, "a", Complete(scan_rows(1)), Complete(scan_rows(2)))
    fill(database, *pairs(1), refresh=True)

    assert fill(database, *pairs(1, 1, 2, 2, 3)) == Enqueued(valid=5, duplicate=2, already_final=2, queued=1)
    assert [row["scan_id"] for row in rows(database)] == [1, 3]


WAITING_FOR_A_LOCK = {
    "postgresql": "SELECT COUNT(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT COUNT(*) FROM information_schema.innodb_trx JOIN information_schema.processlist"
    " ON id = trx_mysql_thread_id WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()",
}
LOOKS_EVERY_SECONDS = 0.2
"""InnoDB shows what it has shown before to whoever looks again within 0.1 s, however often."""


def test_a_pair_that_is_finished_while_it_is_queued_again_is_not_queued(server_url: str) -> None:
    """Its queue row goes while our INSERT waits for it, which has looked for its scan too early."""
    waiting = text(WAITING_FOR_A_LOCK[server_url.partition(":")[0]])
    with (
        closing(Database(server_url)) as worker,
        closing(Database(server_url)) as filler,
        closing(Database(server_url)) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        fill(filler, *pairs(1, 2))
        lease(worker, "a", batch=None)

        def settle_slowly(connection: Connection) -> Future[Enqueued]:
            settling.settle(connection, "a", [Complete(scan_rows(1))], "run")
            filling = pool.submit(fill, filler, *pairs(1, 2, 3))
            while not watcher.run_here(lambda other: other.execute(waiting).scalar_one()):
                assert not filling.done()
                time.sleep(LOOKS_EVERY_SECONDS)
            return filling

        counts = worker.run_here(settle_slowly).result(PATIENCE_SECONDS)

        assert counts == Enqueued(valid=3, duplicate=0, already_final=1, queued=2)
        assert [row["scan_id"] for row in rows(worker)] == [2, 3]


def test_a_pair_that_dies_while_dead_letters_are_requeued_is_not_lost(server_url: str) -> None:
    """It is queued too or stays a dead letter, though it dies behind the moment at which the others were looked for."""
    waiting = text(WAITING_FOR_A_LOCK[server_url.partition(":")[0]])
    with (
        closing(Database(server_url)) as holder,
        closing(Database(server_url)) as worker,
        closing(Database(server_url)) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        fill(worker, *pairs(1, 2))
        lease(worker, "a")
        settle(worker, "a", Discard(Pair(120, 2), 1, "timeout", "slow", None))

        def hold(connection: Connection) -> Future[int]:
            connection.execute(insert(fetch_queue).values(deployment_id=120, scan_id=2))
            requeued = pool.submit(
                worker.run_here, partial(status.requeue_dead, which=status.DeadLetterFilter("timeout"))
            )
            while not watcher.run_here(lambda other: other.execute(waiting).scalar_one()):
                assert not requeued.done()
                time.sleep(LOOKS_EVERY_SECONDS)
            settle(watcher, "a", Discard(Pair(120, 1), 1, "timeout", "slow", None))
            return requeued

        requeued = holder.run_here(hold).result(PATIENCE_SECONDS)

        assert requeued + count(holder, dead_letters) == 2
        assert requeued == count(holder, fetch_queue)


def test_a_pair_that_is_queued_already_keeps_its_lease_and_passes_to_the_new_batch(database: Database) -> None:
    """Queueing a pair again neither ends its lease nor forgets its attempts."""
    fill(database, *pairs(1, 2), batch="first")
    held = lease(database, "a", limit=1, batch="first")
    settle(database, "a", *(Retry(item.pair, 100, 2, "timeout", "slow") for item in held))

    fill(database, *pairs(1, 2), batch="second")

    found = rows(database)
    assert [row["batch"] for row in found] == ["second", "second"]
    assert sorted(row["attempts"] for row in found) == [0, 2]
    assert len(lease(database, "a", batch="second")) == 1


def test_a_leased_pair_is_nobody_elses_until_the_lease_ends(database: Database) -> None:
    """Two workers never hold the same pair; a lease that isn't renewed returns by itself."""
    fill(database, *pairs(1, 2, 3))

    assert len(lease(database, "a", limit=2)) == 2
    assert len(lease(database, "b")) == 1
    assert lease(database, "c") == []
    end_leases(database)
    assert len(lease(database, "c")) == 3


def test_renewing_lengthens_only_ones_own_leases(database: Database) -> None:
    """A renewed lease ends later by the database's clock; other workers' leases stay as they are."""
    fill(database, *pairs(1, 2))
    lease(database, "a", limit=1, seconds=10)
    lease(database, "b", limit=1, seconds=10)

    renewed = database.run_here(lambda connection: queue.renew(connection, "a", pairs(1, 2), 1000))

    assert renewed == 1
    due = {row["lease_token"]: row["due_at"] for row in rows(database)}
    assert due["a"] - due["b"] > timedelta(seconds=900)


def test_a_finished_pair_leaves_its_rows_and_no_queue_row(database: Database) -> None:
    """Rows and receipt come together."""
    fill(database, *pairs(1, 2))
    lease(database, "a")

    assert settle(database, "a", Complete(scan_rows(1)), Complete(scan_rows(2))) == NOTHING._replace(inserted=2)
    assert (count(database, scans), count(database, fetch_queue)) == (2, 0)


def test_an_outcome_without_the_lease_changes_nothing(database: Database) -> None:
    """Whatever a late worker says of a pair that another has taken over is lost, rows included."""
    fill(database, *pairs(1, 2, 3, 4, 5))
    lease(database, "late")
    end_leases(database)
    lease(database, "new")
    before = rows(database)
    soon = datetime.now(UTC)

    settled = settle(
        database,
        "late",
        Complete(scan_rows(1)),
        Snooze(scan_rows(2, completed_at=None), 10, soon),
        Retry(Pair(120, 3), 10, 1, "timeout", "slow"),
        Discard(Pair(120, 4), 1, "not_found", "gone", 404),
        Release(Pair(120, 5)),
    )

    assert settled == NOTHING._replace(lost=5)
    assert rows(database) == before
    assert (count(database, scans), count(database, dead_letters)) == (0, 0)


def test_a_late_outcome_leaves_the_dead_letter_of_whoever_took_over(database: Database) -> None:
    """The pair is in the queue or among the dead letters, whatever a worker whose lease has ended says of it."""
    fill(database, *pairs(1))
    lease(database, "late")
    end_leases(database)
    lease(database, "new")
    settle(database, "new", Discard(Pair(120, 1), 1, "not_found", "gone", 404))

    assert settle(database, "late", Complete(scan_rows(1))) == NOTHING._replace(lost=1)
    assert (count(database, scans), count(database, dead_letters)) == (0, 1)


def test_the_part_of_a_batch_that_is_still_ours_is_written(database: Database) -> None:
    """One lost lease doesn't take the others with it."""
    fill(database, *pairs(1, 2))
    lease(database, "a")
    database.run_here(
        lambda connection: connection.execute(
            update(fetch_queue).where(fetch_queue.c.scan_id == 1).values(lease_token="b")
        )
    )

    assert settle(database, "a", Complete(scan_rows(1)), Complete(scan_rows(2))) == NOTHING._replace(inserted=1, lost=1)
    assert [row["scan_id"] for row in rows(database)] == [1]


def test_a_running_scan_is_stored_and_waits(database: Database) -> None:
    """Its rows are there, its queue row is put off, and no attempt is spent."""
    fill(database, *pairs(1))
    lease(database, "a")
    expires_at = datetime(2027, 1, 1, tzinfo=UTC)

    settled = settle(database, "a", Snooze(scan_rows(1, completed_at=None), 300, expires_at))

    assert settled == NOTHING._replace(inserted=1, waiting=1)
    row = rows(database)[0]
    assert (row["attempts"], row["lease_token"], row["error_kind"]) == (0, None, STILL_RUNNING)
    assert row["expires_at"] == expires_at
    assert database.run_here(lambda connection: queue.left(connection, None)) == queue.Remaining(0, 1, None)


def test_a_failed_pair_comes_back_later_with_its_reason(database: Database) -> None:
    """The row says when, how often it failed, and why."""
    fill(database, *pairs(1))
    lease(database, "a")

    assert settle(database, "a", Retry(Pair(120, 1), 50, 3, "timeout", "no answer")) == NOTHING._replace(later=1)
    row = rows(database)[0]
    assert (row["attempts"], row["error_kind"], row["error"]) == (3, "timeout", "no answer")
    assert lease(database, "a") == []
    left = database.run_here(lambda connection: queue.left(connection, None))
    assert left.remaining == 1
    assert left.next_due_seconds is not None
    assert 30 < left.next_due_seconds <= 50


def test_a_released_pair_is_due_at_once_as_it_was(database: Database) -> None:
    """A stop gives the lease back and spends nothing."""
    fill(database, *pairs(1))
    before = rows(database)
    held = lease(database, "a")

    assert settle(database, "a", Release(Pair(120, 1))) == NOTHING._replace(released=1)
    assert rows(database) == before
    assert lease(database, "b") == held


def test_a_dead_pair_moves_with_its_history(database: Database) -> None:
    """The dead letter keeps what the queue row said, with the last reason, and a second death replaces it."""
    fill(database, *pairs(1), batch="night")
    for attempts in (1, 2):
        lease(database, "a")
        settle(database, "a", Discard(Pair(120, 1), attempts, "not_found", "gone", 404))
        fill(database, *pairs(1), batch="night")

    letter = database.run_here(lambda connection: connection.execute(select(dead_letters)).mappings().one())
    assert (letter["attempts"], letter["error_kind"], letter["error"], letter["http_status"]) == (
        2,
        "not_found",
        "gone",
        404,
    )
    assert (letter["batch"], letter["lease_token"], letter["run_id"]) == ("night", None, "run")
    lease(database, "a")
    settle(database, "a", Complete(scan_rows(1)))
    assert count(database, dead_letters) == 0


@pytest.mark.parametrize("batch", [None, "b"])
def test_deployments_share_a_lease_fairly(database: Database, batch: str | None) -> None:
    """A deployment with many due pairs doesn't keep the others waiting, and no room is left unused."""
    of_others = [*pairs(1, 2, deployment_id=121), *pairs(*range(1, 50), deployment_id=122)]
    fill(database, *pairs(*range(1, 101)), *of_others, batch="b")

    taken = [item.pair.deployment_id for item in lease(database, "a", limit=30, batch=batch)]

    assert {number: taken.count(number) for number in (120, 121, 122)} == {120: 14, 121: 2, 122: 14}


def test_a_stopped_deployment_is_not_leased(database: Database) -> None:
    """`without` keeps a deployment's pairs where they are, in a batch and in the whole queue."""
    fill(database, *pairs(1), *pairs(1, deployment_id=121), batch="b")

    assert [item.pair for item in lease(database, "a", batch="b", without={120})] == [Pair(121, 1)]
    assert lease(database, "a", without={120}) == []
    assert [item.pair for item in lease(database, "a")] == [Pair(120, 1)]


def test_any_number_of_deployments_may_be_stopped(database: Database) -> None:
    """More than a statement may have parameters: what is left and due is that of the others."""
    fill(database, *pairs(1, 2), *pairs(1, deployment_id=100_121), batch="b")
    stopped = range(1, 70_001)

    left = [database.run_here(partial(queue.left, batch=batch, without=stopped)) for batch in (None, "b")]
    taken = [lease(database, "a", batch=batch, without=stopped) for batch in (None, "b")]
    later = database.run_here(partial(queue.left, batch=None, without=stopped, below=11))

    assert [(each.remaining, each.next_due_seconds) for each in left] == [(3, 0), (3, 0)]
    assert [[item.pair.deployment_id for item in leases] for leases in taken] == [[100_121], []]
    assert (later.remaining, later.next_due_seconds) == (3, None)


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

IN_ORDER: tuple[dict[str, Any], ...] = (
    {"priority": -5, "expires_at": NOON + timedelta(days=9)},
    {"expires_at": NOON, "enqueued_at": NOON + timedelta(days=1)},
    {"expires_at": NOON + timedelta(hours=1), "due_at": NOON},
    {"expires_at": NOON + timedelta(hours=2), "enqueued_at": NOON},
    {"expires_at": NOON + timedelta(hours=2), "enqueued_at": NOON + timedelta(seconds=1)},
    {},
    {"priority": 1, "expires_at": NOON},
    {"priority": 5, "expires_at": NOON},
)


def add_in_order(database: Database) -> None:
    """Queue the scans 8 to 1, of which 1 goes first."""

    def add(connection: Connection) -> None:
        for scan_id, values in enumerate(IN_ORDER, 1):
            row = {"deployment_id": 120, "scan_id": 9 - scan_id, "batch": "b", **values}
            connection.execute(insert(fetch_queue).values(row))

    database.run_here(add)


@pytest.mark.parametrize("batch", [None, "b"])
def test_the_order_is_priority_then_expiry_then_age(database: Database, batch: str | None) -> None:
    """The lower priority first, then what the API forgets first, then what has been queued for longest."""
    add_in_order(database)

    one_by_one = [lease(database, "a", limit=1, batch=batch)[0].pair.scan_id for _ in range(3)]

    assert one_by_one == [8, 7, 6]
    assert [item.pair.scan_id for item in lease(database, "a", batch=batch)] == [5, 4, 3, 2, 1]


def test_what_was_put_off_comes_back_to_its_place(database: Database) -> None:
    """A lease that has ended, a retry and a scan to look at again don't go to the end of the line."""
    add_in_order(database)
    lease(database, "of a dead worker", limit=1)
    lease(database, "a", limit=1)
    settle(database, "a", Retry(Pair(120, 7), 100, 1, "timeout", "slow"))
    lease(database, "a", limit=1)
    settle(database, "a", Snooze(scan_rows(6, completed_at=None), 100, NOON + timedelta(hours=1)))
    end_leases(database)

    assert [item.pair.scan_id for item in lease(database, "b")] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_many_that_come_back_at_once_are_all_leased(database: Database) -> None:
    """However few are leased at a time, none is left behind."""
    fill(database, *pairs(*range(1, 31)), *pairs(*range(1, 31), deployment_id=121))
    lease(database, "of a dead worker")
    end_leases(database)

    taken = [item.pair for _ in range(20) for item in lease(database, "a", limit=3)]

    assert sorted(taken) == [*pairs(*range(1, 31)), *pairs(*range(1, 31), deployment_id=121)]


def test_a_batch_knows_what_will_come_back_to_it(database: Database) -> None:
    """A run waits for retries and for others' leases on its pairs, not for what is put off or another batch's."""
    fill(database, *pairs(1, 2), batch="mine")
    fill(database, *pairs(3), batch="other")
    left = partial(queue.left, batch="mine")

    assert database.run_here(left).next_due_seconds == 0
    lease(database, "a", batch="mine", seconds=100)
    assert 90 < (database.run_here(left).next_due_seconds or 0) <= 100
    settle(database, "a", Complete(scan_rows(1)), Snooze(scan_rows(2, completed_at=None), 1, datetime.now(UTC)))
    assert database.run_here(left) == queue.Remaining(0, 1, None)


def test_no_more_than_the_limit_is_leased(database: Database) -> None:
    """The limit holds over all deployments together."""
    for deployment_id in range(120, 127):
        fill(database, *pairs(1, 2, 3, deployment_id=deployment_id))

    assert len(lease(database, "a", limit=5)) == 5
    assert lease(database, "a", limit=0) == []


def test_a_settle_that_waits_holds_nothing_behind_what_it_waits_for(postgres_url: str) -> None:
    """Whoever fills the queue locks its rows in the order of their keys. So does a settle, and none starts over."""
    low, high = Pair(120, 1), Pair(120, 2)
    row_of = {
        pair: select(fetch_queue).where(fetch_queue.c.scan_id == pair.scan_id).with_for_update() for pair in (low, high)
    }
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with (
        closing(Database(postgres_url)) as database,
        closing(Database(postgres_url)) as other,
        ThreadPoolExecutor() as threads,
    ):
        fill(database, low, high)
        lease(database, "token")
        with other.engine.begin() as filling:
            filling.execute(row_of[low])
            later = [Retry(pair, 0, 1, "kind", "error") for pair in (high, low)]
            settling = threads.submit(settle, database, "token", *later)
            with closing(Database(postgres_url)) as watching:
                while not watching.run_here(lambda connection: connection.execute(waiting).scalar()):
                    assert not settling.done()
            filling.execute(row_of[high].with_for_update(nowait=True))
        settled = settling.result(timeout=PATIENCE_SECONDS)

    assert settled == NOTHING._replace(later=2)


def test_no_statement_keeps_a_plan_of_another_day(postgres_url: str) -> None:
    """What was right for an empty queue takes seconds a lease when it is full: PostgreSQL is asked to plan anew."""
    with closing(Database(postgres_url)) as database:
        for _ in range(20):
            lease(database, "token")
        prepared = database.run_here(
            lambda connection: connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar()
        )

    assert prepared == 0


def test_what_a_lease_asks_of_the_planner_ends_with_it(postgres_url: str) -> None:
    """A connection may be another program's afterwards. Nor is a plan compiled: that takes longer than the lease."""
    names = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_incremental_sort", "jit")
    settings = select(*(func.current_setting(name) for name in names))

    def after_lease(connection: Connection) -> tuple[Any, ...]:
        queue.lease(connection, "token", 1, 60)
        return tuple(connection.execute(settings).one())

    with closing(Database(postgres_url)) as database:
        before = database.run_here(lambda connection: tuple(connection.execute(settings).one()))
        inside = database.run_here(after_lease)
        outside = database.run_here(lambda connection: tuple(connection.execute(settings).one()))

    assert set(inside) == {"off"}
    assert outside == before


def test_in_a_settle_foreign_keys_go_by_keys(postgres_url: str) -> None:
    """Nor does the plan by which they find their scan."""
    pair = Pair(120, 1)

    def seqscan_after(connection: Connection) -> Any:
        settling.settle(connection, "token", [Complete(scan_rows(1))], "run")
        return connection.execute(text("SHOW enable_seqscan")).scalar()

    with closing(Database(postgres_url)) as database:
        fill(database, pair)
        lease(database, "token")
        inside = database.run_here(seqscan_after)
        outside = database.run_here(lambda connection: connection.execute(text("SHOW enable_seqscan")).scalar())

    assert (inside, outside) == ("off", "on")
