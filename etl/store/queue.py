"""The queue: one table, one row for every pair that still has to be fetched.

A row is ready when its `due_at` has passed. A lease moves `due_at` into the future and writes the worker's
token; when it isn't renewed it ends by itself. An outcome counts only while the token still matches.
All instants come from the database's clock.

Ready rows go by priority (the lower first), then by what expires first, then by age. A new row stands in that line,
for its `due_at` is `ready_now`; one that was put off joins it again when its time has come. So the line is one stretch
of the index, without the rows that are leased or wait, however many there are.
"""

import random
from collections.abc import Collection, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Double, Integer, Select, and_, case, func, or_, select, update
from sqlalchemy.sql.expression import bindparam

from etl.database.dialects import Change, change_chosen, distinct, lock, on_pairs, opaque_to_planner, plan_by_index
from etl.database.schema import fetch_queue
from etl.database.types import add_seconds, ready_now, utc_now
from etl.model import STILL_RUNNING, Lease, Pair

FILE_PRIORITY = 10
"""The pairs of a `run FILE` go after those that any program has queued, which have 0, and those that are discovered:
it may hold millions, and whoever drains the queue isn't to wait for them."""

_q = fetch_queue.c
KEY = (_q.deployment_id, _q.scan_id)


# Leasing


_TURN = (_q.priority, _q.expires_at, _q.enqueued_at)
_IN_LINE = _q.due_at == ready_now()
_OF_BATCH = _q.batch == bindparam("of_batch")
_OF_DEPLOYMENT = _q.deployment_id == bindparam("of_deployment")
_BELOW = _q.priority < bindparam("below")
OURS = opaque_to_planner(_q.lease_token == bindparam("ours"))

