"""How pairs get from an input into the queue: staged, merged, shared with other runs, on each dialect."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, Table, delete, func, insert, select, update

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, staged_pairs, staged_pieces, workers
from etl.errors import DatabaseError
from etl.model import Discard, Enqueued, Pair
from etl.store import dropping, runs, scope, settle
from etl.store import enqueue as staging
from etl.store.scans import load_scans
from etl.store.scope import Scope

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def execute(database: Database, statement: Any) -> None:
    database.run_here(lambda connection: connection.execute(statement).close())


def batches(database: Database) -> dict[int, str | None]:
    statement = select(fetch_queue.c.scan_id, fetch_queue.c.batch)
    found = database.run_here(lambda connection: connection.execute(statement).all())
    return {row.scan_id: row.batch for row in found}


def count(database: Database, table: Table) -> int:
    statement = select(func.count()).select_from(table)
    return database.run_here(lambda connection: connection.execute(statement).scalar_one())


def pairs(*scan_ids: int) -> list[Pair]:
    return [Pair(120, scan_id) for scan_id in scan_ids]


def put_to_work(database: Database, *run_ids: str) -> None:
    for run_id in run_ids:
        database.run_here(partial(runs.see, run_id=run_id, token=run_id, version="1"))


def ended(database: Database, batch: str) -> tuple[int, int, int]:
    """How many pairs of a run remain, wait for their scan, and are dead."""
    left = database.run_here(Scope(batch).left)
    return left.remaining, left.waiting, database.run_here(partial(staging.died, batch=batch))


def lose(database: Database, run_id: str) -> None:
    """Let a run have given its last sign of life long ago."""
    execute(database, update(workers).where(workers.c.run_id == run_id).values(seen_at=LONG_AGO))


def test_a_stage_that_somebody_has_removed_is_not_taken_for_a_whole_one(database: Database) -> None:
    """A process that stood still for too long is told so, and queues nothing of what it reads after that."""
    database.run_here(partial(staging.open_stage, batch="slow"))
    database.run_here(partial(staging.stage, batch="slow", pairs=pairs(1)))
    database.run_here(partial(staging.clear, batch="another"))
    database.run_here(partial(staging.stage, batch="slow", pairs=pairs(2)))

    with pytest.raises(DatabaseError, match="nothing was queued"):
        database.run_here(partial(staging.merge, stage="slow", valid=2, batch="slow"))

    assert batches(database) == {}


def test_pairs_that_are_read_more_than_once_are_queued_once(database: Database) -> None:
    """However the pieces overlap, one that was staged twice, as its first commit wasn't heard of, among them."""
    read = ((1, 2, 2, 3), (3, 4, 1), (3, 4, 1), (4, 5))
    database.run_here(partial(load_scans, batch=[scan_rows(number) for number in (3, 4)], run_id="run"))
    database.run_here(partial(staging.open_stage, batch="mine"))
    for scan_ids in read:
        database.run_here(partial(staging.stage, batch="mine", pairs=pairs(*scan_ids)))
    pieces = count(database, staged_pieces)

    counts = database.run_here(partial(staging.merge, stage="mine", valid=9, batch=None))

    assert counts == Enqueued(valid=9, duplicate=4, already_final=2, queued=3)
    assert batches(database) == {1: None, 2: None, 5: None}
    assert (pieces, count(database, staged_pieces), count(database, staged_pairs)) == (3, 0, 0)


def test_the_deployments_of_a_stage_are_known_before_it_is_merged(database: Database) -> None:
    """Where a token sees none of them, some are named."""
    swapped = [Pair(number, 120) for number in range(1, 2_001)]
    database.run_here(partial(staging.open_stage, batch="mine"))
    database.run_here(partial(staging.stage, batch="mine", pairs=swapped))

    unseen = database.run_here(partial(staging.unseen, batch="mine", visible={2_001, 2_002}))
    seen = database.run_here(partial(staging.unseen, batch="mine", visible={2_001, 2_000}))

    assert (unseen, seen) == ([1, 2, 3], [])
    assert batches(database) == {}


def test_pairs_of_a_run_at_work_stay_in_its_batch_and_all_others_pass(database: Database) -> None:
    """The second run knows which it shares, and counts them as its own."""
    put_to_work(database, "first", "second")
    enqueue(database, pairs(1, 2), batch="first")
    enqueue(database, pairs(3), batch="ended")
    enqueue(database, pairs(4))

    counts = enqueue(database, pairs(1, 2, 3, 4, 5, 5), batch="second")

    assert counts == Enqueued(valid=6, duplicate=1, already_final=0, queued=5)
    assert batches(database) == {1: "first", 2: "first", 3: "second", 4: "second", 5: "second"}
    assert (ended(database, "second"), ended(database, "first")) == ((5, 0, 0), (2, 0, 0))


