"""A model of all that can happen to a pair: whatever it is, the pair is held somewhere, and a night's sync ends it."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from listings_of import listing, running
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, literal, select, update

from etl.database.connection import Database
from etl.database.dialects import upsert
from etl.database.schema import dead_letters, fetch_queue, scans, workers
from etl.database.types import add_seconds, ready_now
from etl.model import Complete, Discard, Outcome, Pair, Release, Retry, Snooze
from etl.store import dropping, queue, runs, settle, status
from etl.store.listings import PageToRecord, record
from etl.store.scope import Scope
from etl.transform.search_page import Page

T = TypeVar("T")

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
LONGEST = queue.LongestWaits(lease_seconds=60, retry_seconds=300, running_seconds=4_200)
NIGHTS = 10
"""So many looks of a sync, two hours apart, end whatever a pair may wait for."""

scan_ids = st.integers(1, 6)
some = st.lists(scan_ids, min_size=1, max_size=4, unique=True)
OUTCOMES: dict[str, Callable[[Pair], Outcome]] = {
    "done": lambda pair: Complete(scan_rows(pair.scan_id)),
    "running": lambda pair: Snooze(scan_rows(pair.scan_id, completed_at=None, exit_code=None), 600.0, NOW + 30 * DAY),
    "later": lambda pair: Retry(pair, 30.0, 1, "timeout", "no answer"),
    "free": lambda pair: Retry(pair, 30.0, 0, "rate_limited", "429"),
    "dead": lambda pair: Discard(pair, 1, "not_found", "no such scan", 404),
    "released": Release,
}


def pairs_of(numbers: list[int]) -> list[Pair]:
    return [Pair(120, number) for number in numbers]


class Delivery(RuleBasedStateMachine):
    """Programs, files, walks, workers, people and clocks act on one queue, in any order."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "scans.db"
        shutil.copy(self.template, path)
        self.database = Database(f"sqlite:///{path}")
        self.known = set[Pair]()
        self.dropped = set[Pair]()
        self.at_work: list[str] = []
        self.leases: dict[str, list[Pair]] = {}
        self.names = 0

    def do(self, work: Callable[[Connection], T]) -> T:
        return self.database.run_here(work)

    def new_name(self) -> str:
        self.names += 1
        return f"{self.names:032}"

    # Who fills the queue

    @rule(numbers=some, priority=st.sampled_from([-20, 0, 10, 99]), hours=st.sampled_from([-1.0, 0.0, 1.0]))
    def a_program_inserts(self, numbers: list[int], priority: int, hours: float) -> None:
        due: Any = NOW + timedelta(hours=hours) if hours else ready_now()
        for pair in pairs_of(numbers):
            row = upsert_nothing(priority=priority, due_at=due, **pair._asdict())
            self.do(row)
        self.known.update(pairs_of(numbers))

    @rule(numbers=some, is_run=st.booleans(), refresh=st.booleans())
    def a_file_is_queued(self, numbers: list[int], is_run: bool, refresh: bool) -> None:
        run_id = self.new_name() if is_run else None
        if run_id is not None:
            self.do(partial(runs.see, run_id=run_id, token=run_id, version="1"))
            self.at_work.append(run_id)
        enqueue(self.database, pairs_of(numbers), batch=run_id, refresh=refresh)
        self.known.update(pairs_of(numbers))

    @rule(numbers=some, has_ended=st.booleans(), refresh=st.booleans())
    def a_walk_lists(self, numbers: list[int], has_ended: bool, refresh: bool) -> None:
        found = tuple((listing if has_ended else running)(number) for number in sorted(numbers))
        self.do(partial(record, to_record=PageToRecord(Page(found, "", ()), NOW, refresh, 300.0)))
        self.known.update(pairs_of(numbers))

    @rule(everything=st.booleans())
    def somebody_requeues(self, everything: bool) -> None:
        self.do(partial(status.requeue_dead, which=status.DeadLetterFilter(kind=None if everything else "timeout")))

    # Who works

    @rule(scope=st.sampled_from(["worker", "sync", "run"]), limit=st.integers(1, 4))
    def somebody_leases(self, scope: str, limit: int) -> None:
        token = self.new_name()
        batch = self.at_work[-1] if scope == "run" and self.at_work else None
        lease = partial(Scope(batch, leaves_files=scope == "sync").lease, token=token, limit=limit, lease_seconds=60.0)
        self.leases[token] = [one.pair for one in self.do(lease)]

    @precondition(lambda self: self.leases)
    @rule(outcome=st.sampled_from(sorted(OUTCOMES)), is_late=st.booleans())
    def somebody_settles(self, outcome: str, is_late: bool) -> None:
        token = next(iter(self.leases)) if is_late else list(self.leases)[-1]
        outcomes = [OUTCOMES[outcome](pair) for pair in self.leases.pop(token)]
        self.do(partial(settle.settle, token=token, outcomes=outcomes, run_id="r"))

    @precondition(lambda self: self.at_work)
    @rule(is_killed=st.booleans())
    def a_run_ends(self, is_killed: bool) -> None:
        run_id = self.at_work.pop(0)
        if is_killed:
            seen_long_ago = update(workers).where(workers.c.run_id == run_id).values(seen_at=NOW - DAY)
            self.do(lambda connection: connection.execute(seen_long_ago).close())
        else:
            self.do(partial(runs.leave, token=run_id))

    # People and clocks

    @rule(is_dead=st.booleans())
    def somebody_drops(self, is_dead: bool) -> None:
        before = self.held()
        if is_dead:
            self.do(partial(status.drop_dead, which=status.DeadLetterFilter(kind="not_found")))
        else:
            dropping.drop_chosen(self.database, dropping.Choice(kind="timeout"))
        self.dropped |= before - self.held()

    @rule(seconds=st.sampled_from([1, 90, 7_200]))
    def time_passes(self, seconds: int) -> None:
        self.put_off(-seconds)

    @rule()
    def a_clock_was_ahead(self) -> None:
        self.put_off(86_400)

    @rule(number=scan_ids)
    def a_pair_expires_while_nobody_may_ask(self, number: int) -> None:
        past = update(fetch_queue).where(fetch_queue.c.scan_id == number).values(expires_at=NOW - DAY)
        self.do(lambda connection: connection.execute(past).close())
        self.do(partial(dropping.bury_expired, deployment_id=120, reason="no token", run_id="r"))

    def put_off(self, seconds: int) -> None:
        """Move what waits nearer or further; what a program has scheduled itself goes by the right clock."""
        ours = fetch_queue.c.lease_token.is_not(None) | fetch_queue.c.error_kind.is_not(None)
        waits = fetch_queue.c.due_at != ready_now()
        moves = update(fetch_queue).where(waits & ours if seconds > 0 else waits)
        moves = moves.values(due_at=add_seconds(fetch_queue.c.due_at, literal(seconds)))
        self.do(lambda connection: connection.execute(moves).close())

    # What is always so, and how it ends

    def held(self) -> set[Pair]:
        def work(connection: Connection) -> set[Pair]:
            return {
                Pair(row.deployment_id, row.scan_id)
                for table in (fetch_queue, dead_letters, scans)
                for row in connection.execute(select(*table.primary_key))
            }

        return self.do(work)

    @invariant()
    def every_pair_is_held(self) -> None:
        assert self.known - self.held() - self.dropped == set()

    @invariant()
    def no_pair_is_queued_and_dead(self) -> None:
        both = select(fetch_queue.c.scan_id).join(
            dead_letters, (fetch_queue.c.scan_id == dead_letters.c.scan_id), isouter=False
        )
        stale = both.where(fetch_queue.c.enqueued_at < dead_letters.c.died_at)
        assert self.do(lambda connection: connection.execute(stale).all()) == []

    def teardown(self) -> None:
        """Every run is dead by now. A sync, again and again, leaves nothing of the queue."""
        with closing(self.database), self.folder:
            seen_long_ago = update(workers).values(seen_at=NOW - DAY)
            self.do(lambda connection: connection.execute(seen_long_ago).close())
            scope = Scope(leaves_files=True)
            for night in range(NIGHTS):
                self.do(partial(queue.disbelieve, longest=LONGEST))
                lease = partial(scope.lease, token=f"night {night}", limit=100, lease_seconds=60.0)
                outcomes = [Complete(scan_rows(one.pair.scan_id)) for one in self.do(lease)]
                self.do(partial(settle.settle, token=f"night {night}", outcomes=outcomes, run_id="r"))
                self.put_off(-7_200)
            assert self.do(lambda connection: connection.execute(select(fetch_queue)).all()) == []
            assert self.do(scope.left)[:2] == (0, 0)
            self.every_pair_is_held()


def upsert_nothing(**values: Any) -> Callable[[Connection], None]:
    """A plain INSERT of a row, unless its pair is queued already."""

    def work(connection: Connection) -> None:
        connection.execute(upsert(connection, fetch_queue).values(values)).close()

    return work


def test_whatever_happens_to_a_pair_it_is_held_and_a_sync_ends_it(sqlite_template: Path) -> None:
    """Each pair ends stored, dead, or dropped by a person, however its way there was."""
    Delivery.template = sqlite_template
    machine = Delivery.TestCase
    machine.settings = settings(max_examples=40, stateful_step_count=25)

    machine("runTest").runTest()
