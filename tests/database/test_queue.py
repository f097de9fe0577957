"""The queue's promises, on each dialect: one lease at a time, an outcome only by its holder, nothing lost."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from leased_queue import NOTHING, end_leases, fill, lease, pairs, settle
from patience import PATIENCE_SECONDS
from scan_rows import scan_rows
from sqlalchemy import Connection, func, insert, select, text, update

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, scans
from etl.model import (
    RETENTION,
    STILL_RUNNING,
    Complete,
    Discard,
    Enqueued,
    Lease,
    Pair,
    Release,
    Retry,
    Snooze,
)
from etl.store import queue, status
from etl.store import settle as settling


def rows(database: Database) -> list[dict[str, Any]]:
    statement = select(fetch_queue).order_by(*fetch_queue.primary_key)
    return database.run_here(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])


def count(database: Database, table: Any) -> int:
    return database.run_here(
        lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
    )


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
