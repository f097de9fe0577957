"""The queue: one table, one row for every pair that still has to be fetched.

A row is ready when its `due_at` has passed. A lease moves `due_at` into the future and writes the worker's
token; when it isn't renewed it ends by itself. A verdict counts only while the token still matches.
All instants come from the database's clock.

Ready rows go by priority (the lower first), then by what expires first, then by age. A new row stands in that line,
for its `due_at` is `at_once`; one that was put off joins it again when its time has come. So the line is one stretch
of the index, without the rows that are leased or wait, however many there are.
"""

import random
from collections.abc import Collection, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Integer,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql.expression import bindparam

from etl.database import (
    Change,
    by_keys_alone,
    change_chosen,
    distinct,
    in_pairs,
    lock,
    on_pairs,
    remove,
    unguessed,
)
from etl.listings import ended, mark_gone
from etl.load import load_scans
from etl.model import (
    PERISHES_AFTER,
    STILL_RUNNING,
    Dead,
    Done,
    Later,
    Lease,
    Pair,
    Released,
    Settled,
    Verdict,
    Waiting,
    pair_of,
)
from etl.schema import at_once, dead_letters, fetch_queue, moved, utc_now

FILE_PRIORITY = 10
"""The pairs of a `run FILE` go after those that any program has queued, which have 0, and those that are discovered:
it may hold millions, and whoever drains the queue isn't to wait for them."""

EXPIRED = "expired"
"""The `error_kind` of a pair that nobody could fetch while the API had it."""

_q = fetch_queue.c
_KEY = (_q.deployment_id, _q.scan_id)


# Leasing


_TURN = (_q.priority, _q.expires_at, _q.enqueued_at)
_OF_BATCH = _q.batch == bindparam("of_batch")
_OURS = unguessed(_q.lease_token == bindparam("ours"))