def leased(database: Database, batch: str) -> list[int]:
    lease = partial(Scope(batch).lease, token=batch, limit=10, lease_seconds=60)
    return [item.pair.scan_id for item in database.run_here(lease)]


def test_shared_pairs_pass_when_their_run_is_no_longer_at_work(database: Database) -> None:
    """Until then the second run waits for them, those of a stopped deployment excepted."""
    put_to_work(database, "first", "second")
    enqueue(database, pairs(1, 2), batch="first")
    enqueue(database, pairs(1, 2, 3), batch="second")

    assert leased(database, "second") == [3]
    execute(database, delete(fetch_queue).where(fetch_queue.c.scan_id == 3))
    assert leased(database, "second") == []
    next_due = partial(Scope("second").next_due_seconds)
    assert database.run_here(next_due) == scope.LOOK_AGAIN_SECONDS
    assert database.run_here(partial(next_due, without={120})) is None
    lose(database, "first")
    assert sorted(leased(database, "second")) == [1, 2]
    assert batches(database) == {1: "second", 2: "second"}


def test_shared_pairs_that_died_in_another_run_are_dead_for_both(database: Database) -> None:
    """Each of the two counts them among its own."""
    put_to_work(database, "first", "second")
    enqueue(database, pairs(1, 2, 3), batch="first")
    enqueue(database, pairs(1, 2, 3), batch="second")
    leased(database, "first")
    dead = [Discard(pair, 1, "not_found", "gone", 404) for pair in pairs(1, 2)]
    database.run_here(partial(settle.settle, token="first", outcomes=dead, run_id="first"))
    leased(database, "second")

    found = [ended(database, batch) for batch in ("first", "second")]

    assert found == [(1, 0, 2)] * 2


def test_a_run_that_may_have_to_wait_long_sees_what_is_free_behind_it(database: Database) -> None:
    """Pairs that another run has in work don't hide those that a third has left behind."""
    put_to_work(database, "first", "second", "third")
    enqueue(database, pairs(1, 2), batch="first")
    enqueue(database, pairs(3, 4), batch="third")
    enqueue(database, pairs(1, 2, 3, 4), batch="second")
    lose(database, "third")

    assert sorted(leased(database, "second")) == [3, 4]
    assert batches(database) == {1: "first", 2: "first", 3: "second", 4: "second"}


EXPIRED = {"expires_at": datetime.now(UTC) - timedelta(days=1)}
QUEUED: tuple[dict[str, Any], ...] = (
    {**EXPIRED, "batch": "night", "attempts": 2, "error_kind": "timeout"},
    {},
    {**EXPIRED, "lease_token": "a", "due_at": datetime.now(UTC) + timedelta(hours=1)},
    {**EXPIRED, "lease_token": "b", "due_at": LONG_AGO},
    {**EXPIRED, "deployment_id": 121},
)


def test_expired_pairs_of_a_deployment_that_cant_be_fetched_are_given_up(database: Database) -> None:
    """The dead letter says why. What a worker holds and what the API still shows stays, as other deployments do."""

    def add(connection: Connection) -> None:
        for scan_id, row in enumerate(QUEUED, 1):
            connection.execute(insert(fetch_queue).values({"deployment_id": 120, "scan_id": scan_id, **row}))
        connection.execute(
            insert(dead_letters).values(deployment_id=120, scan_id=1, died_at=LONG_AGO, error_kind="timeout")
        )

    database.run_here(add)
    count = database.run_here(partial(dropping.bury_expired, deployment_id=120, reason="no token", run_id="run"))
    in_order = select(dead_letters).order_by(dead_letters.c.scan_id)
    letters = database.run_here(lambda connection: connection.execute(in_order).all())

    assert count == 2
    assert set(batches(database)) == {2, 3, 5}
    assert {(row.scan_id, row.error_kind, row.lease_token, row.run_id) for row in letters} == {
        (1, "expired", None, "run"),
        (4, "expired", None, "run"),
    }
    sentence = "the API shows a scan for 30 days, and deployment 120 could not be asked until then"
    assert letters[0].error == f"expired: {sentence}: no token"
    assert (letters[0].batch, letters[0].attempts) == ("night", 2)
    assert all(row.died_at > LONG_AGO for row in letters)
