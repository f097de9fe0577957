"""What became of leased pairs is written down: rows and receipts in one transaction, while the leases are ours."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    delete,
    insert,
    update,
)
from sqlalchemy.sql.expression import bindparam

from etl.database.dialects import lock, on_pairs, remove
from etl.database.schema import dead_letters, fetch_queue
from etl.database.types import at_once, moved, utc_now
from etl.model import (
    STILL_RUNNING,
    Dead,
    Done,
    Later,
    Pair,
    Released,
    Settled,
    Verdict,
    Waiting,
    pair_of,
)
from etl.store.listings import ended, mark_gone
from etl.store.queue import KEY, OURS
from etl.store.scans import load_scans

_q = fetch_queue.c


_RELEASE = update(fetch_queue).where(OURS).values(due_at=at_once(), lease_token=None)


def settle(connection: Connection, token: str, verdicts: Sequence[Verdict], run_id: str) -> Settled:
    """Write the verdicts whose lease is still ours, rows and receipts together."""
    lock(connection, fetch_queue, [pair_of(verdict) for verdict in verdicts], OURS, ours=token)
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
    removed = remove(connection, fetch_queue, pairs, OURS, KEY, ours=token)
    return set(pairs) if len(removed) == len(pairs) else {Pair(*row) for row in removed}


_DELAY = (
    update(fetch_queue)
    .where(_q.deployment_id == bindparam("deployment"), _q.scan_id == bindparam("scan"), OURS)
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
