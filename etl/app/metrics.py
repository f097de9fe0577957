"""What Prometheus is told of a run: of one that has ended, and of one at work."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from etl import __version__
from etl.app.adapters import PatientDatabase
from etl.app.context import RunContext
from etl.database.connection import Database
from etl.errors import TOKEN_EXIT, DatabaseError
from etl.model import RUN_COUNTS
from etl.semgrep.client import Semgrep
from etl.store import runs, status
from etl.store.dropping import EXPIRED
from etl.telemetry.prometheus import GAUGES, Sample, exposition

LOOK_INTERVAL_SECONDS, LOOK_SHARE = 30.0, 0.05


def look(connection: Connection) -> list[Sample]:
    """What the tables say of the queue and of the runs before."""
    depths = status.depth(connection)
    dead = {EXPIRED: 0, **status.dead_by_kind(connection)}
    oldest = [row["oldest_due_at"].timestamp() for row in depths if row["oldest_due_at"]]
    return [
        *(Sample("queue_pairs", sum(row[state] for row in depths), {"state": state}) for state in status.STATES),
        *(Sample("queue_oldest_due_timestamp_seconds", instant) for instant in sorted(oldest)[:1]),
        *(Sample("dead_letters", count, {"error_kind": kind}) for kind, count in dead.items()),
        Sample("listing_gaps", len(status.gaps(connection))),
        *(
            Sample("last_success_timestamp_seconds", ended_at.timestamp(), {"command": command})
            for command, ended_at in runs.last_successes(connection).items()
        ),
    ]


async def try_to_look(database: Database | PatientDatabase) -> list[Sample]:
    """The same; nothing where the database doesn't say."""
    with suppress(DatabaseError):
        return await database.run(look)
    return []


def of_ended_run(this: RunContext, summary: Mapping[str, Any], looked: Sequence[Sample]) -> Iterator[Sample]:
    """What a run has come to: all are gauges, for what is there at the next look is another run's."""
    command = {"command": this.request.command}
    for name in (*RUN_COUNTS, "duration_seconds", "exit_code"):
        yield Sample(name, summary[name], command)
    yield Sample("finished_timestamp_seconds", round(time.time(), 3), command)
    yield Sample("request_duration_seconds", this.state.counts.request_seconds, command)
    yield from looked


class WorkerMetrics:
    """What a worker shows on its port: what it has done since its start, and how it stands."""

    def __init__(self, this: RunContext) -> None:
        self._this = this
        self._looked: Sequence[Sample] = ()
        self.semgrep: Semgrep | None = None
        """The API, once the worker has it."""

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        return exposition([*self._of_counts(), *self._of_state(), *self._of_paces(), *self._looked])

    async def keep_looking(self, database: Database) -> None:
        """Look into the tables now and then: a long queue takes a while to count, of which this is a small share."""
        while True:
            began_at = time.monotonic()
            self._looked = await try_to_look(database)
            await asyncio.sleep(max(LOOK_INTERVAL_SECONDS, (time.monotonic() - began_at) / LOOK_SHARE))

    def _of_counts(self) -> Iterator[Sample]:
        command, counts = {"command": self._this.request.command}, self._this.state.counts
        for name in RUN_COUNTS:
            if name not in GAUGES:
                yield Sample(f"{name}_total", getattr(counts, name), command)
        yield Sample("request_duration_seconds", counts.request_seconds, command)

    def _of_state(self) -> Iterator[Sample]:
        yield Sample("build_info", 1, {"version": __version__})
        yield Sample("started_timestamp_seconds", self._this.started_at.timestamp())
        yield Sample("ready", int(self._this.condition.waits_for is None))
        halted = self._this.state.halted.values()
        refused = sum(error.stop_code == TOKEN_EXIT for error in halted)
        yield Sample("halted_deployments", refused, {"reason": "token"})
        yield Sample("halted_deployments", len(halted) - refused, {"reason": "api"})

    def _of_paces(self) -> Iterator[Sample]:
        for pace in self.semgrep.paces() if self.semgrep else ():
            whose = {"deployment_id": str(pace.deployment_id)}
            yield Sample("pace_requests_per_second", round(pace.requests_per_second, 3), whose)
            yield Sample("gate_open", int(pace.is_open), whose)
