"""The record of each run in `runs`: written at its start, brought up to date on the way, closed at its end."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from etl.database.dialects import upsert
from etl.database.schema import runs, workers
from etl.database.server import in_its_characters
from etl.database.types import add_seconds, utc_now
from etl.errors import DEAD_EXIT
from etl.model import RUN_COUNTS

SEEN_WITHIN_SECONDS = 60.0
"""A worker gives a sign of life every ten seconds. One that hasn't for so long is gone, or its database was."""
FORGOTTEN_AFTER = timedelta(days=1)
"""How long the row of a worker that was killed stays."""


_IS_AHEAD = workers.c.seen_at > add_seconds(utc_now(), literal(SEEN_WITHIN_SECONDS))


def lives() -> ColumnElement[bool]:
    """Whether a worker has lately given a sign of life. One from the future, by a clock that was ahead, is none."""
    return and_(workers.c.seen_at > add_seconds(utc_now(), literal(-SEEN_WITHIN_SECONDS)), ~_IS_AHEAD)


RUNNING, ENDED, SKIPPED, LOST = "running", "ended", "skipped", "lost"
STATES = (RUNNING, ENDED, SKIPPED, LOST)
"""How runs stand. A skipped one has left the work to another; a lost one was killed."""


def start_run(connection: Connection, **values: Any) -> None:
    """Record that a run has begun, if that isn't so yet, with these columns. Those that were killed are lost."""
    connection.execute(update(runs).where(is_lost()).values(state=LOST))
    connection.execute(upsert(connection, runs).values(in_its_characters(connection, values)))


def is_lost() -> ColumnElement[bool]:
    """Whether a run that hasn't ended has no worker that lives. In its first second it has none yet."""
    its_worker = select(workers.c.token).where(workers.c.run_id == runs.c.run_id, lives())
    is_new = runs.c.started_at > add_seconds(utc_now(), literal(-SEEN_WITHIN_SECONDS))
    return and_(runs.c.state == RUNNING, ~is_new, ~its_worker.exists())


COUNTED = ("discovered", "fetched", "inserted", "updated", "unchanged", "dead")
"""The counts that move in the transaction of the rows that they count, and so are right whatever is lost or killed."""


def count(connection: Connection, run_id: str, **counts: int) -> None:
    """Add to counts of a run, some of `COUNTED`, in the transaction of what they count."""
    added = {name: value for name, value in counts.items() if value}
    if added:
        statement = _adding(tuple(added))
        connection.execute(statement, {"of_run": run_id, **{f"more_{name}": value for name, value in added.items()}})


@cache
def _adding(names: tuple[str, ...]) -> Update:
    more = {name: runs.c[name] + bindparam(f"more_{name}", type_=BigInteger) for name in names}
    return update(runs).where(runs.c.run_id == bindparam("of_run")).values(more)


def counted(connection: Connection, run_id: str) -> dict[str, int]:
    """The counts of a run that are `COUNTED`."""
    found = connection.execute(select(*(runs.c[name] for name in COUNTED)).where(runs.c.run_id == run_id))
    return dict(found.mappings().one_or_none() or {})


class Throughput(NamedTuple):
    """How fast a worker has been since its last sign of life; and why it asks so little, if it does."""

    requests_per_second: float = 0.0
    finished_per_second: float = 0.0
    slow_pace: str | None = None


_UNKNOWN = Throughput()


def sign_of_life(
    connection: Connection, run_id: str, token: str, version: str, counts: Mapping[str, int], throughput: Throughput
) -> None:
    """Bring the other counts of a run up to date, and note that its worker lives and how fast it is."""
    others = {name: value for name, value in counts.items() if name not in COUNTED}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(others))
    see(connection, run_id, token, version, throughput)


