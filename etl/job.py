"""One run put together: the database, the API and the pipeline, by the settings; and its record in `runs`."""

import asyncio
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import Connection

from etl import __version__, budgets, metrics, queue, runs, watermarks
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
    foremost,
)
from etl.events import AnotherSync, MetricsLost, Stopping, Tally, Tell, TokenUseless
from etl.intake import Order, enqueue, open_database
from etl.model import NO_DEPLOYMENT
from etl.observe import Reporter
from etl.outcomes import Policy
from etl.pacing import LONGEST_SNOOZE
from etl.pipeline import BUDGET_EXIT, drain
from etl.ports import DiscoverPorts, Patience, PatientDatabase, RunPorts, TokenBudget
from etl.schema import RUN_COUNTS
from etl.semgrep import Semgrep
from etl.stop import Stop
from etl.tokens import Tokens

Report = Callable[[Mapping[str, Any]], None]
"""Shows a summary."""
DEAD_EXIT = 1
SAVE_INTERVAL_SECONDS = 10.0
WALK_GRACE_SECONDS = 5.0
"""How long a page that is being read may take after a stop."""
STOP_SECONDS, LONGEST_STOP_SECONDS = 9.0, 10.0
"""How long a stop may take until the run is left as it is, with a summary of what is known; and until the process ends
in any case. A database that neither answers nor fails can't be asked to stop."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What the parts of one run share. `token` is that of its leases; `began_at` is on the monotonic clock."""

    order: Order
    settings: Settings
    tokens: Tokens
    reporter: Reporter
    tally: Tally
    stop: Stop
    run_id: str = field(default_factory=partial(secrets.token_hex, 16))
    token: str = field(default_factory=partial(secrets.token_hex, 16))
    began_at: float = field(default_factory=time.monotonic)
    halted: dict[int, FatalError] = field(default_factory=dict)
    unwalked: set[int] = field(default_factory=set)

    @property
    def batch(self) -> str | None:
        """What marks the queue rows of its files; None is the whole queue."""
        return self.run_id if self.order.files else None


async def run(
    order: Order, settings: Settings, tokens: Tokens, *, interactive: bool, report: Report = lambda _: None
) -> dict[str, Any]:
    """Do one run and return its summary, the exit code in it.

    A stop that takes too long ends the process from here, after `report` has got what is known.

    Raises ConfigError, DatabaseError and FatalError where nothing could be started.
    """
    if not tokens:
        raise FatalError(
            "no token: set SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE) to a Semgrep token with the Web API scope",
            kind="token_missing",
            stop_code=TOKEN_EXIT,
        )
    tally = Tally()
    reporter = Reporter(tally, interactive=interactive)
    stop = Stop(reporter.tell)
    this = _Run(order, settings, tokens, reporter, tally, stop)
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


def _leave(this: _Run, report: Report) -> NoReturn:
    """End the process as it is, for something neither answers nor fails. Leases end by themselves."""
    tally = this.tally
    tally.remaining = max(0, tally.to_do + tally.discovered - tally.fetched - tally.dead)
    with suppress(OSError):
        report(_summary(this, this.stop.exit_code or BUDGET_EXIT))
        sys.stdout.flush()
    os._exit(this.stop.exit_code or BUDGET_EXIT)


async def _carry_out(this: _Run) -> dict[str, Any]:
    """The run itself, from its database to its summary."""
    order, settings, tally = this.order, this.settings, this.tally
    patience = Patience(order.patience_seconds, this.stop.asked, this.reporter.tell)
    with closing(await _open_database(this, patience)) as database:
        patient = PatientDatabase(database, patience)
        port = settings.observe.metrics_port if order.forever else 0
        async with metrics.serving(port, lambda: metrics.exposition(order.command, _rising(tally))):
            start = partial(runs.start_run, run_id=this.run_id, command=order.command, version=__version__)
            await patient.run(start)
            try:
                if not (order.single and await _leaves_to_another(this, database)):
                    await _work(this, database, patient)
            except ScanEtlError as error:
                with suppress(DatabaseError):
                    await _finish(this, database, error)
                raise
        return await _finish(this, patient)


