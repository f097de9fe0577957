"""Filling the queue: the pairs of an input are staged, in many transactions, and merged into the queue in one.

A stage is named after the run that reads the input. It has a row for each piece of it, for a row for each pair would
cost as much as the queue's own; so a pair may be in it twice. It is whole while it has its mark in `staged_pairs`:
whoever removes what a run that isn't at work has staged removes the mark too. After the merge `staged_pairs` has what
the run shares: the pairs in the batch of another run at work. It waits for them, and takes over what the other one
leaves behind.
"""

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from etl.database.dialects import (
    distinct,
    in_pairs,
    locked,
    on_pairs,
    opaque_to_planner,
    pairs_in,
    plan_by_index,
    upsert,
)
from etl.database.schema import dead_letters, fetch_queue, scans, staged_pairs, staged_pieces
from etl.database.types import add_seconds, ready_now
from etl.errors import DatabaseError
from etl.model import RETENTION, STILL_RUNNING, Enqueued, Pair
from etl.store.marks import mark_listed
from etl.store.queue import FILE_PRIORITY, batches_of
from etl.store.runs import at_work

PIECE = 10_000
_MARK = Pair(0, 0)
"""No scan has these ids."""

_q = fetch_queue.c
_staged, _pieces = staged_pairs.c, staged_pieces.c
_KEY = (_q.deployment_id, _q.scan_id)


