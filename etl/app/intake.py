"""Where a run begins: its database, and its pairs files, which are read into the queue."""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection

from etl import __version__
from etl.config.urls import Address, address_of
from etl.database.connection import Database, RunHere, check_schema
from etl.database.engine import sqlite_path
from etl.errors import ConfigError, DatabaseError, SchemaBehindError, StoppedError
from etl.model import Enqueued, Pair
from etl.pairs.pairs_file import read_pairs
from etl.pipeline.run_state import RunRequest, RunState
from etl.store import enqueue, runs
from etl.telemetry.events import BadLine, RunCounts
from etl.telemetry.reporter import Reporter

SIGN_INTERVAL_SECONDS = 10.0


def open_database(place: str | Address, *, create: bool, reads_only: bool = False) -> Database:
    """The database with its schema at head. An SQLite file is made and upgraded on the way if `create`. Where nothing
    but `reads_only` follows, it waits for no writer.

    DatabaseError says what is missing, and which command fixes it.
    """
    path = sqlite_path(address_of(place).url)
    if path is not None and not create and not path.exists():
        raise DatabaseError(
            f"there is no database {path.absolute()}: is this the place? If it is, run `scan-etl db upgrade`; if not, "
            "name the right one with --database-url, or the settings with --config"
        )
    if path is not None and not path.absolute().parent.is_dir():
        raise DatabaseError(f"database {path}: there is no folder {path.absolute().parent}")
    database = Database(place, reads_only=reads_only)
    try:
        try:
            database.run_here(check_schema)
        except SchemaBehindError:
            if path is None or not create:
                raise
            from etl.database.migrate import upgrade  # noqa: PLC0415 - 0.1 s that only the first run of a version needs

            upgrade(place)
            database.run_here(check_schema)
    except BaseException:
        database.close()
        raise
    return database


class Reader(NamedTuple):
    """Who reads an input: the run that its stage is named after, the worker that does it, and how it reaches the
    database."""

    run_id: str
    token: str
    run_here: RunHere


def read_files(files: Sequence[str], keep: Callable[[Sequence[Pair]], None], state: RunState) -> str | None:
    """Read pairs files piece by piece into `keep`, count and emit the bad lines, and return the first one.

    ConfigError for a file that can't be read, StoppedError on a stop.
    """
    first_bad = None
    for path in files:
        for chunk in read_pairs(path):
            if state.stop.asked.is_set():
                raise StoppedError("stopped while reading the pairs: nothing was queued")
            state.counts.requested += len(chunk.pairs) + len(chunk.bad_lines)
            state.counts.invalid += len(chunk.bad_lines)
            for bad in chunk.bad_lines:
                first_bad = first_bad or str(bad)
                state.emit(BadLine(str(bad)))
            keep(chunk.pairs)
    return first_bad


def stage(database: Database, request: RunRequest, reader: Reader, state: RunState) -> None:
    """Read the pairs files into a stage.

    ConfigError for a file that can't be read, and with `strict` for one bad line; StoppedError on a stop: nothing was
    queued so far.
    """

    def keep(pairs: Sequence[Pair]) -> None:
        reader.run_here(partial(enqueue.stage, batch=reader.run_id, pairs=pairs))

    with _alive(database, reader):
        reader.run_here(partial(enqueue.open_stage, batch=reader.run_id))
        first_bad = read_files(request.files, keep, state)
    if request.strict and first_bad:
        invalid = state.counts.invalid
        raise ConfigError(f"{first_bad} ({invalid} bad lines in all): nothing was queued, because of --strict")


def merge(database: Database, request: RunRequest, reader: Reader, batch: str | None, counts: RunCounts) -> None:
    """Queue what was staged, all or nothing. DatabaseError where it isn't known which of the two, for the answer to the
    commit was lost."""
    tries = 0

    def work(connection: Connection) -> Enqueued:
        nonlocal tries
        tries += 1
        try:
            valid = counts.requested - counts.invalid
            return enqueue.merge(connection, reader.run_id, valid, batch=batch, refresh=request.refresh)
        except DatabaseError as error:
            if tries == 1:
                raise
            raise DatabaseError(
                "the database connection was lost while pairs were being queued, and they may be queued: run the same "
                "command again, it queues none twice"
            ) from error

    with _alive(database, reader):
        queued = reader.run_here(work)
    counts.duplicate += queued.duplicate
    counts.already_final += queued.already_final
    counts.to_do += queued.queued


@contextmanager
def _alive(database: Database, reader: Reader) -> Iterator[None]:
    """Give signs of life while the block lasts, whatever it waits for: what belongs to a run without is taken for left
    behind."""
    see = partial(runs.see, run_id=reader.run_id, token=reader.token, version=__version__)
    reader.run_here(see)
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(SIGN_INTERVAL_SECONDS):
            with suppress(DatabaseError):
                database.run_here(see)

    signs = threading.Thread(target=go_on, name="signs of life", daemon=True)
    signs.start()
    try:
        yield
    finally:
        over.set()
        signs.join()


def fill(database: Database, request: RunRequest, *, interactive: bool) -> dict[str, int]:
    """Only fill the queue, and return the counts of what was read."""
    counts, name = RunCounts(), secrets.token_hex(16)
    reader, reporter = Reader(name, name, database.run_here), Reporter(counts, interactive=interactive)
    try:
        with reporter.reading():
            stage(database, request, reader, RunState(counts, reporter.emit))
            merge(database, request, reader, None, counts)
    finally:
        with suppress(DatabaseError):  # a later run does it
            database.run_here(partial(enqueue.clear, batch=name))
            database.run_here(partial(runs.leave, token=name))
    names = ("requested", "invalid", "duplicate", "already_final")
    return {**{name: getattr(counts, name) for name in names}, "queued": counts.to_do}
