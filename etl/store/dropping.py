"""Taking pairs out of the queue that nobody has fetched, piece by piece: what somebody drops, and what has expired."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, literal, null, or_, select, true

from etl.database.connection import Database
from etl.database.dialects import in_pairs, locked, on_pairs, plan_by_index, remove
from etl.database.schema import dead_letters, fetch_queue
from etl.database.types import add_seconds, utc_now
from etl.model import RETENTION, Pair
from etl.store.listings import mark_dropped
from etl.store.marks import mark
from etl.store.queue import deployments_of

PIECE = 10_000
EXPIRED = "expired"
"""The `error_kind` of a pair that nobody could fetch while the API had it."""

_q = fetch_queue.c
_KEY = (_q.deployment_id, _q.scan_id)
_IS_IN_WORK = and_(_q.lease_token.is_not(None), _q.due_at > utc_now())


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of queued pairs. What is None doesn't narrow it; the age is since they were queued."""

    deployment_id: int | None = None
    kind: str | None = None
    older_than_seconds: float | None = None

    def condition(self) -> ColumnElement[bool]:
        """The WHERE of the choice."""
        found: list[ColumnElement[bool]] = [true()]
        if self.deployment_id is not None:
            found.append(_q.deployment_id == self.deployment_id)
        if self.kind is not None:
            found.append(_q.error_kind == self.kind)
        if self.older_than_seconds is not None:
            found.append(_q.enqueued_at < add_seconds(utc_now(), literal(-self.older_than_seconds)))
        return and_(*found)


class Dropped(NamedTuple):
    """How many pairs have left the queue, and how many of those chosen are in a worker's hands and have stayed."""

    dropped: int = 0
    in_work: int = 0

    def plus(self, more: "Dropped") -> "Dropped":
        """Both together."""
        return Dropped(self.dropped + more.dropped, self.in_work + more.in_work)


def drop_chosen(database: Database, choice: Choice) -> Dropped:
    """Drop the chosen pairs of the whole queue."""
    found, condition = Dropped(), choice.condition()
    for pairs in _pieces(database, choice, condition):
        found = found.plus(database.run_here(partial(_drop, condition=condition, pairs=pairs)))
    return found


def drop_pairs(database: Database, choice: Choice, pairs: Sequence[Pair]) -> Dropped:
    """Drop those of these pairs that are chosen."""
    return database.run_here(partial(_drop, condition=choice.condition(), pairs=pairs))


def _pieces(database: Database, choice: Choice, condition: ColumnElement[bool]) -> Iterator[Sequence[Pair]]:
    chosen = [choice.deployment_id] if choice.deployment_id is not None else None
    for deployment_id in chosen or database.run_here(partial(deployments_of, batch=None)):
        of_deployment = select(*_KEY).where(_q.deployment_id == deployment_id, condition)
        following = of_deployment.order_by(_q.scan_id).limit(PIECE)
        pairs = database.run_here(partial(_read, rows=following))
        while pairs:
            yield pairs
            pairs = database.run_here(partial(_read, rows=following.where(_q.scan_id > pairs[-1].scan_id)))


def _read(connection: Connection, rows: Select[Any]) -> Sequence[Pair]:
    return [Pair(*row) for row in connection.execute(rows)]


_IN_WORK = select(func.count()).select_from(fetch_queue).where(_IS_IN_WORK)


def _drop(connection: Connection, condition: ColumnElement[bool], pairs: Sequence[Pair]) -> Dropped:
    plan_by_index(connection)
    here = [Pair(*row) for row in locked(connection, fetch_queue, pairs)]
    in_work: int = on_pairs(connection, _IN_WORK.where(condition), fetch_queue, here).scalar_one()
    removed = remove(connection, fetch_queue, here, and_(condition, ~_IS_IN_WORK), _KEY)
    dropped = [Pair(*row) for row in removed]
    mark_dropped(connection, dropped)
    return Dropped(len(dropped), in_work)


def bury_expired(connection: Connection, deployment_id: int, reason: str, run_id: str) -> int:
    """Give up those pairs of a deployment that can't be asked, for `reason`, which the API doesn't show any more, and
    which nobody has leased. Returns how many: `PIECE` at most, so that nobody waits for long."""
    plan_by_index(connection)
    is_free = or_(_q.lease_token.is_(None), _q.due_at <= utc_now())
    expired = select(_q.scan_id).where(_q.deployment_id == deployment_id, _q.expires_at <= utc_now(), is_free)
    piece = expired.order_by(_q.scan_id).limit(PIECE).with_for_update(skip_locked=True)
    values = {
        "lease_token": null(),
        "error_kind": literal(EXPIRED),
        "error": literal(
            f"expired: the API shows a scan for {RETENTION.days} days, and deployment {deployment_id} could not be"
            f" asked until then: {reason}"
        ),
        "died_at": utc_now(),
        "run_id": literal(run_id),
    }
    kept = [column for column in _q if column.name not in values]
    letters = select(*kept, *values.values())
    names = [*(column.name for column in kept), *values]
    pairs = [Pair(deployment_id, scan_id) for scan_id in connection.execute(piece).scalars()]
    if not pairs:
        return 0
    on_pairs(connection, _FORGET_DEAD, dead_letters, pairs)
    of_pairs = letters.where(in_pairs(connection, fetch_queue, pairs))
    connection.execute(insert(dead_letters).from_select(names, of_pairs))
    mark(connection, pairs)
    return on_pairs(connection, _DROP, fetch_queue, pairs).rowcount


_DROP = delete(fetch_queue)
_FORGET_DEAD = delete(dead_letters)