async def _finish(
    this: _Run, database: Database | PatientDatabase, error: ScanEtlError | None = None
) -> dict[str, Any]:
    """The summary of a run, also in `runs` and, if they are wanted, in the metrics; `error` is what has ended it."""
    left = await database.run(partial(_counted_at_the_end, this=this))
    if error is None:
        exit_code = _exit_code(this, is_done=not left and not this.unwalked)
    else:
        exit_code = error.stop_code if isinstance(error, FatalError) else error.exit_code
    summary = _summary(this, exit_code)
    await database.run(partial(runs.finish_run, summary=summary, token=this.token))
    _write_metrics(this.settings.observe.metrics_file, summary, this.reporter.tell)
    return summary


def _counted_at_the_end(connection: Connection, this: _Run) -> int:
    """Bring the counts to what is in the tables, whatever was lost on the way; return how many pairs are to be fetched.

    Of a run of files they add up to `requested`: what others have stored meanwhile counts as `already_final`, and a
    pair that waits for its scan as `fetched` if this run has stored it as seen, else as `remaining`. So does what is
    still in the files where the run ended before it had queued them.
    """
    tally = this.tally
    for name, value in runs.counted(connection, this.run_id).items():
        setattr(tally, name, value)
    left = queue.left(connection, this.batch, below=this.order.below)
    tally.remaining, tally.waiting = left.remaining, left.waiting
    if this.batch is not None:
        unqueued = tally.requested - tally.invalid - tally.duplicate - tally.already_final - tally.to_do
        tally.remaining += max(0, left.waiting - tally.running) + unqueued
        tally.dead = queue.dead_of(connection, this.batch)
        known = tally.invalid + tally.duplicate + tally.already_final + tally.fetched + tally.dead + tally.remaining
        tally.already_final += max(0, tally.requested - known)
    return left.remaining


def _summary(this: _Run, exit_code: int) -> dict[str, Any]:
    return {
        "run_id": this.run_id,
        "command": this.order.command,
        **_counts(this.tally),
        "duration_seconds": round(time.monotonic() - this.began_at, 3),
        "exit_code": exit_code,
    }


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


async def _open_database(this: _Run, patience: Patience) -> Database:
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


async def _leaves_to_another(this: _Run, database: Database) -> bool:
    """Whether another run of this command is at work, which is told of."""
    sign = partial(runs.sign_of_life, run_id=this.run_id, token=this.token, version=__version__)
    await database.run(partial(sign, counts=_counts(this.tally), lately=runs.Lately()))
    other = await database.run(partial(runs.at_work_before, command=this.order.command, token=this.token))
    if other is not None:
        this.reporter.tell(AnotherSync(other.run_id, other.started_at.isoformat(timespec="seconds")))
    return other is not None


