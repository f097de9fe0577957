"""A queue in memory that is drained, and what came of it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from memory_ports import MemoryPorts
from patience import PATIENCE_SECONDS

from etl.config.settings import ApiSettings, DatabaseSettings, QueueSettings, Settings
from etl.errors import FatalError, ItemError
from etl.model import (
    Pair,
)
from etl.pipeline.drain import FIRST_HALT_SECONDS, GRACE_SECONDS, drain
from etl.pipeline.run_state import OpenWalks, RunRequest, RunState
from etl.pipeline.stop import Stop
from etl.telemetry.events import Event, RunCounts

ONE = Pair(120, 1)


def pairs(count: int, deployment_id: int = 120) -> list[Pair]:
    return [Pair(deployment_id, number) for number in range(1, count + 1)]


def quick(*, concurrency: int = 4, batch_size: int = 5, flush_seconds: float = 0.05, **queue: Any) -> Settings:
    """Settings that make a run quick."""
    numbers = {"max_attempts": 3, "backoff_seconds": 0.01, "backoff_max_seconds": 0.05}
    return Settings(
        api=ApiSettings(concurrency=concurrency),
        database=DatabaseSettings(batch_size=batch_size, flush_seconds=flush_seconds),
        queue=QueueSettings(**numbers | queue),
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    stop: Stop
    halted: dict[int, FatalError]
    counts: RunCounts
    events: list[Event]


async def drained(
    ports: MemoryPorts,
    *,
    stop: Stop | None = None,
    halted: dict[int, FatalError] | None = None,
    walks: OpenWalks | None = None,
    limit: int | None = None,
    max_failures: int | None = None,
    forever: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    first_halt_seconds: float = FIRST_HALT_SECONDS,
    **changes: Any,
) -> Ended:
    events = list[Event]()
    ended = Ended(stop or Stop(events.append), halted if halted is not None else {}, RunCounts(), events)
    request = RunRequest("run", limit=limit, max_failures=max_failures, forever=forever)
    state = RunState(ended.counts, events.append, ended.stop, ended.halted, walks=walks or OpenWalks())
    grace = {"grace_seconds": grace_seconds, "first_halt_seconds": first_halt_seconds}
    async with asyncio.timeout(PATIENCE_SECONDS):
        await drain(ports, quick(**changes), request, state, **grace)
    return ended


def given_back(ports: MemoryPorts) -> bool:
    """Whether all that is left in the queue is free, as it was, and due."""
    now = asyncio.get_running_loop().time()
    return all(row.holder is None and row.attempts == 0 and row.due_at <= now for row in ports.queue.values())


def gone() -> ItemError:
    return ItemError("no such scan", kind="not_found", http_status=404)