def _same(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    return and_(one.c.deployment_id == other.c.deployment_id, one.c.scan_id == other.c.scan_id)


def _has(table: FromClause, *which: ColumnElement[bool], of: FromClause = staged_pairs) -> ColumnElement[bool]:
    """Whether a table has a row, which is `which`, of a pair in `of`: looked up by its key, for each pair.

    Not by EXISTS or a join: a queue that was empty when PostgreSQL counted it seems to it as well read as a whole, for
    each pair or at once. Nor by the index of batches, which seems as good before anything was counted.
    """
    found = select(literal(1)).where(_same(table, of), *map(opaque_to_planner, which))
    return found.correlate(of).limit(1).scalar_subquery().is_not(None)


def _of(batch: str) -> ColumnElement[bool]:
    """The pairs that a run shares, without the mark of its stage."""
    return and_(_staged.batch == batch, _staged.deployment_id > _MARK.deployment_id)


def _pairs_of(batch: str) -> Select[Any]:
    return select(_staged.deployment_id, _staged.scan_id).where(_of(batch))


def _count(connection: Connection, rows: Select[Any]) -> int:
    found: int = connection.execute(rows.with_only_columns(func.count())).scalar_one()
    return found


def _read(connection: Connection, batch: str, *which: ColumnElement[bool]) -> FromClause:
    """The pairs of a stage, or of those pieces that are `which`, as often as they were read."""
    columns = zip(Pair._fields, pairs_in(connection, _pieces.pairs), strict=True)
    pairs = select(*(column.label(name) for name, column in columns)).select_from(staged_pieces)
    return pairs.where(_pieces.batch == batch, *which).subquery("read_pairs")


def _in_order(connection: Connection, batch: str) -> FromClause:
    """The same in the order of the keys: left to itself PostgreSQL looks for duplicates first, and sorts after that."""
    read = _read(connection, batch)
    return select(read).order_by(read.c.deployment_id, read.c.scan_id).subquery("in_order")


def _once(connection: Connection, batch: str) -> FromClause:
    """The pairs of a stage, each once."""
    return select(_in_order(connection, batch)).distinct().subquery("pairs")


def _count_different(connection: Connection, batch: str) -> int:
    # MariaDB takes four times as long to count the rows of a SELECT DISTINCT.
    read = _in_order(connection, batch)
    count = func.count(read.c.scan_id.distinct()).label("pairs")
    of_each = select(count).group_by(read.c.deployment_id).subquery("of_each")
    return int(connection.execute(select(func.coalesce(func.sum(of_each.c.pairs), 0))).scalar_one())


# Staging


def open_stage(connection: Connection, batch: str) -> None:
    """Begin an empty stage."""
    connection.execute(upsert(connection, staged_pairs).values(batch=batch, **_MARK._asdict()))


def stage(connection: Connection, batch: str, pairs: Sequence[Pair]) -> None:
    """Add a piece to a stage. One that it has already is there once: the answer to a commit may be lost."""
    text = _text(sorted(pairs))
    digest = blake2b(text.encode(), digest_size=16).hexdigest()
    connection.execute(upsert(connection, staged_pieces).values(batch=batch, digest=digest, pairs=text))


def _text(pairs: Sequence[Pair]) -> str:
    return msgspec.json.encode(pairs).decode()


UNSEEN = 3
"""So many deployments are named where none of an input can be asked."""


def unseen(connection: Connection, batch: str, visible: Collection[int]) -> list[int]:
    """Some deployments of a stage, if it has pairs of none that is `visible`."""
    of = _read(connection, batch).c.deployment_id
    if connection.execute(select(of).where(of.in_(visible)).limit(1)).scalar() is not None:
        return []
    return list(connection.execute(select(of).distinct().order_by(of).limit(UNSEEN)).scalars())


def clear(connection: Connection, batch: str) -> None:
    """Remove a stage, and those of runs that are no longer at work."""
    batches = {
        *distinct(connection, (_pieces.batch, _pieces.digest)),
        *distinct(connection, (_staged.batch, _staged.deployment_id)),
    }
    done = sorted(batches - at_work(connection, batches - {batch}))
    if done:
        for table in (staged_pieces, staged_pairs):
            connection.execute(delete(table).where(table.c.batch.in_(done)))


# Merging


_RETENTION_ENDS_AT = add_seconds(scans.c.started_at, literal(RETENTION.total_seconds()))
_IS_FINAL = or_(scans.c.completed_at.is_not(None), scans.c.fetched_at > _RETENTION_ENDS_AT)
"""Whether a stored scan is final, or was still unfinished when the API had shown it for the last time."""


def staged(connection: Connection, batch: str, valid: int, *, refresh: bool) -> tuple[Enqueued, Select[Any]]:
    """What would become of the `valid` pairs of an input, and those to queue: each once, without the final ones
    (unless `refresh`). Whoever asks reads them again and again, so that they are put into `staged_pairs`."""
    once = _once(connection, batch)
    rows = select(literal(batch).label("batch"), once).order_by(once.c.deployment_id, once.c.scan_id)
    connection.execute(upsert(connection, staged_pairs).from_select(["batch", *Pair._fields], rows))
    pairs = _pairs_of(batch)
    wanted = pairs if refresh else pairs.where(~_has(scans, _IS_FINAL))
    different, queued = _count(connection, pairs), _count(connection, wanted)
    return Enqueued(valid, valid - different, different - queued, queued), wanted


def merge(connection: Connection, stage: str, valid: int, *, batch: str | None, refresh: bool = False) -> Enqueued:
    """Queue the `valid` pairs of a stage. One that is queued already keeps its place, its attempts, its lease, and the
    better priority; it passes to `batch` unless its own batch is that of a run at work.

    DatabaseError if the stage isn't whole.
    """
    plan_by_index(connection)
    is_mark = and_(_staged.batch == stage, _staged.deployment_id == _MARK.deployment_id)
    if not connection.execute(delete(staged_pairs).where(is_mark)).rowcount:
        raise DatabaseError(
            "this process was suspended for more than a minute, and what it had read was removed:"
            " nothing was queued, run it again"
        )
    different = queued = _count_different(connection, stage)
    if not refresh and _leave_out_final(connection, stage):
        queued = _count_different(connection, stage)
    others = _batches_at_work(connection, but=batch)
    mark_listed(connection, _read(connection, stage))
    _queue(connection, stage, batch, others, refresh=refresh)
    queued -= 0 if refresh else _take_back_finished(connection, stage)
    _keep_shared(connection, stage, batch, others)
    return Enqueued(valid, valid - different, different - queued, queued)


def _any_scans(connection: Connection) -> bool:
    return connection.execute(select(scans.c.scan_id).limit(1)).first() is not None


def _leave_out_final(connection: Connection, stage: str) -> bool:
    """Take out of a stage what is final now, and say whether there was any: if it is queued, somebody wants it anew,
    and it isn't ours to take back."""
    if not _any_scans(connection):
        return False
    found = False
    digests = connection.execute(select(_pieces.digest).where(_pieces.batch == stage)).scalars().all()
    for digest in digests:
        is_it = _pieces.digest == digest
        read = _read(connection, stage, is_it)
        final = {Pair(*row) for row in connection.execute(select(read).where(_has(scans, _IS_FINAL, of=read)))}
        if final:
            _leave_out(connection, and_(_pieces.batch == stage, is_it), final)
            found = True
    return found


def _leave_out(connection: Connection, is_it: ColumnElement[bool], pairs: Collection[Pair]) -> None:
    """Take pairs out of a piece."""
    text = connection.execute(select(_pieces.pairs).where(is_it)).scalar_one()
    left = [pair for pair in msgspec.json.decode(text, type=list[Pair]) if pair not in pairs]
    connection.execute(update(staged_pieces).where(is_it).values(pairs=_text(left)))


def _queue(connection: Connection, stage: str, batch: str | None, others: Collection[str], *, refresh: bool) -> None:
    passes = and_(literal(batch is not None), or_(_q.batch.is_(None), _q.batch.not_in(others)))
    wakes = and_(literal(refresh), _q.lease_token.is_(None))

    def change(new: Any) -> dict[str, ColumnElement[Any]]:
        return {
            "batch": case((passes, new.batch), else_=_q.batch),
            "priority": case((new.priority < _q.priority, new.priority), else_=_q.priority),
            "due_at": case((wakes, ready_now()), else_=_q.due_at),
        }

    def differs(new: Any) -> ColumnElement[bool]:
        return or_(
            and_(passes, _q.batch.is_distinct_from(new.batch)),
            new.priority < _q.priority,
            and_(wakes, _q.due_at != ready_now()),
        )

    priority = literal(FILE_PRIORITY if batch else 0).label("priority")
    pairs = _once(connection, stage)
    rows = select(pairs, literal(batch).label("batch"), priority).order_by(pairs.c.deployment_id, pairs.c.scan_id)
    names = [*Pair._fields, "batch", "priority"]
    connection.execute(upsert(connection, fetch_queue, change, differs).from_select(names, rows))


def _batches_at_work(connection: Connection, *, but: str | None) -> list[str]:
    """The batches, but one, whose runs are at work."""
    return sorted(at_work(connection, batches_of(connection)) - {but})


def _take_back_finished(connection: Connection, stage: str) -> int:
    """Take back the pairs that another worker has finished while they were being queued.

    Its queue row was gone by the time ours was inserted, but its scan wasn't there yet when we looked for it.
    """
    if not _any_scans(connection):
        return 0
    read = _read(connection, stage)
    is_stored = _has(scans, scans.c.completed_at.is_not(None), of=read)
    finished = select(read).where(is_stored, _has(fetch_queue, _q.lease_token.is_(None), of=read)).limit(PIECE)
    count = 0
    while pairs := [Pair(*row) for row in connection.execute(finished)]:
        # By their keys: MariaDB would read the whole queue for a DELETE by a subquery.
        count += on_pairs(connection, _TAKE_BACK, fetch_queue, pairs).rowcount
        if len(pairs) < PIECE:
            break
    return count


_TAKE_BACK = delete(fetch_queue).where(_q.lease_token.is_(None))


# Sharing


def _keep_shared(connection: Connection, stage: str, batch: str | None, others: Collection[str]) -> None:
    """Leave of the stage only what is in the batch of another run."""
    if batch is not None and others:
        pairs = _once(connection, stage)
        is_shared = _has(fetch_queue, _q.batch.in_(others), of=pairs)
        shared = select(literal(stage).label("batch"), pairs).where(is_shared)
        connection.execute(insert(staged_pairs).from_select(["batch", *Pair._fields], shared))
    connection.execute(delete(staged_pieces).where(_pieces.batch == stage))


_IS_RUNNING = and_(_q.error_kind.is_not_distinct_from(STILL_RUNNING), _q.lease_token.is_(None))
_DIED = and_(_has(dead_letters), ~_has(fetch_queue))


def take_over(connection: Connection, batch: str) -> int:
    """Take up to `PIECE` of the shared pairs that no run at work has into a run's own batch, and forget those that are
    done. Returns how many were taken."""
    plan_by_index(connection)
    others = _batches_at_work(connection, but=batch)
    is_taken = _has(fetch_queue, _q.batch.in_(others))  # one that has left the queue isn't
    in_order = _pairs_of(batch).order_by(_staged.deployment_id, _staged.scan_id)
    rows = in_order.where(~is_taken, ~_DIED).limit(PIECE)
    free = [Pair(*row) for row in connection.execute(rows)]
    if not free:
        return 0
    here = [Pair(*row) for row in locked(connection, fetch_queue, free)]
    is_free = opaque_to_planner(or_(_q.batch.is_(None), _q.batch.not_in(others)))
    ours = update(fetch_queue).where(in_pairs(connection, fetch_queue, here), is_free)
    taken: int = connection.execute(ours.values(batch=batch)).rowcount
    is_anothers = _has(fetch_queue, _q.batch.is_distinct_from(batch))
    theirs = and_(_staged.batch == batch, in_pairs(connection, staged_pairs, free), ~is_anothers, ~_DIED)
    connection.execute(delete(staged_pairs).where(theirs))
    return taken


def awaits(connection: Connection, batch: str, without: Collection[int] = ()) -> bool:
    """Whether another run still has a shared pair in work, of a deployment that isn't `without`."""
    plan_by_index(connection)
    shared = _shared(batch, ~_IS_RUNNING).where(_staged.deployment_id.not_in(without))
    return connection.execute(shared.limit(1)).first() is not None


def _shared(batch: str, *which: ColumnElement[bool]) -> Select[Any]:
    return _pairs_of(batch).where(_has(fetch_queue, _q.batch.is_distinct_from(batch), *which))


def shared_left(connection: Connection, batch: str) -> tuple[int, int]:
    """How many shared pairs are still queued, and how many of other runs' batches wait for a scan that still runs."""
    plan_by_index(connection)
    running = _count(connection, _shared(batch, _IS_RUNNING))
    return _count(connection, _shared(batch)) - running, running


def died(connection: Connection, batch: str) -> int:
    """How many pairs of a run are dead letters, of its batch or shared."""
    of_batch = select(dead_letters.c.scan_id).where(dead_letters.c.batch == batch)
    return _count(connection, of_batch) + _count(connection, select(_staged.scan_id).where(_of(batch), _DIED))
