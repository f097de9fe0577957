"""One run: lease, fetch, flatten, settle, until nothing of it is left or something ends it.

No HTTP and no SQL here: what a run needs is handed in as `Ports`. Each group of errors has one `except`. What
a failure means for a pair is decided by the pure functions of `outcomes`.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from etl.config.settings import Settings
from etl.errors import FatalError, ItemError, RefusedError, StoppedError, TransientError, foremost
from etl.model import Complete, Discard, Lease, Outcome, Pair, Release, ScanRows, Settled, Snooze, pair_of
from etl.pipeline.halts import Halts
from etl.pipeline.outcomes import after_failure, after_nonsense, after_refusal, after_refused_row, after_unfinished
from etl.pipeline.prefetch import Prefetcher
from etl.pipeline.run_state import RunRequest, RunState
from etl.telemetry.events import DeploymentStopped, LeasesLost, PairDied, WorkAwaited

POLL_SECONDS, FIRST_POLL_SECONDS = 1.0, 0.02
"""How often an empty queue is looked at again while work of this run may come back to it. The first looks follow
sooner: what is due may be locked by somebody else for a moment."""
EMITTED_AFTER_SECONDS = 1.0
"""A run that waits for longer says for what."""
FLATTENED_AT_ONCE = 32
"""One by one, between two requests, takes 54 us a scan, for the processor's caches are full of other things; 32 at once
take 33, 500 take 28, but would keep the requests waiting."""
GRACE_SECONDS = 5.0
"""How long requests in flight may take after a stop."""
FIRST_HALT_SECONDS = 60.0
"""After how long a worker first asks again for a deployment that was refused."""
BUDGET_EXIT = 4


class FetchedScan(Struct, frozen=True):
    """What the API said of a pair, not flattened yet."""

    lease: Lease
    document: object
    fetched_at: datetime


class Ports(Protocol):
    """What the pipeline asks of the floors below."""

    async def check(self, deployment_id: int) -> None:
        """Return when a deployment may be asked; raises FatalError, TransientError, StoppedError."""

    async def fetch(self, pair: Pair) -> object:
        """The decoded document of a pair; raises TransientError, ItemError, FatalError, StoppedError."""

    def flatten(self, pair: Pair, document: object, fetched_at: datetime) -> ScanRows:
        """The rows of a document; raises ItemError."""

    async def lease(self, limit: int, without: Collection[int]) -> list[Lease]:
        """Up to `limit` due pairs of this run, of all deployments but `without`."""

    async def renew(self, pairs: Sequence[Pair]) -> None:
        """Lengthen the leases of these pairs."""

    async def settle(self, outcomes: Sequence[Outcome]) -> Settled:
        """Write outcomes; raises RefusedError if the database refuses one of the rows."""

    async def next_due_seconds(self, without: Collection[int]) -> float | None:
        """Seconds until work of this run is due again; None if none will come back."""

    async def awaited(self) -> tuple[int, int]:
        """How many pairs of this run back off after a failure, and how many somebody has leased."""

    async def bury_expired(self, deployment_id: int, reason: str) -> int:
        """Make dead letters of the expired pairs of a deployment that can't be asked. Returns how many."""

    def ask_again(self, deployment_id: int) -> None:
        """Forget that a deployment was refused: the next check asks anew."""

    def stop_sending(self) -> None:
        """Send no more requests: fetches that wait for their turn raise StoppedError."""


async def drain(
    ports: Ports,
    settings: Settings,
    request: RunRequest,
    state: RunState,
    *,
    grace_seconds: float = GRACE_SECONDS,
    first_halt_seconds: float = FIRST_HALT_SECONDS,
) -> None:
    """Work off what the ports lease, but for the deployments that are halted or walked. How it ended is in `state`.

    Raises what no pair is to blame for: DatabaseError, and bugs.
    """
    halts = Halts(state.halted, first_halt_seconds)
    try:
        await _Run(ports, settings, request, state, halts, grace_seconds).drain()
    except BaseExceptionGroup as group:
        raise foremost(group) from None