def lease(
    connection: Connection,
    token: str,
    limit: int,
    lease_seconds: float,
    *,
    batch: str | None = None,
    below: int | None = None,
    without: Collection[int] = (),
) -> list[Lease]:
    """Take up to `limit` ready pairs, of one batch or of the whole queue, fairly from all deployments but those
    `without`. Of the whole queue `below` leaves out this priority and what goes after it."""
    if limit <= 0:
        return []
    deployments = [found for found in deployments_of(connection, batch) if found not in without]
    random.shuffle(deployments)
    bring_back, take = _changes(batch is not None, below is not None)
    given: dict[str, Any] = {"of_batch": batch, "below": below}
    for deployment in deployments:
        change_chosen(connection, bring_back, **given, of_deployment=deployment, most=2 * limit)
    given |= {"ours": token, "seconds": lease_seconds}
    taken: list[Lease] = []
    while deployments and len(taken) < limit:
        share = -(-(limit - len(taken)) // len(deployments))
        full = []
        for deployment in deployments:
            most = min(share, limit - len(taken))
            rows = change_chosen(connection, take, **given, of_deployment=deployment, most=most) if most else ()
            rows = sorted(rows, key=itemgetter(3, 4, 5))  # by _TURN
            taken += [Lease(Pair(row[0], row[1]), row[2], row[4]) for row in rows]
            if len(rows) == share:
                full.append(deployment)
        deployments = full
    return taken


@cache
def _changes(of_batch: bool, below: bool) -> tuple[Change, Change]:
    """The two that a lease makes, in the rows of one deployment that stand in line, or in those of a batch.

    The first lets rows that were put off until now join the line: where many come back at once, by and by.
    The second takes the first rows of the line.
    """
    which = [_q.deployment_id == bindparam("of_deployment")]
    if of_batch:
        which.insert(0, _OF_BATCH)
    if below:
        which.append(_q.priority < bindparam("below"))
    index_name = "ix_fetch_queue_batch" if of_batch else "ix_fetch_queue_due"
    rows = select(*_KEY).where(*which).limit(bindparam("most", type_=Integer)).with_for_update(skip_locked=True)
    # Before MySQL has counted the rows of a new queue it may choose to sort them, and locks all that are due.
    rows = rows.with_hint(fetch_queue, f"FORCE INDEX ({index_name})", "mysql")
    # As a subquery it is one instant: an index isn't searched for a clock that moves.
    now = select(utc_now()).scalar_subquery()
    put_off = rows.where(_q.due_at > at_once(), _q.due_at <= now).order_by(_q.due_at)
    ready = rows.where(_q.due_at == at_once()).order_by(*_TURN)
    leased = {"due_at": moved(utc_now(), bindparam("seconds")), "lease_token": bindparam("ours")}
    return (
        Change(put_off, fetch_queue, {"due_at": at_once()}, _KEY),
        Change(ready, fetch_queue, leased, (*_KEY, _q.attempts, *_TURN)),
    )


def deployments_of(connection: Connection, batch: str | None) -> list[int]:
    """The deployments that a batch, or the whole queue, has pairs of."""
    if batch is None:
        return distinct(connection, _q.deployment_id)
    return distinct(connection, _q.deployment_id, _OF_BATCH, of_batch=batch)


_HAS_BATCH = _q.batch.is_not(None)


def batches_of(connection: Connection) -> set[str]:
    """The batches that the queue has pairs of."""
    return {batch for batch in distinct(connection, _q.batch, _HAS_BATCH) if batch is not None}


_RENEW = update(fetch_queue).where(_OURS).values(due_at=moved(utc_now(), bindparam("seconds")))
_RELEASE = update(fetch_queue).where(_OURS).values(due_at=at_once(), lease_token=None)


def renew(connection: Connection, token: str, pairs: Sequence[Pair], lease_seconds: float) -> int:
    """Lengthen the leases of pairs in work, and return how many were still ours."""
    lock(connection, fetch_queue, pairs, _OURS, ours=token)
    return on_pairs(connection, _RENEW, fetch_queue, pairs, ours=token, seconds=lease_seconds).rowcount


# Settling


def settle(connection: Connection, token: str, verdicts: Sequence[Verdict], run_id: str) -> Settled:
    """Write the verdicts whose lease is still ours, rows and receipts together."""
    by_keys_alone(connection)
    lock(connection, fetch_queue, [pair_of(verdict) for verdict in verdicts], _OURS, ours=token)
    done = [verdict for verdict in verdicts if isinstance(verdict, Done)]
    waiting = [verdict for verdict in verdicts if isinstance(verdict, Waiting)]
    if over := ended(connection, [verdict.rows.pair for verdict in waiting]):
        done += [Done(verdict.rows, verdict.again) for verdict in waiting if verdict.rows.pair in over]
        waiting = [verdict for verdict in waiting if verdict.rows.pair not in over]
    later = [verdict for verdict in verdicts if isinstance(verdict, Later)]
    dead = [verdict for verdict in verdicts if isinstance(verdict, Dead)]

    kept = _remove(connection, token, [verdict.rows.pair for verdict in done])
    done = [verdict for verdict in done if verdict.rows.pair in kept] if len(kept) < len(done) else done
    letters = _letters(connection, token, dead, run_id)
    waiting = _wait(connection, token, waiting)
    delayed = _delay(connection, token, later)
    released = _release(connection, token, [verdict.pair for verdict in verdicts if isinstance(verdict, Released)])
    _bury(connection, kept, letters)
    stored: list[Done | Waiting] = [*done, *waiting]
    again = {verdict.rows.pair for verdict in stored if verdict.again}
    loaded = load_scans(connection, [verdict.rows for verdict in stored], run_id, again)
    lost = len(verdicts) - len(done) - len(waiting) - delayed - len(letters) - released
    return Settled(*loaded, len(waiting), delayed, len(letters), released, lost)


def _remove(connection: Connection, token: str, pairs: Sequence[Pair]) -> set[Pair]:
    if not pairs:
        return set()
    removed = remove(connection, fetch_queue, pairs, _OURS, _KEY, ours=token)
    return set(pairs) if len(removed) == len(pairs) else {Pair(*row) for row in removed}


_DELAY = (
    update(fetch_queue)
    .where(_q.deployment_id == bindparam("deployment"), _q.scan_id == bindparam("scan"), _OURS)
    .values(due_at=moved(utc_now(), bindparam("seconds")), lease_token=None)
)
_WAIT = _DELAY.values(error_kind=STILL_RUNNING, error=None, expires_at=bindparam("expiry"))
_LATER = _DELAY.values(attempts=bindparam("tries"), error_kind=bindparam("kind"), error=bindparam("reason"))


def _wait(connection: Connection, token: str, waiting: Sequence[Waiting]) -> list[Waiting]:
    kept = []
    for verdict in waiting:
        values = {**_place(verdict.rows.pair, token, verdict.delay_seconds), "expiry": verdict.expires_at}
        if connection.execute(_WAIT, values).rowcount:
            kept.append(verdict)
    return kept


def _delay(connection: Connection, token: str, later: Sequence[Later]) -> int:
    if not later:
        return 0
    values = [
        {
            **_place(verdict.pair, token, verdict.delay_seconds),
            "tries": verdict.attempts,
            "kind": verdict.error_kind,
            "reason": verdict.error,
        }
        for verdict in later
    ]
    return connection.execute(_LATER, values).rowcount


def _release(connection: Connection, token: str, pairs: Sequence[Pair]) -> int:
    return on_pairs(connection, _RELEASE, fetch_queue, pairs, ours=token).rowcount if pairs else 0


def _place(pair: Pair, token: str, delay_seconds: float) -> dict[str, Any]:
    return {"deployment": pair[0], "scan": pair[1], "ours": token, "seconds": delay_seconds}


def _letters(connection: Connection, token: str, dead: Sequence[Dead], run_id: str) -> list[dict[str, Any]]:
    """Take what is given up out of the queue: as the dead letters that it becomes."""
    if not dead:
        return []
    reasons = {verdict.pair: verdict for verdict in dead}
    removed = remove(connection, fetch_queue, list(reasons), _OURS, tuple(_q), ours=token)
    letters = []
    for values in removed:
        row = dict(zip(fetch_queue.c.keys(), values, strict=True))
        reason = reasons[Pair(row["deployment_id"], row["scan_id"])]
        letters.append(
            {
                **row,
                "lease_token": None,
                "attempts": reason.attempts,
                "error_kind": reason.error_kind,
                "error": reason.error,
                "http_status": reason.http_status,
                "run_id": run_id,
            }
        )
    return letters


_FORGET_DEAD = delete(dead_letters)


def _bury(connection: Connection, done: Collection[Pair], letters: Sequence[dict[str, Any]]) -> None:
    """Forget the dead letters of what is done, and write these. Only what was ours comes here: of other pairs somebody
    else has said the last word, which may be a dead letter."""
    status_of = {Pair(letter["deployment_id"], letter["scan_id"]): letter["http_status"] for letter in letters}
    forgotten = [*done, *status_of]
    if forgotten:
        lock(connection, dead_letters, forgotten)
        on_pairs(connection, _FORGET_DEAD, dead_letters, forgotten)
    if letters:
        connection.execute(insert(dead_letters).values(died_at=utc_now()), letters)
        mark_gone(connection, [pair for pair, status in status_of.items() if status == 404])


BURIED_AT_ONCE = 10_000


def bury_expired(connection: Connection, deployment_id: int, reason: str, run_id: str) -> int:
    """Give up those pairs of a deployment that can't be asked, for `reason`, which the API doesn't show any more, and
    which nobody has leased. Returns how many."""
    is_free = or_(_q.lease_token.is_(None), _q.due_at <= utc_now())
    expired = select(_q.scan_id).where(_q.deployment_id == deployment_id, _q.expires_at <= utc_now(), is_free)
    piece = expired.order_by(_q.scan_id).limit(BURIED_AT_ONCE).with_for_update(skip_locked=True)
    values = {
        "lease_token": null(),
        "error_kind": literal(EXPIRED),
        "error": literal(
            f"expired: the API shows a scan for {PERISHES_AFTER.days} days, and deployment {deployment_id} could not be"
            f" asked until then: {reason}"
        ),
        "died_at": utc_now(),
        "run_id": literal(run_id),
    }
    kept = [column for column in _q if column.name not in values]
    letters = select(*kept, *values.values())
    names = [*(column.name for column in kept), *values]
    count = 0
    while scan_ids := connection.execute(piece).scalars().all():
        pairs = [Pair(deployment_id, scan_id) for scan_id in scan_ids]
        on_pairs(connection, _FORGET_DEAD, dead_letters, pairs)
        of_pairs = letters.where(in_pairs(connection, fetch_queue, pairs))
        connection.execute(insert(dead_letters).from_select(names, of_pairs))
        count += on_pairs(connection, _DROP, fetch_queue, pairs).rowcount
    return count


_DROP = delete(fetch_queue)


# Looking


class Left(NamedTuple):
    """What is still queued of a run's work. `next_due_seconds` is None when nothing will come back to it."""

    remaining: int
    waiting: int
    next_due_seconds: float | None


def left(
    connection: Connection,
    batch: str | None,
    without: Collection[int] = (),
    *,
    below: int | None = None,
    least: int | None = None,
) -> Left:
    """What is left to do: of a batch, or of the whole queue, or of what goes before the priority `below`; from the
    priority `least` on, of another run's batch.

    Of what isn't its own batch a run waits only for retries, not for what others hold or have put off.
    """
    row = _scope(connection, batch, below, least).subquery("row").c
    running = row.error_kind.is_not_distinct_from(STILL_RUNNING) & row.lease_token.is_(None)
    coming = ~running
    if batch is None or least is not None:
        coming = and_(coming, row.lease_token.is_(None), or_(row.error_kind.is_not(None), row.due_at <= utc_now()))
    if without:
        coming = and_(coming, row.deployment_id.not_in(without))
    found = connection.execute(
        select(
            func.coalesce(func.sum(case((running, 0), else_=1)), 0),
            func.coalesce(func.sum(case((running, 1), else_=0)), 0),
            func.min(case((coming, row.due_at))),
            utc_now(),
        )
    ).one()
    seconds = None if found[2] is None else max(0.0, (found[2] - found[3]).total_seconds())
    return Left(int(found[0]), int(found[1]), seconds)


def _scope(
    connection: Connection, batch: str | None, below: int | None, least: int | None
) -> Select[Any] | CompoundSelect[Any]:
    """The rows to look at. Below a priority they are two stretches of the index: millions behind them cost nothing."""
    rows = select(_q.deployment_id, _q.due_at, _q.lease_token, _q.error_kind)
    if batch is not None:
        of_batch = rows.where(_q.batch == batch)
        return of_batch if least is None else of_batch.where(_q.priority >= least)
    if below is None:
        return rows
    before = rows.where(_q.deployment_id.in_(deployments_of(connection, None)), _q.priority < below)
    return before.where(_q.due_at == at_once()).union_all(before.where(_q.due_at > at_once()))
