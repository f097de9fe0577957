"""How a run ends: its counts brought to what is in the tables, its exit code, its summary."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from etl.app import metrics
from etl.app.adapters import PatientDatabase
from etl.app.context import RunContext
from etl.database.connection import Database
from etl.errors import DEAD_EXIT, ScanEtlError, exit_code_of
from etl.model import NO_DEPLOYMENT, RUN_COUNTS
from etl.pipeline.drain import BUDGET_EXIT
from etl.store import enqueue, runs
from etl.store.queue import Remaining
from etl.telemetry import prometheus
from etl.telemetry.events import LeasedByOthers, MetricsLost, RunCounts
from etl.telemetry.prometheus import Sample


async def finish(
    this: RunContext, database: Database | PatientDatabase, error: ScanEtlError | None = None
) -> dict[str, Any]:
    """The summary of a run, also in `runs` and, if they are wanted, in the metrics; `error` is what has ended it."""
    left = await database.run(partial(_counted_at_the_end, this=this))
    if error is None:
        if left.leased and this.request.drains and not this.state.stop.asked.is_set():
            this.state.emit(LeasedByOthers(left.leased))
        exit_code = _exit_code(this, is_done=not left.remaining and not this.state.unwalked)
    else:
        exit_code = exit_code_of(error)
    summary = summary_of(this, exit_code, _stop_reason(this, error) if exit_code not in (0, DEAD_EXIT) else None)
    await database.run(partial(runs.finish_run, summary=summary, token=this.token, state=runs.ENDED))
    await database.run(partial(enqueue.clear, batch=this.run_id))
    if this.settings.observe.metrics_file:
        _write_metrics(this, summary, await metrics.try_to_look(database))
    return summary


async def skip(this: RunContext, database: PatientDatabase, reason: str) -> dict[str, Any]:
    """The summary of a run that leaves the work to another. It is no success: the metrics stay as they are."""
    summary = summary_of(this, 0, reason)
    await database.run(partial(runs.finish_run, summary=summary, token=this.token, state=runs.SKIPPED))
    return summary


def _stop_reason(this: RunContext, error: ScanEtlError | None) -> str:
    """Why not all was done."""
    stop, halted = this.state.stop, this.state.halted
    if error is not None or stop.reason:
        return str(error or stop.reason)
    if halted:
        number = min(halted)
        return str(halted[number]) if number == NO_DEPLOYMENT else f"deployment {number}: {halted[number]}"
    unwalked = ", ".join(map(str, sorted(this.state.unwalked)))
    return f"the list of deployment {unwalked} was not walked to its end"


def _counted_at_the_end(connection: Connection, this: RunContext) -> Remaining:
    """Bring the counts to what is in the tables, whatever was lost on the way; return what is to be fetched.

    Of a run of files they add up to `requested`: what others have stored meanwhile counts as `already_final`, and a
    pair that waits for its scan as `fetched` if this run has stored it as seen, else as `remaining`. So does what is
    still in the files where the run ended before it had queued them.
    """
    counts = this.state.counts
    for name, value in runs.counted(connection, this.run_id).items():
        setattr(counts, name, value)
    left = this.scope.left(connection)
    counts.remaining, counts.waiting = left.remaining, left.waiting
    if this.scope.batch is not None:
        known = counts.invalid + counts.duplicate + counts.already_final + counts.to_do
        unqueued = max(0, counts.requested - known)
        counts.remaining = max(0, left.remaining + left.waiting - counts.running) + unqueued
        _take_back(counts)
        counts.dead = enqueue.died(connection, this.scope.batch)
        known = (
            counts.invalid + counts.duplicate + counts.already_final + counts.fetched + counts.dead + counts.remaining
        )
        counts.already_final += max(0, counts.requested - known)
    return left


def _take_back(counts: RunCounts) -> None:
    """A pair that was stored while it ran, and died after that, counts as dead alone."""
    surplus = counts.died_running
    for name in ("unchanged", "updated", "inserted"):
        taken = min(surplus, getattr(counts, name))
        setattr(counts, name, getattr(counts, name) - taken)
        counts.fetched -= taken
        surplus -= taken


def summary_of(this: RunContext, exit_code: int, stop_reason: str | None) -> dict[str, Any]:
    """The summary of a run by its counts so far."""
    return {
        "run_id": this.run_id,
        "command": this.request.command,
        **counts_of(this.state.counts),
        "duration_seconds": round(time.monotonic() - this.began_at, 3),
        "exit_code": exit_code,
        "started_at": this.started_at,
        "finished_at": datetime.now(UTC),
        "stop_reason": stop_reason,
    }


def _write_metrics(this: RunContext, summary: Mapping[str, Any], looked: Sequence[Sample]) -> None:
    """The metrics of a run that has ended. Where they can't be written, the run is as good."""
    file = this.settings.observe.metrics_file
    try:
        prometheus.write(Path(file), prometheus.exposition(metrics.of_ended_run(this, summary, looked)))
    except OSError as error:
        this.state.emit(MetricsLost(file, error.strerror or str(error)))


def _exit_code(this: RunContext, *, is_done: bool) -> int:
    stop, halted = this.state.stop, this.state.halted
    if stop.exit_code is not None and not (is_done and stop.exit_code == BUDGET_EXIT):
        return stop.exit_code
    if halted:
        return min(error.stop_code for error in halted.values())  # the token's trouble first
    if this.state.unwalked:
        return BUDGET_EXIT
    return DEAD_EXIT if this.state.counts.dead else 0


def counts_of(counts: RunCounts) -> dict[str, int]:
    """The counts of a summary."""
    return {name: getattr(counts, name) for name in RUN_COUNTS}
