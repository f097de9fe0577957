"""What the queue holds, who works on it, what was listed, and the dead letters: see, requeue and drop them."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    column,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    table,
    text,
)

from etl.database.dialects import distinct, in_pairs, lock, on_pairs, upsert
from etl.database.schema import dead_letters, fetch_queue, listing_gaps, rate_budgets, repositories, watermarks, workers
from etl.database.summaries import deployment_days
from etl.database.types import add_seconds, ready_now, utc_now
from etl.model import INT64_MAX, STILL_RUNNING, Pair
from etl.store.listings import mark_dropped
from etl.store.marks import mark
from etl.store.queue import lease
from etl.store.runs import Throughput, lives

CHOSEN_AT_ONCE = 10_000
HELD_SECONDS = 5.0
"""Workers reserve the time of their token in pieces of less: what goes further is a wait."""

_q = fetch_queue.c
_dead = dead_letters.c
_worker = workers.c
_mark = watermarks.c
_repo = repositories.c
COVERED = ("listed", "stored", "waiting", "dead", "expired", "dropped", "missing")
"""What can become of a scan that was listed, as in `bi_coverage`."""
_coverage = table("bi_coverage", *(column(name) for name in ("deployment_id", "repository_id", "repository", *COVERED)))

_STATE = case(
    (_q.lease_token.is_not(None) & (_q.due_at > utc_now()), "leased"),
    (_q.due_at <= utc_now(), "due"),
    (_q.error_kind == STILL_RUNNING, "waiting"),
    (_q.error_kind.is_not(None), "retrying"),
    else_="scheduled",
)
STATES = ("due", "leased", "retrying", "waiting", "scheduled")
"""What a queue row can be: ready; in a worker's hands; after a failure; its scan still runs; put off by whoever
queued it."""


def depth(connection: Connection) -> list[dict[str, Any]]:
    """Per deployment: queue rows by state, `dead`, `oldest_due_at` of the rows that are due, and `next_due_at` of the
    others: when something more of it is due."""
    state = _STATE.label("state")
    due_at = case((_q.due_at == ready_now(), _q.enqueued_at), else_=_q.due_at)
    rows = connection.execute(
        select(_q.deployment_id, state, func.count(), func.min(due_at)).group_by(_q.deployment_id, state)
    ).all()
    dead = connection.execute(select(_dead.deployment_id, func.count()).group_by(_dead.deployment_id)).all()
    empty: dict[str, Any] = {**dict.fromkeys((*STATES, "dead"), 0), "oldest_due_at": None, "next_due_at": None}
    found = {number: {"deployment_id": number, **empty} for number in sorted({row[0] for row in (*rows, *dead)})}
    for deployment_id, name, count, oldest in rows:
        found[deployment_id][name] = count
        if name == "due":
            found[deployment_id]["oldest_due_at"] = oldest
        else:
            before = found[deployment_id]["next_due_at"]
            found[deployment_id]["next_due_at"] = min(oldest, before) if before else oldest
    for deployment_id, count in dead:
        found[deployment_id]["dead"] = count
    return list(found.values())


def held_paces(connection: Connection) -> list[dict[str, Any]]:
    """The tokens whose time is reserved for more than a moment, by the deployments that were walked with each: nothing
    is asked with them until `until_at`."""
    held = rate_budgets.c.next_free_at > add_seconds(utc_now(), literal(HELD_SECONDS))
    known = _mark.token_key == rate_budgets.c.token_key
    found = connection.execute(
        select(rate_budgets.c.token_key, rate_budgets.c.next_free_at, _mark.deployment_id)
        .select_from(rate_budgets.outerjoin(watermarks, known))
        .where(held)
        .order_by(_mark.deployment_id, rate_budgets.c.token_key)
    )
    return [{"deployment_id": row.deployment_id, "until_at": row.next_free_at} for row in found]


def at_work(connection: Connection) -> list[dict[str, Any]]:
    """The workers that live or hold leases, the oldest first. Of one that isn't known any more there are only its
    `leases`."""
    leased = select(_q.lease_token, func.count()).where(_q.lease_token.is_not(None), _q.due_at > utc_now())
    held = {row[0]: row[1] for row in connection.execute(leased.group_by(_q.lease_token))}
    speeds = [case((lives(), speed), else_=0.0) for speed in (_worker.requests_per_second, _worker.finished_per_second)]
    names = ("worker", "run_id", "version", "started_at", "seen_at", *Throughput._fields)
    reason = case((lives(), _worker.slow_pace))
    found = connection.execute(
        select(_worker.token, _worker.run_id, _worker.version, _worker.started_at, _worker.seen_at, *speeds, reason)
        .where(or_(lives(), _worker.token.in_(list(held))))
        .order_by(_worker.started_at, _worker.token)
    )
    known = [dict(zip(names, row, strict=True)) for row in found]
    unknown = [dict.fromkeys(names) | {"worker": token} for token in held.keys() - {row["worker"] for row in known}]
    return [{**row, "leases": held.get(row["worker"], 0)} for row in [*known, *unknown]]


def pace(depths: Sequence[Mapping[str, Any]], at_work: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How fast all workers together have been lately, and in how many seconds the queue is empty at that speed.

    Scans that still run, and what is put off, don't count; None where nothing moves.
    """
    requests, finished = (
        sum(row[name] or 0.0 for row in at_work) for name in ("requests_per_second", "finished_per_second")
    )
    left = sum(row[state] for row in depths for state in ("due", "leased", "retrying"))
    seconds = left / finished if finished else None if left else 0.0
    return {
        "requests_per_second": round(requests, 2),
        "finished_per_second": round(finished, 2),
        "seconds_to_drain": seconds and round(seconds, 1),
    }


