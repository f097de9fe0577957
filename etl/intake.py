"""Where a run begins: what is asked of it, its database, and its pairs files, which are read into the queue."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from etl import staging
from etl.database import Database, schema_problem
from etl.engine import sqlite_path
from etl.errors import ConfigError, DatabaseError, StoppedError
from etl.events import BadLine, Tally, Tell
from etl.observe import Reporter
from etl.pairs import read_pairs
from etl.queue import FILE_PRIORITY

DATABASE_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks of a run. Without `files` it drains what is due in the queue.

    One that `discovers` does so first, and then drains what goes before the pairs of files. `since` is an instant,
    or so many seconds ago.
    """

    command: str
    files: tuple[str, ...] = ()
    refresh: bool = False
    strict: bool = False
    limit: int | None = None
    max_failures: int | None = None
    deadline_seconds: float | None = None
    forever: bool = False
    discovers: bool = False
    drains: bool = True
    since: datetime | float | None = None
    single: bool = False

    @property
    def below(self) -> int | None:
        """The priority of what it leaves to others."""
        return FILE_PRIORITY if self.discovers else None

    @property
    def patience_seconds(self) -> float:
        """How long to bear a database that is away."""
        return math.inf if self.forever else DATABASE_PATIENCE_SECONDS


def open_database(url: str, *, create: bool) -> Database:
    """The database with its schema at head. An SQLite file is made and upgraded on the way if `create`.

    DatabaseError says what is missing, and which command mends it.
    """
    path = sqlite_path(url)
    if path is not None and not create and not path.exists():
        raise DatabaseError(f"there is no database {path} yet: run `scan-etl db upgrade`")
    if path is not None and not path.absolute().parent.is_dir():
        raise DatabaseError(f"database {path}: there is no folder {path.absolute().parent}")
    database = Database(url)
    try:
        problem = database.run_here(schema_problem)
        if problem and path is not None and create and "newer" not in problem:
            from etl.migrate import upgrade  # noqa: PLC0415 - 0.1 s that only the first run of a version needs

            upgrade(url)
            problem = database.run_here(schema_problem)
        if problem:
            raise DatabaseError(problem)
    except BaseException:
        database.close()
        raise
    return database


def stage_files(
    database: Database, files: Sequence[str], tally: Tally, tell: Tell, stopped: Callable[[], bool]
) -> str | None:
    """Read pairs files into the temporary table, count and tell of the bad lines, and return the first one.

    ConfigError for a file that can't be read, StoppedError on a stop.
    """
    database.run_here(staging.open_stage)
    first_bad = None
    for path in files:
        for chunk in read_pairs(path):
            if stopped():
                raise StoppedError("stopped while reading the pairs: nothing was queued")
            tally.requested += len(chunk.pairs) + len(chunk.bad_lines)
            tally.invalid += len(chunk.bad_lines)
            for bad in chunk.bad_lines:
                first_bad = first_bad or str(bad)
                tell(BadLine(str(bad)))
            database.run_here(partial(staging.stage, pairs=chunk.pairs))
    return first_bad


def enqueue(
    database: Database, order: Order, batch: str | None, tally: Tally, tell: Tell, stopped: Callable[[], bool]
) -> None:
    """Read the pairs files into the queue, all or nothing. Runs on the database's thread.

    ConfigError for a file that can't be read, and with `strict` for one bad line; StoppedError on a stop:
    the pairs read so far are in a temporary table, so nothing was queued.
    """
    first_bad = stage_files(database, order.files, tally, tell, stopped)
    if order.strict and first_bad:
        raise ConfigError(f"{first_bad} ({tally.invalid} bad lines in all): nothing was queued, because of --strict")
    counts = database.run_here(partial(staging.enqueue_staged, batch=batch, refresh=order.refresh))
    tally.duplicate += counts.duplicate
    tally.already_final += counts.already_final
    tally.to_do += counts.queued


def fill(database: Database, order: Order, *, interactive: bool) -> dict[str, int]:
    """Only fill the queue, and return the counts of what was read."""
    tally = Tally()
    reporter = Reporter(tally, interactive=interactive)
    with reporter.reading():
        enqueue(database, order, None, tally, reporter.tell, lambda: False)
    names = ("requested", "invalid", "duplicate", "already_final")
    return {**{name: getattr(tally, name) for name in names}, "queued": tally.to_do}