async def _work(this: _Run, database: Database, patient: PatientDatabase) -> None:
    """Enqueue, discover, drain. What ends it early is in `stop`, `halted` and `unwalked` then."""
    tell = this.reporter.tell
    watchers = [asyncio.create_task(this.reporter.watch()), asyncio.create_task(_save_counts(this, patient))]
    budget_of = partial(TokenBudget, patient)
    client = Semgrep(this.settings.api, this.tokens, budget_of, this.tally, tell, gives_up=not this.order.forever)
    try:
        with _deadline(this.order.deadline_seconds, this.began_at, this.stop):
            async with client as semgrep:
                if this.order.files:
                    stopped = this.stop.asked.is_set
                    await database.on_thread(
                        partial(enqueue, database, this.order, this.batch, this.tally, tell, stopped)
                    )
                if not this.stop.asked.is_set():
                    await _find_and_fetch(this, semgrep, patient)
    except StoppedError as error:
        tell(Stopping(f"{this.stop.reason}: {error}"))
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _find_and_fetch(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists and drain the queue, side by side: what one deployment has found isn't to wait for another's walk.

    A budget of pairs counts from the end of the walks: it ends what is fetched, not what is found.
    """
    order = this.order
    try:
        async with asyncio.TaskGroup() as tasks:
            walking = tasks.create_task(_discover(this, semgrep, patient)) if order.discovers else None
            if walking is not None and (order.limit or order.max_failures or not order.drains):
                await walking
            if order.drains and not this.stop.asked.is_set():
                await _drain(this, semgrep, patient, lambda: walking is not None and not walking.done())
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
        walking.result()


async def _walk(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists of the deployments that the settings or the tokens name, and of the one that the token for all
    others sees."""
    chosen = set(this.settings.discover.deployments)
    named = chosen or set(this.tokens.deployment_ids)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_walk_lists(this, semgrep, patient, named))
        if chosen or this.tokens.for_deployment(NO_DEPLOYMENT) is None:
            this.unwalked.discard(NO_DEPLOYMENT)
        else:
            await _walk_unnamed(this, semgrep, patient, named)


async def _walk_unnamed(this: _Run, semgrep: Semgrep, patient: PatientDatabase, named: set[int]) -> None:
    """Walk the list of the deployment that the token without a name sees, unless it is named, too."""
    try:
        seen = await _seen(this, semgrep, patient)
    except StoppedError:
        return
    except FatalError as error:
        this.halted[NO_DEPLOYMENT] = error
        this.reporter.tell(TokenUseless(str(error)))
        return
    this.unwalked.discard(NO_DEPLOYMENT)
    await _walk_lists(this, semgrep, patient, seen - named)


async def _walk_lists(this: _Run, semgrep: Semgrep, patient: PatientDatabase, deployments: set[int]) -> None:
    this.unwalked.update(deployments)
    ports = DiscoverPorts(patient, semgrep, this.settings, this.tokens, this.run_id, refresh=this.order.refresh)
    left = await discover(ports, deployments, _search(this), this.stop, this.halted, this.tally, this.reporter.tell)
    this.unwalked.difference_update(deployments - left)


async def _seen(this: _Run, semgrep: Semgrep, patient: PatientDatabase) -> set[int]:
    """What the token without a deployment's name sees. That never changes, so it is asked only the first time."""
    token = this.tokens.for_deployment(NO_DEPLOYMENT) or ""
    known = await patient.run(partial(watermarks.seen_by, token_key=budgets.key_of(token)))
    seen = known or await semgrep.seen_by_token_of(NO_DEPLOYMENT, patiently=True)
    if not seen and not this.tokens.deployment_ids:
        raise FatalError(
            "the API doesn't say which deployment the token may see: name it in [discover] deployments",
            kind="no_deployment",
            stop_code=TOKEN_EXIT,
        )
    return set(seen)


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


async def _drain(this: _Run, semgrep: Semgrep, patient: PatientDatabase, expects_more: Callable[[], bool]) -> None:
    if not (this.order.files or this.order.forever):
        left = await patient.run(partial(queue.left, batch=None, below=this.order.below))
        this.tally.to_do = left.remaining
    ports = RunPorts(patient, semgrep, this.settings, this.run_id, this.batch, this.order.below, this.token)
    ports.expects_more = expects_more
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


def _exit_code(this: _Run, *, is_done: bool) -> int:
    stop, halted = this.stop, this.halted
    if stop.exit_code is not None and not (is_done and stop.exit_code == BUDGET_EXIT):
        return stop.exit_code
    if halted:
        return min(error.stop_code for error in halted.values())  # the token's trouble first
    if this.unwalked:
        return BUDGET_EXIT
    return DEAD_EXIT if this.tally.dead else 0


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