def coverage(connection: Connection) -> list[dict[str, Any]]:
    """Per deployment: what became of the scans that were listed (as in `bi_coverage`), and how far discovery got."""
    names, deployment_id = COVERED, deployment_days.c.deployment_id
    counts = select(deployment_id, *(func.sum(deployment_days.c[name]) for name in names)).group_by(deployment_id)
    found = {row[0]: [int(count) for count in row[1:]] for row in connection.execute(counts)}
    marks = connection.execute(select(*_mark).order_by(_mark.deployment_id))
    return [
        {
            "deployment_id": row.deployment_id,
            **dict(zip(names, found.get(row.deployment_id, [0] * len(names)), strict=True)),
            "complete_since": row.complete_since,
            "walked_at": row.walked_at,
        }
        for row in marks
    ]


def coverage_by_repository(connection: Connection) -> list[dict[str, Any]]:
    """The same per repository, those too that were never scanned: what is listed of each, and what became of it."""
    counts = [func.sum(_coverage.c[name]).label(name) for name in COVERED]
    of_repository = (_coverage.c.deployment_id, _coverage.c.repository_id)
    grouped = select(*of_repository, func.max(_coverage.c.repository).label("repository"), *counts)
    found = {tuple(row)[:2]: row._asdict() for row in connection.execute(grouped.group_by(*of_repository))}
    known = select(_repo.deployment_id, _repo.repository_id, _repo.name, _repo.latest_scan_at, _repo.gone_at)
    facts = {tuple(row)[:2]: row for row in connection.execute(known)}
    rows = []
    for key in sorted(found.keys() | facts.keys(), key=lambda key: (key[0], key[1] is None, key[1] or 0)):
        row, fact = found.get(key, {}), facts.get(key)
        rows.append(
            {
                "deployment_id": key[0],
                "repository_id": key[1],
                "repository": fact.name if fact is not None else row["repository"],
                **{name: int(row.get(name) or 0) for name in COVERED},
                "latest_scan_at": fact and fact.latest_scan_at,
                "gone_at": fact and fact.gone_at,
            }
        )
    return rows


_SAMPLE = text(
    "SELECT scan_id, repository, branch, trigger_event, started_at, duration_seconds, outcome, findings"
    " FROM bi_scan WHERE completed_at IS NOT NULL ORDER BY scan_id DESC LIMIT :count"
)


def newest_scans(connection: Connection, count: int) -> list[dict[str, Any]]:
    """The newest finished scans as a dashboard sees them, their start to the minute."""
    found = connection.execute(_SAMPLE, {"count": count}).mappings()
    return [{**row, "started_at": str(row["started_at"])[:16]} for row in found]


def gaps(connection: Connection) -> list[dict[str, Any]]:
    """The times of which no scan was listed while it could be: these are no longer available."""
    found = connection.execute(select(listing_gaps).order_by(*listing_gaps.primary_key))
    return [dict(row) for row in found.mappings()]


def dead_by_kind(connection: Connection) -> dict[str, int]:
    """How many dead letters there are of each error kind."""
    return _by_kind(connection, select(_dead.error_kind, func.count()))


def to_retry_by_kind(connection: Connection) -> dict[str, int]:
    """How many of them are tried again by themselves."""
    return _by_kind(connection, select(_dead.error_kind, func.count()).where(_dead.retry_at.is_not(None)))


def _by_kind(connection: Connection, counts: Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in sorted(connection.execute(counts.group_by(_dead.error_kind)))}


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """A choice of dead letters. What is None doesn't narrow it; the age is since their death."""

    kind: str | None = None
    deployment_id: int | None = None
    older_than_seconds: float | None = None
    newer_than_seconds: float | None = None

    def conditions(self) -> Sequence[ColumnElement[bool]]:
        """The WHERE of the choice."""
        found: list[ColumnElement[bool]] = []
        if self.kind is not None:
            found.append(_dead.error_kind == self.kind)
        if self.deployment_id is not None:
            found.append(_dead.deployment_id == self.deployment_id)
        if self.older_than_seconds is not None:
            found.append(_dead.died_at < add_seconds(utc_now(), literal(-self.older_than_seconds)))
        if self.newer_than_seconds is not None:
            found.append(_dead.died_at >= add_seconds(utc_now(), literal(-self.newer_than_seconds)))
        return found


