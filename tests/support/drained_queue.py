"""A queue in memory that is drained, and what came of it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from memory_ports import MemoryPorts
from patience import PATIENCE_SECONDS

from etl.errors import FatalError, ItemError
from etl.model import Pair
from etl.pipeline.drain import drain
from etl.pipeline.outcomes import Policy
from etl.pipeline.stop import Stop
from etl.telemetry.events import Event, RunCounts

ONE = Pair(120, 1)


def pairs(count: int, deployment_id: int = 120) -> list[Pair]:
    return [Pair(deployment_id, number) for number in range(1, count + 1)]


def policy(**changes: Any) -> Policy:
    """Numbers that make a run quick."""
    numbers: dict[str, Any] = {
        "concurrency": 4,
        "ahead": 40,
        "batch_size": 5,
        "flush_seconds": 0.05,
        "lease_seconds": 60.0,
        "max_attempts": 3,
        "backoff_seconds": 0.01,
        "backoff_max_seconds": 0.05,
        "snooze_seconds": 300.0,
    }
    return Policy(**numbers | changes)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    stop: Stop
    halted: dict[int, FatalError]
    tally: RunCounts
    events: list[Event]


async def drained(
    ports: MemoryPorts, *, stop: Stop | None = None, halted: dict[int, FatalError] | None = None, **changes: Any
) -> Ended:
    events = list[Event]()
    ended = Ended(stop or Stop(events.append), halted if halted is not None else {}, RunCounts(), events)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await drain(ports, policy(**changes), ended.stop, ended.halted, ended.tally, ended.events.append)
    return ended


def given_back(ports: MemoryPorts) -> bool:
    """Whether all that is left in the queue is free, as it was, and due."""
    now = asyncio.get_running_loop().time()
    return all(row.holder is None and row.attempts == 0 and row.due_at <= now for row in ports.queue.values())


def gone() -> ItemError:
    return ItemError("no such scan", kind="not_found", http_status=404)
