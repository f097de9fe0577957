"""One run put together: the database, the API and the pipeline, by the settings; and its record in `runs`."""

import asyncio
import math
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
from etl.app.ending import counts_of, finish, skip, summary_of
from etl.app.intake import Reader, merge, open_database, stage
from etl.app.metrics import WorkerMetrics
from etl.app.notify import tell_of_end
from etl.app.privacy import privacy_of
from etl.app.refresh import keep_refreshed, refresh_at_end
from etl.app.walking import expect_walks, walk_all
from etl.config.proxies import Proxy
from etl.config.settings import Settings, origins
from etl.config.tokens import Tokens
from etl.database.connection import Database
from etl.database.engine import display_url
from etl.errors import (
    BUG_EXIT,
    TOKEN_EXIT,
    DatabaseAwayError,
    DatabaseError,
    FatalError,
    ItemError,
    ScanEtlError,
    StoppedError,
    TransientError,
    exit_code_of,
    foremost,
)
from etl.model import NO_DEPLOYMENT
from etl.pipeline.drain import BUDGET_EXIT, drain
from etl.pipeline.run_state import RunRequest, RunState
from etl.pipeline.stop import Stop
from etl.semgrep.client import Semgrep
from etl.store import enqueue, runs
from etl.telemetry import prometheus, systemd
from etl.telemetry.condition import Condition
from etl.telemetry.events import AnotherSync, Event, RunCounts, RunEnded, RunStarted
from etl.telemetry.log import name_run
from etl.telemetry.reporter import Reporter

Report = Callable[[Mapping[str, Any]], None]
"""Shows a summary."""
SAVE_INTERVAL_SECONDS = 10.0
DATABASE_PATIENCE_SECONDS = 30.0
"""How long a run bears an unavailable database; a worker does without end."""
STOP_SECONDS, LONGEST_STOP_SECONDS = 9.0, 10.0
"""How long a stop may take until the run is left as it is, with a summary of what is known; and until the process ends
in any case. A database that neither answers nor fails can't be asked to stop."""


async def run(
    request: RunRequest,
    settings: Settings,
    tokens: Tokens,
    *,
    interactive: bool,
    report: Report = lambda _: None,
    proxy: Proxy | None = None,
) -> dict[str, Any]:
    """Do one run and return its summary, the exit code in it. The API is asked through `proxy`, if any.

    A stop that takes too long ends the process from here, after `report` has got what is known.

    Raises ConfigError, DatabaseError and FatalError where nothing could be started.
    """
    privacy_of(settings)
    counts, condition = RunCounts(), Condition()
    reporter = Reporter(counts, interactive=interactive)

    def emit(event: Event) -> None:
        for told in (reporter.emit, condition.see, systemd.tell):
            told(event)

    stop = Stop(emit)
    this = RunContext(request, settings, tokens, reporter, RunState(counts, emit, stop), proxy, condition)
    name_run(this.run_id)
    with _signals(stop):
        try:
            summary = await _in_time(this, report)
        except Exception as error:
            await tell_of_end(this, _exit_code_of(error), str(error))
            raise
        await tell_of_end(this, summary["exit_code"], summary["stop_reason"])
        return summary


