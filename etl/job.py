"""One run put together: the database, the API and the pipeline, by the settings; and its record in `runs`."""

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from etl import __version__, budgets, listings, metrics, queue, runs
from etl.answers import TOKEN_EXIT
from etl.config import Settings
from etl.database import Database
from etl.discover import Search, discover
from etl.errors import (
    DatabaseAwayError,
    DatabaseError,
    FatalError,
    ScanEtlError,
    StoppedError,
    TransientError,
)
from etl.events import AnotherSync, MetricsLost, Stopping, Tally, Tell, TokenUseless
from etl.intake import Order, enqueue, open_database
from etl.model import NO_DEPLOYMENT
from etl.observe import Reporter
from etl.pacing import LONGEST_SNOOZE
from etl.pipeline import BUDGET_EXIT, Policy, Stop, drain
from etl.ports import DiscoverPorts, Patience, PatientDatabase, RunPorts, TokenBudget, longest_wait_seconds
from etl.schema import RUN_COUNTS
from etl.semgrep import Semgrep
from etl.tokens import Tokens

DEAD_EXIT = 1
SAVE_INTERVAL_SECONDS = 10.0
WALK_GRACE_SECONDS = 10.0
"""How long a page that is being read may take after a stop."""
LONGEST_STOP_SECONDS = 40.0
"""A stop that takes longer, as with a database that neither answers nor fails, ends the process as it is."""


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
    unwalked: set[int]


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
    run_id, token, tally, stop = secrets.token_hex(16), secrets.token_hex(16), Tally(), Stop()
    reporter = Reporter(tally, interactive=interactive)
    batch = run_id if order.files else None
    patience = Patience(order.patience_seconds, stop.asked, reporter.tell)
    with _signals(stop), closing(await _open_database(order, settings.database.url, patience, stop)) as database:
        patient = PatientDatabase(database, patience)
        this = _Run(order, settings, tokens, database, reporter, run_id, batch, token, tally, stop, {}, set())
        port = settings.observe.metrics_port if order.forever else 0
        async with metrics.serving(port, lambda: metrics.exposition(order.command, _rising(tally))):
            await patient.run(partial(runs.start_run, run_id=run_id, command=order.command, version=__version__))
            try:
                if not (order.single and await _leaves_to_another(this)):
                    await _work(this, patient)
            except ScanEtlError as error:
                with suppress(DatabaseError):
                    await _finish(this, database, started, error)
                raise
        return await _finish(this, patient, started)


async def _finish(
    this: _Run, database: Database | PatientDatabase, started: float, error: ScanEtlError | None = None
) -> dict[str, Any]:
    """The summary of a run, also in `runs` and, if they are wanted, in the metrics; `error` is what has ended it."""
    left = await database.run(partial(queue.left, batch=this.batch, below=this.order.below))
    this.tally.remaining, this.tally.waiting = left.remaining, left.waiting
    if error is None:
        exit_code = _exit_code(this.stop, this.halted, this.tally, this.unwalked)
    else:
        exit_code = error.stop_code if isinstance(error, FatalError) else error.exit_code
    summary = {
        "run_id": this.run_id,
        "command": this.order.command,
        **_counts(this.tally),
        "duration_seconds": round(time.monotonic() - started, 3),
        "exit_code": exit_code,
    }
    await database.run(partial(runs.finish_run, summary=summary, token=this.token))
    _write_metrics(this.settings.observe.metrics_file, summary, this.reporter.tell)
    return summary


def _write_metrics(file: str, summary: Mapping[str, Any], tell: Tell) -> None:
    """The metrics of a run that has ended, if they are wanted. Where they can't be written, the run is as good."""
    if not file:
        return
    numbers = {name: summary[name] for name in (*RUN_COUNTS, "duration_seconds", "exit_code")}
    text = metrics.exposition(summary["command"], {**numbers, "finished_at_seconds": round(time.time(), 3)})
    try:
        metrics.write(Path(file), text)
    except OSError as error:
        tell(MetricsLost(file, error.strerror or str(error)))


async def _open_database(order: Order, url: str, patience: Patience, stop: Stop) -> Database:
    """The database of a run. A worker waits for one that is away, whoever may have started first."""
    if not order.forever:
        return open_database(url, create=True)
    try:
        return await patience.retry(partial(asyncio.to_thread, open_database, url, create=True))
    except DatabaseAwayError as error:
        # Only a stop ends the patience of a worker.
        raise FatalError(
            f"{stop.reason}: {error}", kind="database_away", stop_code=stop.exit_code or DatabaseError.exit_code
        ) from error


