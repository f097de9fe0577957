"""One run put together: the database, the API and the pipeline, by the settings; and its record in `runs`."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

from etl import __version__
from etl.app.adapters import Patience, PatientDatabase, RunPorts, SharedSlots, longest_wait_seconds
from etl.app.context import RunContext
from etl.app.ending import counts_of, finish, summary_of
from etl.app.intake import Reader, RunRequest, merge, open_database, stage
from etl.app.privacy import privacy_of
from etl.app.walking import expect_walks, walk_all
from etl.config.settings import Settings
from etl.config.tokens import Tokens
from etl.database.connection import Database
from etl.errors import (
    TOKEN_EXIT,
    DatabaseAwayError,
    DatabaseError,
    FatalError,
    ItemError,
    ScanEtlError,
    StoppedError,
    TransientError,
    foremost,
)
from etl.model import NO_DEPLOYMENT
from etl.pipeline.drain import BUDGET_EXIT, drain
from etl.pipeline.outcomes import Policy
from etl.pipeline.stop import Stop
from etl.semgrep.client import Semgrep
from etl.store import enqueue as staging
from etl.store import runs
from etl.telemetry import prometheus as metrics
from etl.telemetry.events import AnotherSync, RunCounts
from etl.telemetry.reporter import Reporter

Report = Callable[[Mapping[str, Any]], None]
"""Shows a summary."""
SAVE_INTERVAL_SECONDS = 10.0
STOP_SECONDS, LONGEST_STOP_SECONDS = 9.0, 10.0
"""How long a stop may take until the run is left as it is, with a summary of what is known; and until the process ends
in any case. A database that neither answers nor fails can't be asked to stop."""


