"""Bringing the counts for dashboards up to date: by whoever ends a batch of work, and now and then by a run."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from etl.app.adapters import PatientDatabase
from etl.database.connection import Database
from etl.pipeline.stop import Stop
from etl.store.summaries import newest_mark, refresh_piece

AFTER_COMMAND_SECONDS = 10.0
"""For so long a command that changed a few rows counts at most: a backfill may have left it years of days."""
SHORTEST_INTERVAL_SECONDS = 60.0
SHARE = 20
"""A run spends at most this part of its time on counting: 1 / 20."""


def _silent(days: int) -> None:
    """Say nothing."""


def refresh(database: Database, *, seconds: float = AFTER_COMMAND_SECONDS, say: Callable[[int], None] = _silent) -> int:
    """Count the days that were marked, for so long at most. Returns how many were counted; `say` hears it meanwhile."""
    until, count = time.monotonic() + seconds, 0
    work = partial(refresh_piece, newest=database.run_here(newest_mark))
    while (piece := database.run_here(work)) and time.monotonic() < until:
        count += piece
        say(count)
    return count + piece


async def refresh_at_end(database: PatientDatabase, stop: Stop) -> None:
    """Count the days that were marked, unless a stop was asked for: then whoever comes next does."""
    if stop.asked.is_set():
        return
    work, counted = partial(refresh_piece, newest=await database.run(newest_mark)), 1
    while counted and not stop.asked.is_set():
        counted = await database.run(work)


async def keep_refreshed(database: PatientDatabase, stop: Stop) -> None:
    """Do the same now and then, while a run goes on."""
    seconds = 0.0
    while True:
        await asyncio.sleep(max(SHORTEST_INTERVAL_SECONDS, seconds * SHARE))
        began_at = time.monotonic()
        await refresh_at_end(database, stop)
        seconds = time.monotonic() - began_at