BROUGHT_BACK_AT_LEAST = 1_000
"""So many rows at least that were put off until now join the line with each lease, or a small one might have to wait
for long behind those of others."""


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
    plan_by_index(connection)
    deployments = _in_line(connection, batch, without, most=max(2 * limit, BROUGHT_BACK_AT_LEAST))
    random.shuffle(deployments)
    take = _take(batch is not None, below is not None)
    given: dict[str, Any] = {"of_batch": batch, "below": below, "ours": token, "seconds": lease_seconds}
    taken: list[Lease] = []
    while deployments and len(taken) < limit:
        share = -(-(limit - len(taken)) // len(deployments))
        full = []
        for deployment in deployments:
            most = min(share, limit - len(taken))
            rows = change_chosen(connection, take, **given, of_deployment=deployment, most=most) if most else ()
            rows = sorted(rows, key=_turn)
            taken += [Lease(Pair(row.deployment_id, row.scan_id), row.attempts, row.expires_at) for row in rows]
            if len(rows) == share:
                full.append(deployment)
        deployments = full
    return taken


_turn = attrgetter(*(column.name for column in _TURN))


def _in_line(connection: Connection, batch: str | None, without: Collection[int], most: int) -> list[int]:
    """The deployments whose rows may stand in line, once the first of those that were put off until now have joined
    it: where many come back at once, by and by."""
    if batch is None:
        change_chosen(connection, _BRING_BACK, most=most)
        found = distinct(connection, (_q.deployment_id, _q.priority), _IN_LINE)
        return [deployment for deployment in found if deployment not in without]
    found = [deployment for deployment in deployments_of(connection, batch) if deployment not in without]
    for deployment in found:
        change_chosen(connection, _BRING_BACK_OF_BATCH, of_batch=batch, of_deployment=deployment, most=most)
    return found


def _first(index_name: str, *which: ColumnElement[bool]) -> Select[Any]:
    """The first rows by an index, which alone has them in the order that is then asked for."""
    rows = select(*KEY).where(*which).limit(bindparam("most", type_=Integer)).with_for_update(skip_locked=True)
    return _by_index(rows, index_name)


def _by_index(rows: Select[Any], index_name: str) -> Select[Any]:
    """Before MySQL has counted the rows of a new queue it may choose to sort them, and locks all that are due."""
    return rows.with_hint(fetch_queue, f"FORCE INDEX ({index_name})", "mysql")


_DUE, _BATCH = "ix_fetch_queue_due", "ix_fetch_queue_batch"
# As a subquery it is one instant: an index isn't searched for a clock that moves.
_UNTIL_NOW = and_(_q.due_at > ready_now(), _q.due_at <= select(utc_now()).scalar_subquery())
_BRING_BACK = Change(_first(_DUE, _UNTIL_NOW).order_by(_q.due_at), fetch_queue, {"due_at": ready_now()}, KEY)
_BRING_BACK_OF_BATCH = Change(
    _first(_BATCH, _OF_BATCH, _OF_DEPLOYMENT, _UNTIL_NOW).order_by(_q.due_at, *_TURN, _q.scan_id),
    fetch_queue,
    {"due_at": ready_now()},
    KEY,
)


@cache
def _take(of_batch: bool, below: bool) -> Change:
    """Lease the first of a deployment's rows that stand in line."""
    which = [_OF_DEPLOYMENT, _IN_LINE, *[_BELOW] * below]
    if of_batch:
        rows = _first(_BATCH, _OF_BATCH, *which).order_by(*_TURN, _q.scan_id)
    else:
        rows = _first(_DUE, *which).order_by(*_TURN)
    leased = {"due_at": add_seconds(utc_now(), bindparam("seconds")), "lease_token": bindparam("ours")}
    return Change(rows, fetch_queue, leased, (*KEY, _q.attempts, *_TURN))


class LongestWaits(NamedTuple):
    """The longest that the settings of a worker put a row off: with a lease, after a failure, while its scan runs."""

    lease_seconds: float
    retry_seconds: float
    running_seconds: float


USUAL_WAITS = LongestWaits(lease_seconds=900, retry_seconds=900, running_seconds=5_400)
"""What is no longer than that is believed whatever the settings are, for those of other workers may be others."""
DISBELIEVED_AT_ONCE = 10_000


def disbelieve(connection: Connection, longest: LongestWaits) -> int:
    """Bring back rows that workers have put off for longer than they ever do: the database's clock was ahead then.
    Returns how many, `DISBELIEVED_AT_ONCE` at most. What other programs have scheduled has neither a token nor an
    error, and is left alone."""
    plan_by_index(connection)
    bounds = LongestWaits(*map(max, longest, USUAL_WAITS))._asdict()
    values = {**bounds, "shortest_seconds": min(bounds.values()), "most": DISBELIEVED_AT_ONCE}
    return len(change_chosen(connection, _DISBELIEVE, **values))


_LONGEST_SECONDS = case(
    (_q.lease_token.is_not(None), bindparam("lease_seconds", type_=Double)),
    (_q.error_kind == STILL_RUNNING, bindparam("running_seconds", type_=Double)),
    else_=bindparam("retry_seconds", type_=Double),
)
_DISBELIEVE = Change(
    _first(
        _DUE,
        _q.due_at > select(add_seconds(utc_now(), bindparam("shortest_seconds"))).scalar_subquery(),
        or_(_q.lease_token.is_not(None), _q.error_kind.is_not(None)),
        _q.due_at > add_seconds(utc_now(), _LONGEST_SECONDS),
    ).order_by(_q.due_at),
    fetch_queue,
    {"due_at": ready_now()},
    KEY,
)


def deployments_of(connection: Connection, batch: str | None) -> list[int]:
    """The deployments that a batch, or the whole queue, has pairs of."""
    if batch is None:
        return distinct(connection, (_q.deployment_id, _q.scan_id))
    return distinct(connection, (_q.deployment_id, _q.due_at), _OF_BATCH, of_batch=batch)


_HAS_BATCH = _q.batch.is_not(None)


def batches_of(connection: Connection) -> set[str]:
    """The batches that the queue has pairs of."""
    return {batch for batch in distinct(connection, (_q.batch, _q.deployment_id), _HAS_BATCH) if batch is not None}


_RENEW = update(fetch_queue).where(OURS).values(due_at=add_seconds(utc_now(), bindparam("seconds")))


def renew(connection: Connection, token: str, pairs: Sequence[Pair], lease_seconds: float) -> int:
    """Lengthen the leases of pairs in work, and return how many were still ours."""
    lock(connection, fetch_queue, pairs, OURS, ours=token)
    return on_pairs(connection, _RENEW, fetch_queue, pairs, ours=token, seconds=lease_seconds).rowcount


# Looking


class Remaining(NamedTuple):
    """What is still queued of a run's work. `next_due_seconds` is None when nothing will come back to it. Of what
    remains, `leased` ones are in somebody's work, and `retrying` ones back off after a failure."""

    remaining: int
    waiting: int
    next_due_seconds: float | None
    leased: int = 0
    retrying: int = 0


def left(
    connection: Connection,
    batch: str | None,
    without: Collection[int] = (),
    *,
    below: int | None = None,
    least: int | None = None,
    ours: str | None = None,
) -> Remaining:
    """What is left to do: of a batch, or of the whole queue, or of what goes before the priority `below`; from the
    priority `least` on, of another run's batch.

    Of what isn't its own batch a run waits only for retries and for what it has leased itself, which is `ours`, not for
    what others hold or have put off.
    """
    plan_by_index(connection)
    found: list[Any] = []
    for rows, given in _stretches(connection, batch, below, least):
        found += connection.execute(rows, given | {"ours": ours})
    seconds = [
        max(0.0, (row.coming_at - row.now).total_seconds())
        for row in found
        if row.coming_at is not None and row.deployment_id not in without
    ]
    remaining, waiting, leased, retrying = (sum(int(row[at]) for row in found) for at in range(1, 5))
    return Remaining(remaining, waiting, min(seconds, default=None), leased, retrying)


def _stretches(
    connection: Connection, batch: str | None, below: int | None, least: int | None
) -> list[tuple[Select[Any], dict[str, Any]]]:
    """What to count, with its parameters. Below a priority these are stretches of an index: the line of each
    deployment, and what is put off. The millions that go after them cost nothing."""
    if batch is not None and least is not None:
        return [(_LEFT_BEHIND, {"of_batch": batch, "least": least})]
    if batch is not None:
        return [(_LEFT_OF_BATCH, {"of_batch": batch})]
    if below is None:
        return [(_LEFT, {})]
    deployments = distinct(connection, (_q.deployment_id, _q.priority), _IN_LINE)
    in_line = [(_LEFT_IN_LINE, {"below": below, "of_deployment": deployment}) for deployment in deployments]
    return [(_LEFT_PUT_OFF, {"below": below}), *in_line]


def _counts(rows: Select[Any], *, whole_queue: bool = True) -> Select[*tuple[Any, ...]]:
    """By deployment: how many rows remain and wait, and when the first comes back to a run."""
    row = rows.add_columns(_q.deployment_id, _q.due_at, _q.lease_token, _q.error_kind).subquery("row").c
    running = row.error_kind.is_not_distinct_from(STILL_RUNNING) & row.lease_token.is_(None)
    coming = ~running
    if whole_queue:
        # Ours are those of a lease whose answer was lost.
        is_ours = row.lease_token == bindparam("ours")
        comes_back = or_(row.error_kind.is_not(None), row.due_at <= utc_now())
        coming = and_(coming, or_(is_ours, and_(row.lease_token.is_(None), comes_back)))
    # Not by the column as it is: PostgreSQL might read a whole index for the sake of its order.
    deployment_id = func.coalesce(row.deployment_id, 0).label("deployment_id")
    return select(
        deployment_id,
        func.sum(case((running, 0), else_=1)).label("remaining"),
        func.sum(case((running, 1), else_=0)).label("waiting"),
        func.sum(case((row.lease_token.is_not(None), 1), else_=0)).label("leased"),
        func.sum(case((row.lease_token.is_(None) & row.error_kind.is_not(None) & ~running, 1), else_=0)).label(
            "retrying"
        ),
        func.min(case((coming, row.due_at))).label("coming_at"),
        utc_now().label("now"),
    ).group_by(deployment_id)


_LEFT = _counts(select())
_LEFT_BEHIND = _counts(select().where(_OF_BATCH, _q.priority >= bindparam("least")))
_LEFT_OF_BATCH = _counts(select().where(_OF_BATCH), whole_queue=False)
_LEFT_PUT_OFF = _counts(_by_index(select().where(_q.due_at > ready_now(), _BELOW), _DUE))
# In an order that only the right index has.
_LEFT_IN_LINE = _counts(_by_index(select().where(_OF_DEPLOYMENT, _IN_LINE, _BELOW), _DUE).order_by(*_TURN))