async def run(
    order: RunRequest, settings: Settings, tokens: Tokens, *, interactive: bool, report: Report = lambda _: None
) -> dict[str, Any]:
    """Do one run and return its summary, the exit code in it.

    A stop that takes too long ends the process from here, after `report` has got what is known.

    Raises ConfigError, DatabaseError and FatalError where nothing could be started.
    """
    privacy_of(settings)
    if not tokens:
        raise FatalError(
            "no token: set SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE) to a Semgrep token with the Web API scope",
            kind="token_missing",
            stop_code=TOKEN_EXIT,
        )
    tally = RunCounts()
    reporter = Reporter(tally, interactive=interactive)
    stop = Stop(reporter.emit)
    this = RunContext(order, settings, tokens, reporter, tally, stop)
    with _signals(stop):
        working = asyncio.create_task(_carry_out(this))
        overdue = asyncio.create_task(_overdue(stop))
        await asyncio.wait({working, overdue}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            _leave(this, report)
        overdue.cancel()
        return await working


async def _overdue(stop: Stop) -> None:
    """Return when a stop takes too long."""
    await stop.asked.wait()
    await asyncio.sleep(STOP_SECONDS)


def _leave(this: RunContext, report: Report) -> NoReturn:
    """End the process as it is, for something neither answers nor fails. Leases end by themselves."""
    tally = this.tally
    known = tally.invalid + tally.duplicate + tally.already_final if this.order.files else 0
    expected = tally.requested if this.order.files else tally.to_do + tally.discovered
    tally.remaining = max(0, expected - known - tally.fetched - tally.dead)
    try:
        report(summary_of(this, this.stop.exit_code or BUDGET_EXIT))
        sys.stdout.flush()
    finally:
        os._exit(this.stop.exit_code or BUDGET_EXIT)


async def _carry_out(this: RunContext) -> dict[str, Any]:
    """The run itself, from its database to its summary."""
    order, settings, tally = this.order, this.settings, this.tally
    patience = Patience(order.patience_seconds, this.stop.asked, this.reporter.emit)
    with closing(await _open_database(this, patience)) as database:
        patient = PatientDatabase(database, patience)
        port = settings.observe.metrics_port if order.forever else 0
        async with metrics.serving(port, lambda: metrics.exposition(order.command, _rising(tally))):
            start = partial(runs.start_run, run_id=this.run_id, command=order.command, version=__version__)
            await patient.run(start)
            try:
                if not (order.single and await _leaves_to_another(this, database)):
                    await _work(this, database, patient)
                return await finish(this, patient)
            except ScanEtlError as error:
                if isinstance(error, DatabaseAwayError) and this.stop.exit_code is not None:
                    return summary_of(this, this.stop.exit_code)  # the stop is what has ended it
                with suppress(DatabaseError):
                    await finish(this, database, error)
                raise


async def _open_database(this: RunContext, patience: Patience) -> Database:
    """The database of a run, opened in a thread, so that a stop is noticed meanwhile. A worker waits for one that is
    unavailable, whoever may have started first."""
    opening = partial(asyncio.to_thread, open_database, this.settings.database.url, create=True)
    if not this.order.forever:
        return await opening()
    try:
        return await patience.retry(opening)
    except DatabaseAwayError as error:
        # Only a stop ends the patience of a worker.
        raise FatalError(
            f"{this.stop.reason}: {error}",
            kind="database_away",
            stop_code=this.stop.exit_code or DatabaseError.exit_code,
        ) from error


async def _leaves_to_another(this: RunContext, database: Database) -> bool:
    """Whether another run of this command is at work, which is told of."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    await database.run(partial(sign, counts=counts_of(this.tally), lately=runs.Throughput()))
    other = await database.run(partial(runs.at_work_before, command=this.order.command, token=this.token))
    if other is not None:
        this.reporter.emit(AnotherSync(other.run_id, other.started_at.isoformat(timespec="seconds")))
    return other is not None


async def _work(this: RunContext, database: Database, patient: PatientDatabase) -> None:
    """Enqueue, discover, drain. What ends it early is in `stop`, `halted` and `unwalked` then."""
    emit = this.reporter.emit
    watchers = [asyncio.create_task(this.reporter.watch()), asyncio.create_task(_save_counts(this, patient))]
    longest_seconds = longest_wait_seconds(this.settings.api)
    budget_of = partial(SharedSlots, patient, longest_wait_seconds=longest_seconds)
    client = Semgrep(this.settings.api, this.tokens, budget_of, this.tally, emit, gives_up=not this.order.forever)
    try:
        with _deadline(this.order.deadline_seconds, this.began_at, this.stop):
            async with client as semgrep:
                if this.order.files:
                    await _enqueue(this, database, semgrep)
                if not this.stop.asked.is_set():
                    await _find_and_fetch(this, semgrep, patient)
    except StoppedError:
        pass  # told of when it was asked for
    finally:
        for watcher in watchers:
            watcher.cancel()
        for ended in await asyncio.gather(*watchers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def _enqueue(this: RunContext, database: Database, semgrep: Semgrep) -> None:
    """Read the files, and queue their pairs, unless no token sees any of their deployments."""
    reader, emit, stopped = Reader(this.run_id, this.token), this.reporter.emit, this.stop.asked.is_set
    await database.on_thread(partial(stage, database, this.order, reader, this.tally, emit, stopped))
    if visible := await _visible(this, semgrep):
        unseen = await database.run(partial(staging.unseen, batch=this.run_id, visible=visible))
        if unseen:
            asked, seen = (", ".join(map(str, sorted(numbers))) for numbers in (unseen, visible))
            sentence = f"no token sees a deployment of the input, such as {asked}; they see {seen}"
            this.stop.ask(TOKEN_EXIT, f"{sentence}: are the columns swapped? Nothing was queued")
            return
    await database.on_thread(partial(merge, database, this.order, reader, this.run_id, this.tally))


async def _visible(this: RunContext, semgrep: Semgrep) -> set[int]:
    """The deployments that the tokens see; none where that isn't known, because the API doesn't say, or is
    unavailable, or refuses a token: then the run finds it out later, with its pairs queued."""
    named = set(this.tokens.deployment_ids)
    if this.tokens.for_deployment(NO_DEPLOYMENT) is None:
        return named
    try:
        seen = await semgrep.seen_by_token_of(NO_DEPLOYMENT)
    except (TransientError, ItemError, FatalError, StoppedError):
        return set()
    return named | seen if seen else set()


async def _find_and_fetch(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists and drain the queue, side by side: a deployment is fetched as its walk ends, whatever others do.

    A budget of pairs counts from the end of the walks: it ends what is fetched, not what is found.
    """
    order = this.order
    try:
        async with asyncio.TaskGroup() as tasks:
            if order.discovers:
                await expect_walks(this, patient)
                walking = tasks.create_task(walk_all(this, semgrep, patient))
                if order.limit or order.max_failures or not order.drains:
                    await walking
            if order.drains and not this.stop.asked.is_set():
                await _drain(this, semgrep, patient)
    except BaseExceptionGroup as group:
        raise foremost(group) from None


@contextmanager
def _deadline(seconds: float | None, began_at: float, stop: Stop) -> Iterator[None]:
    """Ask for a stop so many seconds after the work has begun."""
    if seconds is None:
        yield
        return
    left = max(0.0, began_at + seconds - time.monotonic())
    timer = asyncio.get_running_loop().call_later(left, stop.ask, BUDGET_EXIT, f"deadline of {seconds:g} s")
    try:
        yield
    finally:
        timer.cancel()


async def _drain(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> None:
    if not (this.order.files or this.order.forever):
        this.tally.to_do = (await patient.run(this.scope.left)).remaining
    ports = RunPorts(patient, semgrep, this.settings, this.run_id, this.scope, this.token, this.walks)
    policy = _policy(this.order, this.settings)
    await drain(ports, policy, this.stop, this.halted, this.tally, this.reporter.emit)


async def _save_counts(this: RunContext, patient: PatientDatabase) -> None:
    """Say now and then that this worker lives, and what it has done. Nothing depends on it."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    lately, tally = runs.Throughput(), this.tally
    while True:
        with suppress(DatabaseError):
            await patient.run(partial(sign, counts=counts_of(tally), lately=lately))
        began_at, requests, finished = time.monotonic(), tally.requests, _finished(tally)
        await asyncio.sleep(SAVE_INTERVAL_SECONDS)
        seconds = time.monotonic() - began_at
        lately = runs.Throughput((tally.requests - requests) / seconds, (_finished(tally) - finished) / seconds)


def _finished(tally: RunCounts) -> int:
    """The pairs that have left the queue."""
    return tally.fetched - tally.waiting + tally.dead


def _rising(tally: RunCounts) -> dict[str, int]:
    """The counts that mean something while a run goes on."""
    return {name: count for name, count in counts_of(tally).items() if name not in metrics.GAUGES}


def _policy(order: RunRequest, settings: Settings) -> Policy:
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
        forever=order.forever,
    )


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = False

    def handle(number: int, _frame: object) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
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
