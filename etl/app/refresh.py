"""Bringing the counts for dashboards up to date: by whoever ends a batch of work, and now and then by a run."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from etl.database.connection import Database
from etl.pipeline.drain import BUDGET_EXIT
from etl.pipeline.stop import Stop
from etl.store.summaries import newest_mark, refresh_piece

if TYPE_CHECKING:
    # With it comes the client of the API, which takes a command like `status` a third of its time to import.
    from etl.app.adapters import PatientDatabase

AFTER_COMMAND_SECONDS = 10.0
"""For so long a command that changed a few rows counts at most: a backfill may have left it years of days."""
AFTER_BUDGET_SECONDS = 4.0
"""A stop ends the process some seconds later in any case."""
SHORTEST_INTERVAL_SECONDS = 60.0
SHARE = 20
"""A run spends at most this part of its time on counting: 1 / 20."""


def _silent(days: int) -> None:
    """Say nothing."""


def refresh(database: Database, *, seconds: float = AFTER_COMMAND_SECONDS, say: Callable[[int], None] = _silent) -> int:
    """Count the days that were marked, for so long at most. Returns how many were counted; `say` hears it meanwhile."""
    until, count = time.monotonic() + seconds, 0
    for count in refreshing(database):
        if time.monotonic() >= until:
            break
        say(count)
    return count


def refreshing(database: Database) -> Iterator[int]:
    """Count the days that were marked, piece by piece: how many so far."""
    work, count = partial(refresh_piece, newest=database.run_here(newest_mark)), 0
    while piece := database.run_here(work):
        count += piece
        yield count


async def refresh_at_end(database: "PatientDatabase", stop: Stop) -> None:
    """Count the days that were marked. After a budget's end that may take a moment, after a signal none: what is left,
    whoever comes next counts."""
    until, counted = math.inf, 1
    work: Callable[[Connection], int] | None = None
    while counted:
        if stop.asked.is_set():
            until = min(until, time.monotonic() + AFTER_BUDGET_SECONDS)
            if stop.exit_code != BUDGET_EXIT or time.monotonic() >= until:
                return
        work = work or partial(refresh_piece, newest=await database.run(newest_mark))
        counted = await database.run(work)


async def keep_refreshed(database: "PatientDatabase", stop: Stop) -> None:
    """Do the same now and then, while a run goes on."""
    seconds = 0.0
    while True:
        await asyncio.sleep(max(SHORTEST_INTERVAL_SECONDS, seconds * SHARE))
        began_at = time.monotonic()
        await refresh_at_end(database, stop)
        seconds = time.monotonic() - began_at
