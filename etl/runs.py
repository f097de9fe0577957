"""The record of each run in `runs`: written at its start, brought up to date on the way, closed at its end."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from etl.schema import RUN_COUNTS, runs


def start_run(connection: Connection, run_id: str, command: str, version: str) -> None:
    """Record that a run has begun. Without `finished_at` it is still going, or was killed."""
    values = {"run_id": run_id, "command": command, "version": version, "started_at": datetime.now(UTC)}
    connection.execute(insert(runs).values(values))


def update_run(connection: Connection, run_id: str, counts: Mapping[str, int]) -> None:
    """Bring the counts of a run up to date."""
    connection.execute(update(runs).where(runs.c.run_id == run_id).values({name: counts[name] for name in RUN_COUNTS}))


def finish_run(connection: Connection, summary: Mapping[str, Any]) -> None:
    """Close the record of a run with its summary."""
    values = {name: summary[name] for name in (*RUN_COUNTS, "duration_seconds", "exit_code")}
    statement = update(runs).where(runs.c.run_id == summary["run_id"])
    connection.execute(statement.values(finished_at=datetime.now(UTC), **values))


def last_runs(connection: Connection, count: int) -> list[dict[str, Any]]:
    """The newest runs, newest first."""
    found = connection.execute(select(runs).order_by(runs.c.started_at.desc()).limit(count))
    return [dict(row) for row in found.mappings()]
