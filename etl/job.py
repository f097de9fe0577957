"""One run put together: the database, the API and the pipeline, by the settings; and its record in `runs`."""

import asyncio
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from etl import __version__, queue, runs
from etl.config import Settings, Tokens
from etl.database import Database, schema_problem, sqlite_path, upgrade
from etl.errors import ConfigError, DatabaseError, FatalError, StoppedError, TransientError
from etl.events import BadLine, Stopping, Tally, Tell
from etl.observe import Reporter
from etl.pairs import read_pairs
from etl.pipeline import BUDGET_EXIT, Policy, Stop, drain
from etl.ports import PatientDatabase, RunPorts, TokenBudget
from etl.schema import RUN_COUNTS
from etl.semgrep import Semgrep

DEAD_EXIT = 1
TOKEN_EXIT = 3
SAVE_INTERVAL_SECONDS = 10.0
DATABASE_PATIENCE_SECONDS = 30.0
LONGEST_STOP_SECONDS = 40.0
"""A stop that takes longer, as with a database that neither answers nor fails, ends the process as it is."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks of a run. Without `files` it drains what is due in the queue."""

    command: str
    files: tuple[str, ...] = ()
    refresh: bool = False
    strict: bool = False
    limit: int | None = None
    max_failures: int | None = None
    deadline_seconds: float | None = None
    forever: bool = False

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
    database.run_here(queue.open_stage)
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
            database.run_here(partial(queue.stage, pairs=chunk.pairs))
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
    counts = database.run_here(partial(queue.enqueue_staged, batch=batch, refresh=order.refresh))
    tally.duplicate += counts.duplicate
    tally.already_final += counts.already_final
    tally.to_do += counts.queued


def fill(database: Database, order: Order) -> dict[str, int]:
    """Only fill the queue, and return the counts of what was read."""
    tally = Tally()
    enqueue(database, order, None, tally, Reporter(tally, interactive=False).tell, lambda: False)
    names = ("requested", "invalid", "duplicate", "already_final")
    return {**{name: getattr(tally, name) for name in names}, "queued": tally.to_do}


@dataclass(frozen=True, slots=True)
class _Run:
    """What the parts of one run share. `batch` marks the queue rows of its files; None is the whole queue."""

    order: Order
    settings: Settings
    tokens: Tokens
    database: Database
    reporter: Reporter
    run_id: str
    batch: str | None
    token: str
    tally: Tally
    stop: Stop
    halted: dict[int, FatalError]


async def run(order: Order, settings: Settings, tokens: Tokens, *, interactive: bool) -> dict[str, Any]:
    """Do one run and return its summary, the exit code in it.

    Raises ConfigError, DatabaseError and FatalError where nothing could be started.
    """
    started = time.monotonic()
    if not tokens:
        raise FatalError(
            "no token: set SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE) to a Semgrep token with the Web API scope",
            kind="token_missing",
            stop_code=TOKEN_EXIT,
        )
    run_id, tally = secrets.token_hex(16), Tally()
    reporter = Reporter(tally, interactive=interactive)
    batch = run_id if order.files else None
    with closing(open_database(settings.database.url, create=True)) as database:
        token = secrets.token_hex(16)
        this = _Run(order, settings, tokens, database, reporter, run_id, batch, token, tally, Stop(), {})
        await database.run(partial(runs.start_run, run_id=run_id, command=order.command, version=__version__))
        with _signals(this.stop):
            await _work(this)
        left = await database.run(partial(queue.left, batch=batch))
        tally.remaining, tally.waiting = left.remaining, left.waiting
        summary = _summary(this, time.monotonic() - started)
        await database.run(partial(runs.finish_run, summary=summary, token=token))
        return summary


