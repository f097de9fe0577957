"""What a run would do, how long it would take, and what the API would no longer have by then. Changes nothing."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, Row, and_, case, func, literal, not_, or_, select, true

from etl.database.dialects import on_pairs, plan_by_index, upsert
from etl.database.schema import fetch_queue, scans
from etl.database.types import UtcDateTime, add_seconds, utc_now
from etl.model import RETENTION, STILL_RUNNING, Pair
from etl.store.enqueue import stage, staged

LONGEST_SECONDS = 10 * 365 * 86_400
"""No scan is known to expire later than this, and databases know no years past 9999."""

STAGE = "plan"

_q = fetch_queue.c


class Share(NamedTuple):
    """What a run would do for one deployment. `not_due` is what it would leave in the queue for now.

    Of the pairs to fetch, the API would no longer have `expiring` ones when their turn comes; of `expiry_unknown`
    ones nobody knows.
    """

    deployment_id: int
    to_fetch: int
    not_due: int
    expiring: int
    expiry_unknown: int


class Plan(NamedTuple):
    """What a run would do at `rate` requests a second. The first two counts are 0 without an input."""

    duplicate: int
    already_final: int
    shares: tuple[Share, ...]
    rate: float

    @property
    def requests(self) -> int:
        """One for each pair, and one for each deployment's token before them. Retries come on top."""
        return sum(share.to_fetch for share in self.shares) + len(self.shares)

    @property
    def seconds(self) -> float:
        """How long the requests take at the rate."""
        return self.requests / self.rate


class _Work(NamedTuple):
    """`rows` of pairs with what is known of them, and those that are `fetched`."""

    deployment_id: ColumnElement[int]
    scan_id: ColumnElement[int]
    rows: FromClause
    fetched: ColumnElement[bool]

    def turn(self, now: datetime) -> ColumnElement[int]:
        """The place of a pair among those of its deployment. What isn't queued yet would be with the defaults."""
        retention_end = now + RETENTION
        new = (
            (_q.priority, 0),
            (_q.expires_at, literal(retention_end, UtcDateTime())),
            (_q.enqueued_at, literal(now, UtcDateTime())),
        )
        order = [func.coalesce(column, default) for column, default in new]
        return func.row_number().over(partition_by=self.deployment_id, order_by=(*order, self.scan_id))


class KnownScan(NamedTuple):
    """What a database knows of some pairs: of its `fetch_queue` and of its `scans` what a plan needs."""

    queued: Sequence[Row[Any]]
    stored: Sequence[Row[Any]]


_QUEUED = select(
    *(
        _q[name]
        for name in "deployment_id scan_id due_at priority lease_token enqueued_at expires_at error_kind".split()
    )
)
_STORED = select(
    *(scans.c[name] for name in "deployment_id scan_id started_at completed_at content_hash".split()),
    *(scans.c[name] for name in "first_fetched_at fetched_at changed_at".split()),
)


def known(connection: Connection, pairs: Sequence[Pair]) -> KnownScan:
    """What the database knows of these pairs."""
    plan_by_index(connection)
    queued = on_pairs(connection, _QUEUED, fetch_queue, pairs).all()
    return KnownScan(queued, on_pairs(connection, _STORED, scans, pairs).all())


def add(connection: Connection, pairs: Sequence[Pair], known: KnownScan) -> None:
    """Add pairs, and what another database knows of them, to one that is the plan's own."""
    stage(connection, STAGE, pairs)
    for table, rows in ((fetch_queue, known.queued), (scans, known.stored)):
        if rows:
            connection.execute(upsert(connection, table), [row._asdict() for row in rows])


def plan_staged(connection: Connection, *, valid: int, now: datetime, rate: float, refresh: bool) -> Plan:
    """What a run would do now with the `valid` pairs of an input, of which `add` has added each."""
    counts, wanted = staged(connection, STAGE, valid, refresh=refresh)
    pairs = wanted.subquery("wanted")
    rows = pairs.outerjoin(fetch_queue, _same(pairs, fetch_queue)).outerjoin(scans, _same(pairs, scans))
    snoozed = and_(_q.error_kind.is_not_distinct_from(STILL_RUNNING), _q.lease_token.is_(None), _q.due_at > now)
    fetched = true() if refresh else not_(snoozed)
    shares = _shares(connection, _Work(pairs.c.deployment_id, pairs.c.scan_id, rows, fetched), rate, now)
    return Plan(counts.duplicate, counts.already_final, shares, rate)


def plan_queue(connection: Connection, *, rate: float) -> Plan:
    """What a run without files would do: all that is due, and the failed pairs, for whose return it waits."""
    now = clock(connection)
    failed = and_(_q.lease_token.is_(None), _q.error_kind.is_not(None), _q.error_kind != STILL_RUNNING)
    rows = fetch_queue.outerjoin(scans, _same(fetch_queue, scans))
    work = _Work(_q.deployment_id, _q.scan_id, rows, or_(_q.due_at <= now, failed))
    return Plan(0, 0, _shares(connection, work, rate, now), rate)


def clock(connection: Connection) -> datetime:
    """What time it is for the database."""
    now: datetime = connection.execute(select(utc_now())).scalar_one()
    return now


def _same(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    return and_(one.c.deployment_id == other.c.deployment_id, one.c.scan_id == other.c.scan_id)


def _shares(connection: Connection, work: _Work, rate: float, now: datetime) -> tuple[Share, ...]:
    retention_seconds = RETENTION.total_seconds()
    # The default says nothing: whoever knew the scan's beginning has written an earlier instant.
    is_known = _q.expires_at < add_seconds(_q.enqueued_at, literal(retention_seconds - 1))
    known = case((is_known, _q.expires_at), else_=add_seconds(scans.c.started_at, literal(retention_seconds)))
    fetched = (
        select(work.deployment_id, known.label("expires_at"), work.turn(now).label("turn"))
        .select_from(work.rows)
        .where(work.fetched)
        .subquery("fetched")
    )
    # Deployments take turns.
    place: ColumnElement[Any] = func.row_number().over(order_by=(fetched.c.turn, fetched.c.deployment_id))
    placed = select(fetched.c.deployment_id, fetched.c.expires_at, place.label("place")).subquery("placed")
    seconds = case((placed.c.place > rate * LONGEST_SECONDS, LONGEST_SECONDS), else_=placed.c.place / rate)
    fetched_at = add_seconds(literal(now, UtcDateTime()), seconds)
    counts = connection.execute(
        select(
            placed.c.deployment_id,
            func.count(),
            func.sum(case((placed.c.expires_at < fetched_at, 1), else_=0)),
            func.sum(case((placed.c.expires_at.is_(None), 1), else_=0)),
        ).group_by(placed.c.deployment_id)
    )
    due = {row[0]: (row[1], row[2], row[3]) for row in counts}
    left = select(work.deployment_id, func.count()).select_from(work.rows).where(not_(work.fetched))
    not_due = {row[0]: row[1] for row in connection.execute(left.group_by(work.deployment_id))}
    shares = []
    for number in sorted({*due, *not_due}):
        to_fetch, expiring, unknown = map(int, due.get(number, (0, 0, 0)))
        shares.append(Share(number, to_fetch, not_due.get(number, 0), expiring, unknown))
    return tuple(shares)


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, e.g. `13 h 53 min`."""
    whole = math.ceil(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
