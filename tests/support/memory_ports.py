"""The pipeline's ports in memory: a queue with leases, an API that answers as a test wants it, and a store."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from scan_rows import document

from etl.errors import RefusedError, StoppedError
from etl.model import Complete, Discard, Lease, Outcome, Pair, Release, Retry, ScanRows, Settled, Snooze, pair_of
from etl.transform.scan import flatten

US, OTHERS = "us", "others"
FAR_AWAY = datetime(9999, 1, 1, tzinfo=UTC)

Answer = Callable[[Pair, int], Awaitable[object]]
"""What a pair's fetch gives or raises; the number says how often the pair has been asked for, from 1."""


async def sound(pair: Pair, _times: int) -> object:
    """An API without faults, which takes a moment."""
    await asyncio.sleep(0)
    return document(pair)


@dataclass(slots=True)
class Row:
    """A row of the queue. `due_at` is the loop's time; `holder` has the lease; `runs` is a scan that isn't over."""

    due_at: float
    attempts: int = 0
    holder: str | None = None
    expires_at: datetime = FAR_AWAY
    runs: bool = False


class MemoryPorts:
    """Keeps the promises of the real ports: leases end, outcomes count while the lease is ours, a batch is written
    as a whole or not at all. The store refuses the rows of the pairs in `refused`, and the errors in `refused_errors`.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        answer: Answer = sound,
        *,
        lease_seconds: float = 60.0,
        refused: Collection[Pair] = (),
        refused_errors: Collection[str] = (),
    ) -> None:
        self.barred: dict[int, Exception] = {}
        self.expired = set[Pair]()
        self.asked_again: list[int] = []
        self.queue: dict[Pair, Row] = {}
        self.stored: dict[Pair, ScanRows] = {}
        self.dead: dict[Pair, Discard] = {}
        self.batches: list[tuple[Outcome, ...]] = []
        self.settle_calls = 0
        self.asked = Counter[Pair]()
        self.asked_after_stop = 0
        self.renewed = Counter[Pair]()
        self.fetching = self.most_fetching = self.most_held = 0
        self.stopped_sending, self.wrote, self.was_renewed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._answer = answer
        self._lease_seconds = lease_seconds
        self._refused, self._refused_errors = refused, refused_errors
        self.add(pairs)

    def add(self, pairs: Iterable[Pair], *, holder: str | None = None, due_in_seconds: float = 0.0) -> None:
        """Queue pairs, also such as another worker holds."""
        for pair in pairs:
            self.queue[pair] = Row(self._now() + due_in_seconds, holder=holder)

    def pass_to_others(self, pair: Pair, seconds: float) -> None:
        """Another worker takes the pair over, as after a lease that has ended, and is done with it in `seconds`."""
        self.queue[pair].holder = OTHERS
        self.queue[pair].due_at = self._now() + 60.0
        asyncio.get_running_loop().call_later(seconds, self.queue.pop, pair)

    async def check(self, deployment_id: int) -> None:
        """Every deployment may be asked but those in `barred`."""
        await asyncio.sleep(0)
        if deployment_id in self.barred:
            raise self.barred[deployment_id]

    async def fetch(self, pair: Pair) -> object:
        if self.stopped_sending.is_set():
            self.asked_after_stop += 1
            raise StoppedError("no more requests")
        self.asked[pair] += 1
        self.fetching += 1
        self.most_fetching = max(self.most_fetching, self.fetching)
        try:
            return await self._answer(pair, self.asked[pair])
        finally:
            self.fetching -= 1

    def flatten(self, pair: Pair, document: object, fetched_at: datetime) -> ScanRows:
        return flatten(pair, document, fetched_at)

    async def lease(self, limit: int, without: Collection[int]) -> list[Lease]:
        await asyncio.sleep(0)
        now = self._now()
        due = [pair for pair, row in self.queue.items() if row.due_at <= now and pair.deployment_id not in without]
        for pair in due[:limit]:
            self.queue[pair].holder = US
            self.queue[pair].due_at = now + self._lease_seconds
        self.most_held = max(self.most_held, sum(row.holder == US for row in self.queue.values()))
        return [Lease(pair, self.queue[pair].attempts, self.queue[pair].expires_at) for pair in due[:limit]]

    async def renew(self, pairs: Sequence[Pair]) -> None:
        self.was_renewed.set()
        for pair in pairs:
            if pair in self.queue and self.queue[pair].holder == US:
                self.queue[pair].due_at = self._now() + self._lease_seconds
                self.renewed[pair] += 1

    async def settle(self, outcomes: Sequence[Outcome]) -> Settled:
        await asyncio.sleep(0)
        self.settle_calls += 1
        for outcome in outcomes:
            if isinstance(outcome, Complete | Snooze) and pair_of(outcome) in self._refused:
                raise RefusedError("the database refuses a row")
            if isinstance(outcome, Discard | Retry) and outcome.error in self._refused_errors:
                raise RefusedError("the database refuses an error")
        self.batches.append(tuple(outcomes))
        self.wrote.set()
        counts = Counter(self._write(outcome) for outcome in outcomes)
        return Settled(**{name: counts[name] for name in Settled._fields})

    async def next_due_seconds(self, without: Collection[int]) -> float | None:
        coming = [row.due_at for pair, row in self.queue.items() if not row.runs and pair.deployment_id not in without]
        return max(0.0, min(coming) - self._now()) if coming else None

    async def awaited(self) -> tuple[int, int]:
        rows = self.queue.values()
        return sum(row.attempts > 0 for row in rows), sum(row.holder is not None for row in rows)

    async def bury_expired(self, deployment_id: int, reason: str) -> int:
        """Those in `expired` whose deployment it is."""
        for pair in [pair for pair in self.queue if pair in self.expired and pair.deployment_id == deployment_id]:
            del self.queue[pair]
            self.dead[pair] = Discard(pair, 0, "expired", reason, None)
        return len([pair for pair in self.dead if pair.deployment_id == deployment_id])

    def ask_again(self, deployment_id: int) -> None:
        self.asked_again.append(deployment_id)
        self.barred.pop(deployment_id, None)

    def stop_sending(self) -> None:
        self.stopped_sending.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _write(self, outcome: Outcome) -> str:
        pair = pair_of(outcome)
        row = self.queue.get(pair)
        if row is None or row.holder != US:
            return "lost"
        row.holder = None
        match outcome:
            case Complete(rows):
                del self.queue[pair]
                return self._store(rows)
            case Snooze(rows, delay_seconds, expires_at):
                row.due_at, row.expires_at, row.runs = self._now() + delay_seconds, expires_at, True
                self._store(rows)
                return "waiting"
            case Retry():
                row.due_at, row.attempts = self._now() + outcome.delay_seconds, outcome.attempts
                return "later"
            case Discard():
                del self.queue[pair]
                self.dead[pair] = outcome
                return "dead"
            case Release():
                row.due_at = self._now()
                return "released"

    def _store(self, rows: ScanRows) -> str:
        before, self.stored[rows.pair] = self.stored.get(rows.pair), rows
        if before is None:
            return "inserted"
        return "unchanged" if before.content_hash == rows.content_hash else "updated"