async def _in_time(this: RunContext, report: Report) -> dict[str, Any]:
    """The summary of a run. A stop of it that takes too long ends the process."""
    alive = asyncio.create_task(systemd.keep_saying_alive())
    working = asyncio.create_task(_carry_out(this))
    overdue = asyncio.create_task(_overdue(this.state.stop))
    await asyncio.wait({working, overdue}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        _leave(this, report)
    overdue.cancel()
    alive.cancel()
    return await working


async def _overdue(stop: Stop) -> None:
    """Return when a stop takes too long."""
    await stop.asked.wait()
    await asyncio.sleep(STOP_SECONDS)


def _leave(this: RunContext, report: Report) -> NoReturn:
    """End the process as it is, for something neither answers nor fails. Leases end by themselves."""
    counts = this.state.counts
    known = counts.invalid + counts.duplicate + counts.already_final if this.request.files else 0
    expected = counts.requested if this.request.files else counts.to_do + counts.discovered
    counts.remaining = max(0, expected - known - counts.fetched - counts.dead)
    try:
        summary = summary_of(this, this.state.stop.exit_code or BUDGET_EXIT, this.state.stop.reason)
        this.state.emit(_ended(summary))
        report(summary)
        sys.stdout.flush()
    finally:
        os._exit(this.state.stop.exit_code or BUDGET_EXIT)


async def _carry_out(this: RunContext) -> dict[str, Any]:
    """The run itself, with its port, if any, from its database to its summary."""
    if not this.tokens:
        raise FatalError(
            "no token: set SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE) to a Semgrep token with the Web API scope",
            kind="token_missing",
            stop_code=TOKEN_EXIT,
        )
    port, shown = this.settings.observe.metrics_port if this.request.forever else 0, WorkerMetrics(this)
    async with prometheus.serving(port, shown.text, lambda: this.condition.waits_for):
        return await _told(this, shown)


async def _told(this: RunContext, shown: WorkerMetrics) -> dict[str, Any]:
    """The run between its first log line and its last."""
    patience_seconds = math.inf if this.request.forever else DATABASE_PATIENCE_SECONDS
    patience = Patience(patience_seconds, this.state.stop.asked, this.state.emit)
    with closing(await _open_database(this, patience)) as database:
        where, api = display_url(this.settings.database.url), this.settings.api
        this.state.emit(RunStarted(this.request.command, __version__, where, api.rate, api.concurrency))
        try:
            summary = await _recorded(this, database, PatientDatabase(database, patience), shown)
        except Exception as error:
            this.state.emit(_ended(summary_of(this, _exit_code_of(error), str(error))))
            raise
        this.state.emit(_ended(summary))
        return summary


def _exit_code_of(error: Exception) -> int:
    return exit_code_of(error) if isinstance(error, ScanEtlError) else BUG_EXIT


def _ended(summary: Mapping[str, Any]) -> RunEnded:
    return RunEnded(**{name: summary[name] for name in RunEnded.__struct_fields__})


async def _recorded(
    this: RunContext, database: Database, patient: PatientDatabase, shown: WorkerMetrics
) -> dict[str, Any]:
    """The run and its record in `runs`."""
    await patient.run(partial(runs.start_run, **_record(this)))
    try:
        if this.request.single and (other := await _other_at_work(this, patient)):
            return await skip(this, patient, other)
        await _work(this, database, patient, shown)
        return await finish(this, patient)
    except ScanEtlError as error:
        if isinstance(error, DatabaseAwayError) and this.state.stop.exit_code is not None:
            # The stop is what has ended it.
            return summary_of(this, this.state.stop.exit_code, this.state.stop.reason)
        with suppress(DatabaseError):
            await finish(this, database, error)
        raise


async def _open_database(this: RunContext, patience: Patience) -> Database:
    """The database of a run, opened in a thread, so that a stop is noticed meanwhile. A worker waits for one that is
    unavailable, whoever may have started first."""
    opening = partial(asyncio.to_thread, partial(open_database, this.settings.database.address, create=True))
    if not this.request.forever:
        return await opening()
    try:
        return await patience.retry(opening)
    except DatabaseAwayError as error:
        # Only a stop ends the patience of a worker.
        raise FatalError(
            f"{this.state.stop.reason}: {error}",
            kind="database_away",
            stop_code=this.state.stop.exit_code or DatabaseError.exit_code,
        ) from error


def _record(this: RunContext) -> dict[str, Any]:
    """What `runs` has of a run from its first second."""
    return {
        "run_id": this.run_id,
        "command": this.request.command,
        "version": __version__,
        "started_at": this.started_at,
        "inputs": list(this.request.files) or None,
        "settings": {origin.key: origin.value for origin in origins(this.settings)},
    }


async def _other_at_work(this: RunContext, database: PatientDatabase) -> str | None:
    """The other run of this command that is at work, as a sentence; None if there is none."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    await database.run(partial(sign, counts=counts_of(this.state.counts), throughput=runs.Throughput()))
    other = await database.run(partial(runs.at_work_before, command=this.request.command, token=this.token))
    if other is None:
        return None
    began_at = other.started_at.isoformat(timespec="seconds")
    this.state.emit(AnotherSync(other.run_id, began_at))
    return f"run {other.run_id}, which began at {began_at}, is at work"


async def _work(this: RunContext, database: Database, patient: PatientDatabase, shown: WorkerMetrics) -> None:
    """Enqueue, discover, drain. What ends it early is in the state then."""
    request, settings, counts, emit = this.request, this.settings, this.state.counts, this.state.emit
    slots_of = partial(SharedSlots, patient, longest_wait_seconds=longest_wait_seconds(settings.api))
    client = Semgrep(settings.api, this.tokens, slots_of, counts, emit, proxy=this.proxy, gives_up=not request.forever)
    watching = [
        this.reporter.watch(),
        _save_counts(this, client, patient),
        keep_refreshed(patient, this.state.stop),
    ]
    if request.forever and settings.observe.metrics_port:
        shown.semgrep = client
        watching.append(shown.keep_looking(database))
    watchers = [asyncio.create_task(each) for each in watching]
    try:
        with _deadline(request.deadline_seconds, this.began_at, this.state.stop):
            async with client as semgrep:
                if request.files:
                    await _enqueue(this, database, patient, semgrep)
                if not this.state.stop.asked.is_set():
                    await _find_and_fetch(this, semgrep, patient)
        await refresh_at_end(patient, this.state.stop)
    except StoppedError:
        pass  # its reason was emitted when it was asked for
    finally:
        for watcher in watchers:
            watcher.cancel()
        for ended in await asyncio.gather(*watchers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def _enqueue(this: RunContext, database: Database, patient: PatientDatabase, semgrep: Semgrep) -> None:
    """Read the files, and queue their pairs, unless no token sees any of their deployments."""
    reader = Reader(this.run_id, this.token, patient.for_thread())
    await asyncio.to_thread(stage, database, this.request, reader, this.state)
    if visible := await _visible(this, semgrep):
        unseen = await patient.run(partial(enqueue.unseen, batch=this.run_id, visible=visible))
        if unseen:
            asked, seen = (", ".join(map(str, sorted(numbers))) for numbers in (unseen, visible))
            sentence = f"no token sees a deployment of the input, such as {asked}; they see {seen}"
            this.state.stop.ask(TOKEN_EXIT, f"{sentence}: are the columns swapped? Nothing was queued")
            return
    await asyncio.to_thread(merge, database, this.request, reader, this.run_id, this.state.counts)


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
    request = this.request
    try:
        async with asyncio.TaskGroup() as tasks:
            if request.discovers:
                await expect_walks(this, patient)
                walking = tasks.create_task(walk_all(this, semgrep, patient))
                if request.limit or request.max_failures or not request.drains:
                    await walking
            if request.drains and not this.state.stop.asked.is_set():
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
    if not (this.request.files or this.request.forever):
        this.state.counts.to_do = (await patient.run(this.scope.left)).remaining
    await drain(RunPorts(patient, semgrep, this), this.settings, this.request, this.state)


async def _save_counts(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Say now and then that this worker lives, and what it has done. Nothing depends on it."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    throughput, counts = runs.Throughput(), this.state.counts
    while True:
        with suppress(DatabaseError):
            await patient.run(partial(sign, counts=counts_of(counts), throughput=throughput))
        began_at, requests, finished = time.monotonic(), counts.requests, _finished(counts)
        await asyncio.sleep(SAVE_INTERVAL_SECONDS)
        seconds = time.monotonic() - began_at
        throughput = runs.Throughput(
            (counts.requests - requests) / seconds, (_finished(counts) - finished) / seconds, semgrep.slow_pace()
        )


def _finished(counts: RunCounts) -> int:
    """The pairs that have left the queue."""
    return counts.fetched - counts.waiting + counts.dead


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
