"""The record of each run in `runs`: written at its start, brought up to date on the way, closed at its end."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from etl.schema import RUN_COUNTS, runs, workers

FORGOTTEN_AFTER = timedelta(days=1)
"""How long the row of a worker that was killed stays."""


def start_run(connection: Connection, run_id: str, command: str, version: str) -> None:
    """Record that a run has begun. Without `finished_at` it is still going, or was killed."""
    values = {"run_id": run_id, "command": command, "version": version, "started_at": datetime.now(UTC)}
    connection.execute(insert(runs).values(values))


def sign_of_life(connection: Connection, run_id: str, token: str, version: str, counts: Mapping[str, int]) -> None:
    """Bring the counts of a run up to date, and note that its worker lives."""
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(dict(counts)))
    now = datetime.now(UTC)
    known = connection.execute(update(workers).where(workers.c.token == token).values(seen_at=now)).rowcount
    if not known:
        connection.execute(delete(workers).where(workers.c.seen_at < now - FORGOTTEN_AFTER))
        row = {"token": token, "run_id": run_id, "version": version, "started_at": now, "seen_at": now}
        connection.execute(insert(workers).values(row))


def finish_run(connection: Connection, summary: Mapping[str, Any], token: str) -> None:
    """Close the record of a run with its summary, and take its worker off the list."""
    values = {name: summary[name] for name in (*RUN_COUNTS, "duration_seconds", "exit_code")}
    statement = update(runs).where(runs.c.run_id == summary["run_id"])
    connection.execute(statement.values(finished_at=datetime.now(UTC), **values))
    connection.execute(delete(workers).where(workers.c.token == token))


def last_runs(connection: Connection, count: int) -> list[dict[str, Any]]:
    """The newest runs, newest first."""
    found = connection.execute(select(runs).order_by(runs.c.started_at.desc()).limit(count))
    return [dict(row) for row in found.mappings()]
