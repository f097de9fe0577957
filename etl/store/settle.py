"""What became of leased pairs is written down: rows and receipts in one transaction, while the leases are ours."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Double, case, delete, insert, update
from sqlalchemy.sql.expression import bindparam

from etl.database.dialects import lock, on_pairs, remove
from etl.database.schema import dead_letters, fetch_queue
from etl.database.types import UtcDateTime, add_seconds, ready_now, utc_now
from etl.model import STILL_RUNNING, Complete, Discard, Outcome, Pair, Release, Retry, Settled, Snooze, pair_of
from etl.store.listings import ended, mark_gone
from etl.store.marks import mark
from etl.store.queue import KEY, OURS
from etl.store.scans import load_scans

_q = fetch_queue.c


_RELEASE = update(fetch_queue).where(OURS).values(due_at=ready_now(), lease_token=None)


def settle(connection: Connection, token: str, outcomes: Sequence[Outcome], run_id: str) -> Settled:
    """Write the outcomes whose lease is still ours, rows and receipts together."""
    lock(connection, fetch_queue, [pair_of(outcome) for outcome in outcomes], OURS, ours=token)
    done = [outcome for outcome in outcomes if isinstance(outcome, Complete)]
    waiting = [outcome for outcome in outcomes if isinstance(outcome, Snooze)]
    if over := ended(connection, [outcome.rows.pair for outcome in waiting]):
        done += [Complete(outcome.rows, outcome.again) for outcome in waiting if outcome.rows.pair in over]
        waiting = [outcome for outcome in waiting if outcome.rows.pair not in over]
    later = [outcome for outcome in outcomes if isinstance(outcome, Retry)]
    dead = [outcome for outcome in outcomes if isinstance(outcome, Discard)]

    kept = _remove(connection, token, [outcome.rows.pair for outcome in done])
    done = [outcome for outcome in done if outcome.rows.pair in kept] if len(kept) < len(done) else done
    letters = _letters(connection, token, dead, run_id)
    waiting = _wait(connection, token, waiting)
    delayed = _delay(connection, token, later)
    released = _release(connection, token, [outcome.pair for outcome in outcomes if isinstance(outcome, Release)])
    _bury(connection, kept, letters)
    stored: list[Complete | Snooze] = [*done, *waiting]
    again = {outcome.rows.pair for outcome in stored if outcome.again}
    loaded = load_scans(connection, [outcome.rows for outcome in stored], run_id, again)
    lost = len(outcomes) - len(done) - len(waiting) - delayed - len(letters) - released
    return Settled(*loaded, len(waiting), delayed, len(letters), released, lost)


def _remove(connection: Connection, token: str, pairs: Sequence[Pair]) -> set[Pair]:
    if not pairs:
        return set()
    removed = remove(connection, fetch_queue, pairs, OURS, KEY, ours=token)
    return set(pairs) if len(removed) == len(pairs) else {Pair(*row) for row in removed}


_DELAY = (
    update(fetch_queue)
    .where(_q.deployment_id == bindparam("deployment"), _q.scan_id == bindparam("scan"), OURS)
    .values(due_at=add_seconds(utc_now(), bindparam("seconds")), lease_token=None)
)
_WAIT = _DELAY.values(error_kind=STILL_RUNNING, error=None, expires_at=bindparam("expiry"))
_LATER = _DELAY.values(attempts=bindparam("tries"), error_kind=bindparam("kind"), error=bindparam("reason"))


def _wait(connection: Connection, token: str, waiting: Sequence[Snooze]) -> list[Snooze]:
    kept = []
    for outcome in waiting:
        values = {**_place(outcome.rows.pair, token, outcome.delay_seconds), "expiry": outcome.expires_at}
        if connection.execute(_WAIT, values).rowcount:
            kept.append(outcome)
    return kept


def _delay(connection: Connection, token: str, later: Sequence[Retry]) -> int:
    if not later:
        return 0
    values = [
        {
            **_place(outcome.pair, token, outcome.delay_seconds),
            "tries": outcome.attempts,
            "kind": outcome.error_kind,
            "reason": outcome.error,
        }
        for outcome in later
    ]
    return connection.execute(_LATER, values).rowcount


def _release(connection: Connection, token: str, pairs: Sequence[Pair]) -> int:
    return on_pairs(connection, _RELEASE, fetch_queue, pairs, ours=token).rowcount if pairs else 0


def _place(pair: Pair, token: str, delay_seconds: float) -> dict[str, Any]:
    return {"deployment": pair[0], "scan": pair[1], "ours": token, "seconds": delay_seconds}


def _letters(connection: Connection, token: str, dead: Sequence[Discard], run_id: str) -> list[dict[str, Any]]:
    """Take what is given up out of the queue: as the dead letters that it becomes."""
    if not dead:
        return []
    reasons = {outcome.pair: outcome for outcome in dead}
    removed = remove(connection, fetch_queue, list(reasons), OURS, tuple(_q), ours=token)
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
                "again_in": reason.again_in_seconds,
                "expiry": row["expires_at"],
            }
        )
    return letters


_FORGET_DEAD = delete(dead_letters)
_AGAIN_AT = add_seconds(utc_now(), bindparam("again_in", type_=Double))
_IN_TIME = case((bindparam("expiry", type_=UtcDateTime) > _AGAIN_AT, _AGAIN_AT))
_INSERT_DEAD = insert(dead_letters).values(died_at=utc_now(), retry_at=_IN_TIME)
GONE = frozenset({404, 410})
"""With these the API says that it has no details of a scan any more."""


def _bury(connection: Connection, done: Collection[Pair], letters: Sequence[dict[str, Any]]) -> None:
    """Forget the dead letters of what is done, and write these. Only what was ours comes here: of other pairs somebody
    else has said the last word, which may be a dead letter."""
    status_of = {Pair(letter["deployment_id"], letter["scan_id"]): letter["http_status"] for letter in letters}
    forgotten = [*done, *status_of]
    if forgotten:
        lock(connection, dead_letters, forgotten)
        on_pairs(connection, _FORGET_DEAD, dead_letters, forgotten)
    if letters:
        connection.execute(_INSERT_DEAD, letters)
        mark(connection, list(status_of))
        mark_gone(connection, [pair for pair, status in status_of.items() if status in GONE])