def see(connection: Connection, run_id: str, token: str, version: str, throughput: Throughput = _UNKNOWN) -> None:
    """Note that a worker lives, and how fast it is."""
    seen = {"seen_at": utc_now(), **in_its_characters(connection, throughput._asdict())}
    known = connection.execute(update(workers).where(workers.c.token == token).values(seen)).rowcount
    if not known:
        forgotten_at = add_seconds(utc_now(), literal(-FORGOTTEN_AFTER.total_seconds()))
        connection.execute(delete(workers).where(or_(workers.c.seen_at < forgotten_at, _IS_AHEAD)))
        row = {"token": token, "run_id": run_id, "version": version, "started_at": utc_now(), **seen}
        connection.execute(insert(workers).values(row))


class AtWork(NamedTuple):
    """A run that is going on."""

    run_id: str
    started_at: datetime


def at_work(connection: Connection, run_ids: Collection[str]) -> set[str]:
    """Those of these runs that have lately given a sign of life."""
    found = select(workers.c.run_id).where(workers.c.run_id.in_(run_ids), lives())
    return set(connection.execute(found).scalars()) if run_ids else set()


def at_work_before(connection: Connection, command: str, token: str) -> AtWork | None:
    """The run of this command that began before ours, and has lately given a sign of life; None if there is none."""
    ours, other = workers.alias("ours"), workers
    is_before = or_(
        other.c.started_at < ours.c.started_at,
        and_(other.c.started_at == ours.c.started_at, other.c.token < ours.c.token),
    )
    found = connection.execute(
        select(other.c.run_id, other.c.started_at)
        .join(runs, runs.c.run_id == other.c.run_id)
        .join(ours, ours.c.token == token)
        .where(runs.c.command == command, lives(), is_before)
        .order_by(other.c.started_at)
        .limit(1)
    ).one_or_none()
    return found and AtWork(*found)


def finish_run(connection: Connection, summary: Mapping[str, Any], token: str, state: str) -> None:
    """Close the record of a run with its summary, and take its worker off the list."""
    names = (*RUN_COUNTS, "finished_at", "duration_seconds", "exit_code", "stop_reason")
    statement = update(runs).where(runs.c.run_id == summary["run_id"])
    values = in_its_characters(connection, {name: summary[name] for name in names})
    connection.execute(statement.values(state=state, **values))
    leave(connection, token)


def leave(connection: Connection, token: str) -> None:
    """Take a worker off the list."""
    connection.execute(delete(workers).where(workers.c.token == token))


_STATE: ColumnElement[Any] = case((is_lost(), LOST), else_=runs.c.state)
_RUNS = select(*(column for column in runs.c if column.name != "state"), _STATE.label("state"))


def last_runs(
    connection: Connection, count: int, since_seconds: float | None = None, state: str | None = None
) -> list[dict[str, Any]]:
    """The newest runs, newest first: of those that have begun within so many seconds, and stand so."""
    found = _RUNS.order_by(runs.c.started_at.desc(), runs.c.run_id).limit(count)
    if since_seconds is not None:
        found = found.where(runs.c.started_at > add_seconds(utc_now(), literal(-since_seconds)))
    if state is not None:
        found = found.where(_STATE.in_([state]))
    return [dict(row) for row in connection.execute(found).mappings()]


def is_success() -> ColumnElement[bool]:
    """Whether a run has ended with all done, be it that some pairs are dead letters."""
    return and_(runs.c.state == ENDED, runs.c.exit_code.in_([0, DEAD_EXIT]))


def last_successes(connection: Connection) -> dict[str, datetime]:
    """When a run of each command was last a success."""
    found = select(runs.c.command, func.max(runs.c.finished_at)).where(is_success()).group_by(runs.c.command)
    return {row[0]: row[1] for row in sorted(connection.execute(found).tuples())}


def runs_like(connection: Connection, beginning: str) -> list[dict[str, Any]]:
    """The runs whose ids begin so, two at most."""
    found = _RUNS.where(runs.c.run_id.startswith(beginning, autoescape=True)).order_by(runs.c.run_id).limit(2)
    return [dict(row) for row in connection.execute(found).mappings()]
