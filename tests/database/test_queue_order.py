"""What is leased first, and what a lease and a settle ask of the database."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from leased_queue import NOTHING, end_leases, fill, lease, pairs, settle
from patience import PATIENCE_SECONDS
from scan_rows import scan_rows
from sqlalchemy import Connection, func, insert, select, text

from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.model import (
    Complete,
    Pair,
    Retry,
    Snooze,
)
from etl.store import queue
from etl.store import settle as settling


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
