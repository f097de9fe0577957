"""What somebody was told of, so that nobody is told twice."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, func, select, update

from etl.database.schema import dead_letters, listing_gaps, runs, schema_drift
from etl.store.dropping import EXPIRED


class Known(NamedTuple):
    """What is worth telling, as counts that rise: gaps in the list, expired pairs, kinds of drift."""

    gaps: int = 0
    expired: int = 0
    drift: int = 0


def known(connection: Connection) -> Known:
    """What there is."""
    expired = select(func.count()).select_from(dead_letters).where(dead_letters.c.error_kind == EXPIRED)
    return Known(
        gaps=_rows(connection, listing_gaps),
        expired=connection.execute(expired).scalar_one(),
        drift=_rows(connection, schema_drift),
    )


def _rows(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def told(connection: Connection, command: str) -> tuple[Known, int]:
    """What was known when somebody was last told, and how the run of this command ended then."""
    latest = _latest(connection)
    of_command = _latest(connection, runs.c.command == command)
    return Known(**{name: latest.get(name, 0) for name in Known._fields}), of_command.get("exit_code", 0)


def _latest(connection: Connection, *conditions: Any) -> dict[str, int]:
    newest = select(runs.c.notified).where(runs.c.notified.is_not(None), *conditions)
    found = connection.execute(newest.order_by(runs.c.finished_at.desc()).limit(1)).scalar()
    return found or {}


def remember(connection: Connection, run_id: str, now: Known, exit_code: int) -> None:
    """Note what is known with the end of a run, and that whoever is to know it does."""
    notified = {**now._asdict(), "exit_code": exit_code}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(notified=notified))
