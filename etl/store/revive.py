"""Dead letters whose reason may have passed go back into the queue, each when its time has come."""

from sqlalchemy import Connection, delete, func, select, update

from etl.database.dialects import in_pairs, lock, on_pairs, plan_by_index, upsert
from etl.database.schema import dead_letters, fetch_queue
from etl.database.types import utc_now
from etl.model import Pair
from etl.store.marks import mark
from etl.store.status import BEST_PRIORITY, IS_QUEUED

PIECE = 1_000

_dead = dead_letters.c
_NOW = select(utc_now()).scalar_subquery()  # one instant: an index isn't searched for a clock that moves
_DUE = select(_dead.deployment_id, _dead.scan_id).where(_dead.retry_at <= _NOW).order_by(_dead.retry_at).limit(PIECE)
_BACK = select(_dead.deployment_id, _dead.scan_id, BEST_PRIORITY, _dead.attempts, _dead.expires_at).where(
    _dead.expires_at > utc_now()
)
# Not that of an index, or PostgreSQL might read all of that for the sake of its order.
_IN_ORDER = _BACK.order_by(*(func.coalesce(column, 0) for column in dead_letters.primary_key))
_FORGET_QUEUED = delete(dead_letters).where(IS_QUEUED)
_KEEP_EXPIRED = update(dead_letters).where(_dead.expires_at <= utc_now()).values(retry_at=None)


def revive(connection: Connection) -> int:
    """Queue the dead letters whose time has come, `PIECE` at most, due now and with the attempts that they have spent:
    one more failure, and they are dead again. What has expired meanwhile stays dead. Returns how many are alive.

    The queue's rows come first, those that are there already too, as in `requeue_dead`.
    """
    plan_by_index(connection)
    pairs = sorted(Pair(*row) for row in connection.execute(_DUE))
    if not pairs:
        return 0
    back = _IN_ORDER.where(in_pairs(connection, dead_letters, pairs))
    into = upsert(connection, fetch_queue, lambda _: {"priority": fetch_queue.c.priority})
    connection.execute(into.from_select(list(_BACK.selected_columns.keys()), back))
    lock(connection, dead_letters, pairs)
    count = on_pairs(connection, _FORGET_QUEUED, dead_letters, pairs).rowcount
    on_pairs(connection, _KEEP_EXPIRED, dead_letters, pairs)
    mark(connection, pairs)
    return count