async def _work(this: _Run) -> None:
    """Enqueue, drain. What ends it early is in `stop` and `halted` afterwards."""
    database, tell = this.database, this.reporter.tell
    patient = PatientDatabase(database, this.order.patience_seconds, this.stop.asked, tell)
    watchers = [asyncio.create_task(this.reporter.watch()), asyncio.create_task(_save_counts(this, patient))]
    try:
        if this.order.files:
            stopped = this.stop.asked.is_set
            await database.on_thread(partial(enqueue, database, this.order, this.batch, this.tally, tell, stopped))
        elif not this.order.forever:
            this.tally.to_do = (await database.run(partial(queue.left, batch=None))).remaining
        budget_of = partial(TokenBudget, patient)
        async with Semgrep(this.settings.api, this.tokens, budget_of, this.tally, tell) as semgrep:
            semgrep.gives_up = not this.order.forever
            ports = RunPorts(patient, semgrep, this.settings, this.run_id, this.batch, this.token)
            await drain(ports, _policy(this.order, this.settings), this.stop, this.halted, this.tally, tell)
    except (FatalError, TransientError) as error:
        this.stop.ask(error.stop_code if isinstance(error, FatalError) else BUDGET_EXIT, str(error))
        tell(Stopping(this.stop.reason))
    except StoppedError as error:
        tell(Stopping(f"{this.stop.reason}: {error}"))
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _save_counts(this: _Run, patient: PatientDatabase) -> None:
    """Say now and then that this worker lives, and what it has done. Nothing depends on it."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    lately, tally = runs.Lately(), this.tally
    while True:
        with suppress(DatabaseError):
            await patient.run(partial(sign, counts=_counts(tally), lately=lately))
        began_at, requests, finished = time.monotonic(), tally.requests, _finished(tally)
        await asyncio.sleep(SAVE_INTERVAL_SECONDS)
        seconds = time.monotonic() - began_at
        lately = runs.Lately((tally.requests - requests) / seconds, (_finished(tally) - finished) / seconds)


def _finished(tally: Tally) -> int:
    """The pairs that have left the queue."""
    return tally.fetched - tally.waiting + tally.dead


def _counts(tally: Tally) -> dict[str, int]:
    return {name: getattr(tally, name) for name in RUN_COUNTS}


def _summary(this: _Run, seconds: float) -> dict[str, Any]:
    return {
        "run_id": this.run_id,
        "command": this.order.command,
        **_counts(this.tally),
        "duration_seconds": round(seconds, 3),
        "exit_code": _exit_code(this.stop, this.halted, this.tally),
    }


def _policy(order: Order, settings: Settings) -> Policy:
    concurrency, batch_size = settings.api.concurrency, settings.database.batch_size
    return Policy(
        concurrency=concurrency,
        ahead=2 * (concurrency + batch_size),
        batch_size=batch_size,
        flush_seconds=settings.database.flush_seconds,
        lease_seconds=settings.queue.lease_seconds,
        max_attempts=settings.queue.max_attempts,
        backoff_seconds=settings.queue.backoff_seconds,
        backoff_max_seconds=settings.queue.backoff_max_seconds,
        snooze_seconds=settings.queue.snooze_seconds,
        limit=order.limit,
        max_failures=order.max_failures,
        deadline_seconds=order.deadline_seconds,
        forever=order.forever,
    )


def _exit_code(stop: Stop, halted: dict[int, FatalError], tally: Tally) -> int:
    budget_unneeded = stop.exit_code == BUDGET_EXIT and not tally.remaining
    if stop.exit_code is not None and not budget_unneeded:
        return stop.exit_code
    if halted:
        return next(iter(halted.values())).stop_code
    return DEAD_EXIT if tally.dead else 0


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop; the second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: object) -> None:
        if stop.asked.is_set():
            os._exit(128 + number)
        last_resort = threading.Timer(LONGEST_STOP_SECONDS, os._exit, (128 + number,))
        last_resort.daemon = True
        last_resort.start()
        loop.call_soon_threadsafe(stop.ask, 128 + number, f"{signal.Signals(number).name} received")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