def rehearse(connection: Connection) -> bool:
    """Queue a made-up pair, lease it and take everything back. False if it couldn't be leased."""
    with connection.begin_nested() as attempt:
        token = secrets.token_hex(16)
        pair = {"deployment_id": INT64_MAX, "scan_id": secrets.randbelow(INT64_MAX) + 1}
        connection.execute(insert(fetch_queue).values(**pair, batch=token))
        leases = lease(connection, token, 1, 60, batch=token)
        attempt.rollback()
    return [leased.pair for leased in leases] == [Pair(**pair)]


def list_dead(connection: Connection, which: DeadLetterFilter, limit: int) -> list[dict[str, Any]]:
    """Dead letters, the newest first."""
    columns = (
        _dead.deployment_id,
        _dead.scan_id,
        _dead.error_kind,
        _dead.http_status,
        _dead.attempts,
        _dead.died_at,
        _dead.retry_at,
        _dead.error,
        _dead.run_id,
    )
    order = (_dead.died_at.desc(), _dead.deployment_id, _dead.scan_id)
    found = connection.execute(select(*columns).where(*which.conditions()).order_by(*order).limit(limit))
    return [dict(row) for row in found.mappings()]


def dead_letter(connection: Connection, pair: Pair) -> dict[str, Any] | None:
    """All that is known of a dead letter; None if the pair is none."""
    its_key = and_(_dead.deployment_id == pair.deployment_id, _dead.scan_id == pair.scan_id)
    found = connection.execute(select(dead_letters).where(its_key)).mappings().one_or_none()
    return dict(found) if found else None


BEST_PRIORITY = case((_dead.priority < 0, _dead.priority), else_=0).label("priority")
# The order isn't that of an index, or PostgreSQL might read all of that for its sake.
_BACK = select(_dead.deployment_id, _dead.scan_id, BEST_PRIORITY, _dead.expires_at).order_by(
    *(func.coalesce(column, 0) for column in dead_letters.primary_key)
)
# Not by EXISTS: PostgreSQL would make a join of it, by whatever it has counted.
IS_QUEUED = (
    select(literal(1))
    .where(_q.deployment_id == _dead.deployment_id, _q.scan_id == _dead.scan_id)
    .correlate(dead_letters)
    .scalar_subquery()
    .is_not(None)
)
_FORGET = delete(dead_letters)
_FORGET_QUEUED = _FORGET.where(IS_QUEUED)


def _better(new: Any) -> dict[str, ColumnElement[int]]:
    return {"priority": case((new.priority < _q.priority, new.priority), else_=_q.priority)}


def requeue_dead(connection: Connection, which: DeadLetterFilter) -> int:
    """Put dead letters back into the queue, due now, with all their attempts, before the pairs of files and for
    whoever comes first. Returns how many.

    The queue's rows come first, those that are there already too: so nobody buries them before their letters are gone.
    """
    # What is there already is locked, and gets the better priority.
    into = upsert(connection, fetch_queue, _better)
    count = 0
    for pairs in _pieces(connection, which):
        back = _BACK.where(in_pairs(connection, dead_letters, pairs))
        connection.execute(into.from_select(list(_BACK.selected_columns.keys()), back))
        lock(connection, dead_letters, pairs)
        count += on_pairs(connection, _FORGET_QUEUED, dead_letters, pairs).rowcount
        mark(connection, pairs)
    return count


def drop_dead(connection: Connection, which: DeadLetterFilter) -> int:
    """Delete dead letters for good. Returns how many. Of those that are listed it is noted, or the next walk would find
    that nothing holds them."""
    count = 0
    for pairs in _pieces(connection, which, for_update=True):
        count += on_pairs(connection, _FORGET, dead_letters, pairs).rowcount
        mark_dropped(connection, pairs)
    return count


def _pieces(connection: Connection, which: DeadLetterFilter, *, for_update: bool = False) -> Iterator[list[Pair]]:
    """The pairs of a choice, in the order of their keys; locked piece by piece if they are `for_update`."""
    for deployment_id in distinct(connection, (_dead.deployment_id, _dead.scan_id)):
        chosen = select(_dead.scan_id).where(_dead.deployment_id == deployment_id, *which.conditions())
        chosen = chosen.order_by(_dead.scan_id).limit(CHOSEN_AT_ONCE)
        chosen = chosen.with_for_update() if for_update else chosen
        last = -INT64_MAX
        while scan_ids := connection.execute(chosen.where(_dead.scan_id > last)).scalars().all():
            yield [Pair(deployment_id, scan_id) for scan_id in scan_ids]
            last = scan_ids[-1]
