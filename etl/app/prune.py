"""Retention: what is older than somebody wants to keep is removed in small transactions, and dashboards follow."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from etl.app.refresh import refreshing
from etl.database.connection import Database
from etl.store.plan import clock
from etl.store.pruning import Choice, Piece, prune_dead_letters, prune_runs, prune_scans

PAUSE_SECONDS = 0.05
"""Between two pieces, so that who waits for the one writer of an SQLite file gets its turn."""
STOP_SECONDS = 8.0
"""How long a stop may take until the process ends, whatever its database hangs in."""


class Ages(NamedTuple):
    """From which age on rows go. What is None is left alone; runs are of no deployment."""

    runs_seconds: float | None = None
    dead_letters_seconds: float | None = None
    scans_seconds: float | None = None
    deployment_id: int | None = None


class Pruned(NamedTuple):
    """How many rows are gone, or would be, and how many that are as old were kept, by table. One that isn't finished
    was stopped, and goes on when it is said again."""

    removed: dict[str, int]
    kept: dict[str, int]
    finished: bool = False

    def plus(self, piece: Piece) -> "Pruned":
        """Both together."""
        return Pruned(_sum(self.removed, piece.removed), _sum(self.kept, piece.kept))


def _sum(one: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + more.get(name, 0) for name in one | more}


Report = Callable[[Pruned], None]


def prune(database: Database, ages: Ages, *, dry_run: bool, report: Report, say: Report = lambda _: None) -> int:
    """Remove what is older, and return the exit code. `report` gets what was done, also where a signal ends it; `say`
    hears it meanwhile."""
    done = Pruned({}, {})
    with _stopping(lambda: report(done)) as received:
        for piece in _pieces(database, ages, dry_run=dry_run):
            done = done.plus(piece)
            say(done)
            if received:
                break
        else:
            done = done._replace(finished=True)
        report(done)
    return 128 + received[0] if received else 0


def _pieces(database: Database, ages: Ages, *, dry_run: bool) -> Iterator[Piece]:
    now = database.run_here(clock)
    for prune_some, seconds, tables in (
        (prune_dead_letters, ages.dead_letters_seconds, ("dead_letters",)),
        (prune_scans, ages.scans_seconds, ("scans", "scan_listings")),
        (prune_runs, ages.runs_seconds, ("runs",)),
    ):
        if seconds is None:
            continue
        yield Piece(dict.fromkeys(tables, 0), dict.fromkeys(tables, 0))
        for piece in prune_some(database, Choice(now - timedelta(seconds=seconds), ages.deployment_id, dry_run)):
            yield piece
            time.sleep(0 if dry_run else PAUSE_SECONDS)
    if not dry_run:
        yield from (Piece({}, {}) for _ in refreshing(database))


@contextmanager
def _stopping(at_last: Callable[[], None]) -> Iterator[list[int]]:
    """The signals that ask for a stop, Ctrl-C and SIGTERM, as they come. The second one ends the process at once. So
    does time, after `at_last`: what was in hand then is taken back by the database."""
    received: list[int] = []

    def leave(exit_code: int) -> None:
        try:
            at_last()
            sys.stdout.flush()
        finally:
            os._exit(exit_code)

    def handle(number: int, _frame: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        timer.args = (128 + number,)
        timer.start()

    timer = threading.Timer(STOP_SECONDS, leave)
    timer.daemon = True
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