class _Run:
    """What the tasks of `drain` share. `held` is every pair leased and not yet settled."""

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        request: RunRequest,
        state: RunState,
        halts: Halts,
        grace_seconds: float,
    ) -> None:
        self.ports, self.settings, self.request, self.state = ports, settings, request, state
        self.halts, self.grace_seconds = halts, grace_seconds
        self.batch_size = settings.database.batch_size
        self.held: dict[Pair, Lease] = {}
        self.prefetchers: dict[int, Prefetcher] = {}
        self.working = set[asyncio.Task[None]]()
        self.answers: list[FetchedScan] = []
        self.outcomes: deque[Outcome] = deque()
        self.running = set[Pair]()  # stored by this run while they ran: each counts once
        self.leased = self.undone = self.looks = 0
        self.looked_at, self.idle_since, self.is_wait_emitted = -math.inf, math.inf, False
        self.flush, self.changed = asyncio.Event(), asyncio.Event()
        self.closing = False

    async def drain(self) -> None:
        async with asyncio.TaskGroup() as self.tasks:
            renewer = self.tasks.create_task(self.renew_leases())
            settler = self.tasks.create_task(self.settle_outcomes())
            await self.lease_pairs()
            await self.end()
            self.closing = True
            self.flush.set()
            await settler
            renewer.cancel()

    async def lease_pairs(self) -> None:
        """Keep every prefetcher in work, until nothing of this run is left or a stop is asked for."""
        while not self.state.stop.asked.is_set():
            await self.look_after_halted()
            halted = self.state.halted.keys()
            wanted = {number: each.wanted() for number, each in self.prefetchers.items() if number not in halted}
            count = sum(wanted.values())
            if not count and time.monotonic() >= self.looked_at + POLL_SECONDS:
                count = 2 * self.settings.api.concurrency  # for deployments that have no prefetcher yet
            if self.request.limit is not None:
                left = self.request.limit - self.leased
                count = min(count, left)
                if left <= 0 and not self.held:
                    self.state.stop.ask(BUDGET_EXIT, f"limit of {self.request.limit} reached")
                    return
            leases: list[Lease] = []
            if count > 0:
                full = {number for number, more in wanted.items() if not more}
                leases = await self.ports.lease(count, halted | self.state.walks.of | full)
                self.looked_at = time.monotonic()
            if leases:
                self.take(leases)
            elif not await self.has_more():
                return

    async def has_more(self) -> bool:
        """Wait for a moment after an empty lease; False if nothing of this run is left."""
        if self.held:
            await self.pause(POLL_SECONDS)
            return True
        self.looked_at = -math.inf
        if self.request.forever:
            # Workers that were started together shouldn't all ask at the same moments.
            await self.pause(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - guards nothing
            return True
        walked = frozenset(self.state.walks.of)  # before the question, whose answer would be too old after it
        seconds = await self.ports.next_due_seconds(self.state.halted.keys() | walked)
        if seconds is None and not walked:
            await self.look_after_halted()
            return False
        least = min(FIRST_POLL_SECONDS * 2.0 ** min(self.looks, 10), POLL_SECONDS)
        self.looks += 1
        if seconds is not None:
            await self.emit_wait(seconds)
        await self.pause(max(least, min(POLL_SECONDS if seconds is None else seconds, POLL_SECONDS)))
        return True

    async def emit_wait(self, seconds: float) -> None:
        """Emit what is waited for, after a second of waiting, once until there is work again."""
        now = time.monotonic()
        self.idle_since = min(self.idle_since, now)
        if now - self.idle_since >= EMITTED_AFTER_SECONDS and not self.is_wait_emitted:
            self.is_wait_emitted = True
            self.state.emit(WorkAwaited(round(seconds, 1), *await self.ports.awaited()))

    async def look_after_halted(self) -> None:
        """Bury what has expired of deployments that no token may ask for. A worker asks again when it is time."""
        held = {pair.deployment_id for pair in self.held} if self.state.halted else set()
        for deployment_id in self.halts.to_bury(held):
            buried = await self.ports.bury_expired(deployment_id, str(self.state.halted[deployment_id]))
            self.state.counts.dead += buried
        for deployment_id in self.halts.release(time.monotonic()) if self.request.forever else ():
            self.ports.ask_again(deployment_id)

    def take(self, leases: Sequence[Lease]) -> None:
        """Put leases in work. One that is in work already had ended, and is ours again: once is enough."""
        self.looks, self.idle_since, self.is_wait_emitted = 0, math.inf, False
        for lease in leases:
            if min(lease.pair) < 1:
                self.outcomes.append(after_nonsense(lease))
                self.flush.set()
                continue
            if lease.pair not in self.held:
                number = lease.pair.deployment_id
                prefetcher = self.prefetchers.get(number) or self.open_prefetcher(number)
                self.leased += 1
                self.undone += 1
                prefetcher.put(lease)
            self.held[lease.pair] = lease

    def open_prefetcher(self, deployment_id: int) -> Prefetcher:
        concurrency = self.settings.api.concurrency
        prefetcher = self.prefetchers[deployment_id] = Prefetcher(concurrency, 2 * (concurrency + self.batch_size))
        task = self.tasks.create_task(self.work(deployment_id, prefetcher))
        self.working.add(task)
        task.add_done_callback(self.working.discard)
        return prefetcher

    async def pause(self, seconds: float) -> None:
        """Wait until there is room for more, a stop is asked for, or the time is over."""
        events = (self.changed, self.state.walks.news, self.state.stop.asked)
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self.changed.clear()
        self.state.walks.news.clear()

    async def end(self) -> None:
        """Let the prefetchers finish: at a stop, for the grace period, and without what they haven't begun."""
        if self.state.stop.asked.is_set():
            self.ports.stop_sending()
        for prefetcher in self.prefetchers.values():
            while self.state.stop.asked.is_set() and prefetcher.todo:
                self.decide(prefetcher, Release(prefetcher.todo.popleft().pair))
            prefetcher.close()
        if working := set(self.working):
            _, late = await asyncio.wait(working, timeout=self.grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.wait(working)

    async def work(self, deployment_id: int, prefetcher: Prefetcher) -> None:
        """Work off one prefetcher, if its deployment may be asked; else its pairs go back."""
        try:
            await self.ports.check(deployment_id)
        except FatalError as error:
            self.halt(deployment_id, error)
        except StoppedError:
            prefetcher.close()
        else:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self.settings.api.concurrency):
                    tasks.create_task(self.fetch_pairs(prefetcher))
        while prefetcher.todo:
            self.decide(prefetcher, Release(prefetcher.todo.popleft().pair))

    async def fetch_pairs(self, prefetcher: Prefetcher) -> None:
        while prefetcher.todo or await prefetcher.has_more():
            lease = prefetcher.todo.popleft()
            pair = lease.pair
            found: Outcome | FetchedScan = Release(pair)
            try:
                if pair.deployment_id not in self.state.halted and self.state.stop.exit_code is None:
                    found = FetchedScan(lease, await self.ports.fetch(pair), datetime.now(UTC))
            except TransientError as error:
                found = after_failure(lease, error, self.settings.queue)
            except ItemError as error:
                found = after_refusal(lease, error)
            except FatalError as error:
                self.halt(pair.deployment_id, error)
            except StoppedError:
                pass
            finally:
                self.decide(prefetcher, found)

    def judge_answers(self) -> None:
        answers, self.answers = self.answers, []
        self.outcomes += map(self.judge, answers)

    def judge(self, answer: FetchedScan) -> Outcome:
        lease = answer.lease
        try:
            rows = self.ports.flatten(lease.pair, answer.document, answer.fetched_at)
        except ItemError as error:
            return after_refusal(lease, error)
        again = lease.pair in self.running
        if rows.final:
            return Complete(rows, again)
        return replace(after_unfinished(lease, rows, self.settings.queue, answer.fetched_at), again=again)

    def halt(self, deployment_id: int, error: FatalError) -> None:
        """Ask no more of a deployment. Others go on: each has a token, a pace and an API of its own."""
        if (prefetcher := self.prefetchers.pop(deployment_id, None)) is not None:
            prefetcher.close()
        seconds = self.halts.add(deployment_id, error, time.monotonic())
        if seconds is not None:
            self.state.emit(DeploymentStopped(deployment_id, str(error), seconds if self.request.forever else None))
            self.changed.set()

    def decide(self, prefetcher: Prefetcher, found: Outcome | FetchedScan) -> None:
        if isinstance(found, FetchedScan):
            self.answers.append(found)
            if len(self.answers) >= min(FLATTENED_AT_ONCE, self.batch_size):
                self.judge_answers()
        else:
            self.outcomes.append(found)
            if isinstance(found, Discard) and self.request.max_failures is not None:
                self.flush.set()  # as soon as they are written they count
        if isinstance(found, Release) and not self.state.stop.asked.is_set():
            self.leased -= 1  # what can't be asked for spends no --limit
        self.undone -= 1
        prefetcher.undone -= 1
        prefetcher.decided += 1
        if prefetcher.undone == prefetcher.low_water:
            self.changed.set()
        if len(self.outcomes) >= self.batch_size or not self.undone:
            self.flush.set()

    async def settle_outcomes(self) -> None:
        """Write outcomes in batches: when one is full, when nothing else is in work, or at the latest
        `flush_seconds` after the one before."""
        while self.outcomes or self.answers or not self.closing:
            if len(self.outcomes) < self.batch_size and not self.closing:
                try:
                    async with asyncio.timeout(self.settings.database.flush_seconds):
                        await self.flush.wait()
                except TimeoutError:
                    pass
            self.flush.clear()
            self.judge_answers()
            size = min(len(self.outcomes), self.batch_size)
            if size:
                await self.write([self.outcomes.popleft() for _ in range(size)])
                self.changed.set()

    async def write(self, batch: list[Outcome]) -> None:
        """Settle a batch. If the database refuses it, halve it until the one refused row is alone: it dies."""
        try:
            self.count(batch, await self.ports.settle(batch))
        except RefusedError as error:
            if len(batch) > 1:
                await self.write(batch[: len(batch) // 2])
                await self.write(batch[len(batch) // 2 :])
            else:
                await self.write([after_refused_row(batch[0], self.held.get(pair_of(batch[0])), error)])

    def count(self, batch: Sequence[Outcome], settled: Settled) -> None:
        counts = self.state.counts
        for outcome in batch:
            pair = pair_of(outcome)
            if self.held.pop(pair, None) and (prefetcher := self.prefetchers.get(pair.deployment_id)) is not None:
                prefetcher.held -= 1
            if isinstance(outcome, Snooze):
                self.running.add(pair)
            elif pair in self.running and isinstance(outcome, Complete | Discard):
                self.running.discard(pair)
                counts.died_running += isinstance(outcome, Discard)
            if isinstance(outcome, Discard):
                self.state.emit(PairDied(outcome.pair, outcome.error_kind, outcome.error))
        counts.inserted += settled.inserted
        counts.updated += settled.updated
        counts.unchanged += settled.unchanged
        counts.fetched += settled.inserted + settled.updated + settled.unchanged
        counts.waiting += settled.waiting
        counts.running = len(self.running)
        counts.retried += settled.later + sum(
            isinstance(outcome, Complete | Snooze) and outcome.again for outcome in batch
        )
        counts.dead += settled.dead
        if settled.lost:
            self.state.emit(LeasesLost(settled.lost))
        if self.request.max_failures is not None and counts.dead >= self.request.max_failures:
            sentence = f"{counts.dead} dead letters, --max-failures is {self.request.max_failures}"
            self.state.stop.ask(BUDGET_EXIT, sentence)

    async def renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.queue.lease_seconds / 2)
            if self.held:
                await self.ports.renew(list(self.held))