async def _leaves_to_another(this: _Run) -> bool:
    """Whether another run of this command is at work, which is told of."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    await this.database.run(partial(sign, counts=_counts(this.tally), lately=runs.Lately()))
    other = await this.database.run(partial(runs.at_work_before, command=this.order.command, token=this.token))
    if other is not None:
        this.reporter.tell(AnotherSync(other.run_id, other.started_at.isoformat(timespec="seconds")))
    return other is not None


async def _work(this: _Run, patient: PatientDatabase) -> None:
    """Discover, enqueue, drain. What ends it early is in `stop`, `halted` and `unwalked` then."""
    began_at = time.monotonic()
    database, tell = this.database, this.reporter.tell
    watchers = [asyncio.create_task(this.reporter.watch()), asyncio.create_task(_save_counts(this, patient))]
    try:
        if this.order.files:
            stopped = this.stop.asked.is_set
            await database.on_thread(partial(enqueue, database, this.order, this.batch, this.tally, tell, stopped))
        longest_seconds = longest_wait_seconds(this.settings.api)
        budget_of = partial(TokenBudget, patient, longest_wait_seconds=longest_seconds)
        gives_up = not this.order.forever
        async with Semgrep(this.settings.api, this.tokens, budget_of, this.tally, tell, gives_up=gives_up) as semgrep:
            with _deadline(this.order.deadline_seconds, began_at, this.stop):
                if this.order.discovers:
                    await _discover(this, semgrep, patient)
                if this.stop.asked.is_set():
                    tell(Stopping(this.stop.reason))
                elif this.order.drains:
                    await _drain(this, semgrep, patient)
    except (FatalError, TransientError) as error:
        this.stop.ask(error.stop_code if isinstance(error, FatalError) else BUDGET_EXIT, str(error))
        tell(Stopping(this.stop.reason))
    except StoppedError as error:
        tell(Stopping(f"{this.stop.reason}: {error}"))
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


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


async def _discover(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists, until a stop is asked for."""
    this.unwalked.add(NO_DEPLOYMENT)  # for it isn't known yet which there are
    walking = asyncio.create_task(_walk(this, semgrep, patient))
    stopping = asyncio.create_task(this.stop.asked.wait())
    await asyncio.wait({walking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not walking.done():
        semgrep.hush()
        await asyncio.wait({walking}, timeout=WALK_GRACE_SECONDS)
        walking.cancel()
    stopping.cancel()
    await asyncio.wait({walking, stopping})
    if not walking.cancelled():
        unwalked = walking.result()
        this.unwalked.clear()
        this.unwalked.update(unwalked)


async def _walk(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> set[int]:
    deployments = this.settings.discover.deployments or await _deployments(this, semgrep, patient)
    this.unwalked.update(deployments)
    ports = DiscoverPorts(patient, semgrep, this.settings, this.tokens, refresh=this.order.refresh)
    return await discover(ports, deployments, _search(this), this.stop, this.halted, this.tally, this.reporter.tell)


async def _deployments(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> set[int]:
    """Those that the tokens see. A token sees one for ever, so it is asked only the first time."""
    found = set(this.tokens.deployment_ids)
    token = this.tokens.for_deployment(NO_DEPLOYMENT)
    if token is not None:
        seen = await patient.run(partial(listings.seen_by, token_key=budgets.key_of(token)))
        try:
            found |= seen or await semgrep.seen_by_token_of(NO_DEPLOYMENT, patiently=True)
        except FatalError as error:
            if not found or error.stop_code != TOKEN_EXIT:
                raise
            # The others have tokens of their own.
            this.halted[NO_DEPLOYMENT] = error
            this.reporter.tell(TokenUseless(str(error)))
    if not found:
        raise FatalError(
            "the API doesn't say which deployment the token may see: name it in [discover] deployments",
            kind="no_deployment",
            stop_code=TOKEN_EXIT,
        )
    return found


def _search(this: _Run) -> Search:
    settings = this.settings
    return Search(
        lookback_seconds=settings.discover.lookback_seconds,
        since=this.order.since,
        look_seconds=settings.queue.snooze_seconds * LONGEST_SNOOZE,
        max_attempts=settings.queue.max_attempts,
        backoff_seconds=settings.queue.backoff_seconds,
        backoff_max_seconds=settings.queue.backoff_max_seconds,
    )


async def _drain(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> None:
    if not (this.order.files or this.order.forever):
        left = await patient.run(partial(queue.left, batch=None, below=this.order.below))
        this.tally.to_do = left.remaining
    ports = RunPorts(patient, semgrep, this.settings, this.run_id, this.batch, this.order.below, this.token)
    policy = _policy(this.order, this.settings)
    await drain(ports, policy, this.stop, this.halted, this.tally, this.reporter.tell)


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


def _rising(tally: Tally) -> dict[str, int]:
    """The counts that mean something while a run goes on."""
    return {name: count for name, count in _counts(tally).items() if name not in metrics.GAUGES}


def _counts(tally: Tally) -> dict[str, int]:
    return {name: getattr(tally, name) for name in RUN_COUNTS}


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
        forever=order.forever,
    )


def _exit_code(stop: Stop, halted: dict[int, FatalError], tally: Tally, unwalked: Collection[int]) -> int:
    budget_unneeded = stop.exit_code == BUDGET_EXIT and not tally.remaining and not unwalked
    if stop.exit_code is not None and not budget_unneeded:
        return stop.exit_code
    if halted:
        return next(iter(halted.values())).stop_code
    if unwalked:
        return BUDGET_EXIT
    return DEAD_EXIT if tally.dead else 0


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = False

    def handle(number: int, _frame: object) -> None:
        nonlocal stopping
        # Not only the event: what the loop waits for may keep it from setting that.
        if stopping or stop.asked.is_set():
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
