"""Whoever lists, settles, queues, requeues, drops, prunes and deletes the same scans at once takes turns."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from listings_of import listing, running
from patience import PATIENCE_SECONDS
from scan_rows import scan_rows
from sqlalchemy import Connection, Table, delete, event, insert, select

from etl.database.connection import Database
from etl.database.dialects import lock, on_pairs
from etl.database.schema import dead_letters, fetch_queue, scan_listings, scans
from etl.model import Complete, Discard, Listing, ListingPass, Outcome, Pair, Release, Retry, Snooze
from etl.store import enqueue, pruning, queue, settle, watermarks
from etl.store.listings import PageToRecord, record
from etl.store.revive import revive
from etl.store.status import DeadLetterFilter, drop_dead, requeue_dead
from etl.transform.search_page import Page

LISTED_AT = datetime(2026, 3, 1, 14, tzinfo=UTC)
EXPIRES_AT = LISTED_AT + timedelta(days=30)
OPEN: dict[str, Any] = {"completed_at": None, "exit_code": None}
PAIRS = [Pair(120 + number % 2, number) for number in range(1, 41)]
ROUNDS = 30
T = TypeVar("T")
Work = Callable[[Database, random.Random], None]


def page(found: Sequence[Listing], *, refresh: bool = False) -> PageToRecord:
    return PageToRecord(Page(tuple(sorted(found)), "", ()), LISTED_AT, refresh, 300.0)


def test_an_end_that_is_listed_while_a_worker_settles_is_fetched(server_url: str) -> None:
    """Whoever records it waits for the worker, and then sees that nobody has the scan any more."""
    pair, reads = Pair(120, 1), threading.Event()
    never = running(1, status="SCAN_STATUS_NEVER_FINISHED")
    with (
        closing(Database(server_url)) as working,
        closing(Database(server_url)) as walking,
        ThreadPoolExecutor() as pool,
    ):
        working.run_here(partial(record, to_record=page([never])))
        leased = working.run_here(lambda connection: queue.lease(connection, "w", 1, 60.0))

        @event.listens_for(walking.engine, "before_cursor_execute")
        def notice(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if "FOR UPDATE" in statement or "INSERT INTO fetch_queue" in statement:
                reads.set()

        with working.engine.begin() as connection:
            outcome = Snooze(scan_rows(1, **OPEN), 300.0, EXPIRES_AT)
            settled = settle.settle(connection, "w", [outcome], "run")
            recording = pool.submit(walking.run_here, partial(record, to_record=page([listing(1)])))
            assert reads.wait(PATIENCE_SECONDS)
        queued = recording.result(PATIENCE_SECONDS)
        due = working.run_here(lambda connection: queue.lease(connection, "w", 1, 60.0))

    assert (leased[0].pair, settled.inserted, settled.waiting) == (pair, 1, 0)
    assert queued == 1
    assert [one.pair for one in due] == [pair]


def do(database: Database, work: Callable[[Connection], T]) -> T:
    """In a transaction that isn't tried again, but on InnoDB: where a key is inserted again it locks the gap before it
    too, in an order of its own."""
    if database.engine.dialect.name == "mysql":
        return database.run_here(work)
    with database.engine.connect() as connection:
        result = work(connection)
        connection.commit()
        return result


def list_scans(database: Database, draw: random.Random) -> None:
    found = [draw.choice([listing, running])(pair.scan_id, deployment_id=pair.deployment_id) for pair in some(draw)]
    do(database, partial(record, to_record=page(found, refresh=draw.random() < 0.5)))


def end_walk(database: Database, draw: random.Random) -> None:
    wake = tuple(pair for pair in some(draw) if pair.deployment_id == 120)
    walk = ListingPass(120, None, LISTED_AT, LISTED_AT + draw.choice([0, 60]) * timedelta(days=1), None, False, wake)
    do(database, partial(watermarks.finish, listing_pass=walk, token_key="key"))


def work_off(database: Database, draw: random.Random) -> None:
    token = f"{draw.getrandbits(64):x}"
    pairs = [one.pair for one in do(database, partial(queue.lease, token=token, limit=15, lease_seconds=60.0))]
    outcomes = [outcome(pair, draw) for pair in draw.sample(pairs, len(pairs))]
    do(database, partial(settle.settle, token=token, outcomes=outcomes, run_id="run"))


def outcome(pair: Pair, draw: random.Random) -> Outcome:
    rows = partial(scan_rows, pair.scan_id, deployment_id=pair.deployment_id, minutes=draw.randrange(9))
    outcomes: tuple[Callable[[], Outcome], ...] = (
        lambda: Complete(rows(exit_code=draw.randrange(2))),
        lambda: Snooze(rows(**OPEN), 0.0, EXPIRES_AT),
        lambda: Retry(pair, 0.0, 1, "timeout", "slow"),
        lambda: Discard(pair, 5, "timeout", "slow", None, draw.choice([None, 0.0])),
        lambda: Discard(pair, 1, "not_found", "no such scan", 404),
        lambda: Release(pair),
    )
    return draw.choice(outcomes)()


def fill(database: Database, draw: random.Random) -> None:
    pairs, batch, refresh = some(draw), draw.choice([None, "batch"]), draw.random() < 0.5

    def work(connection: Connection) -> None:
        name = f"{draw.getrandbits(64):x}"
        enqueue.open_stage(connection, name)
        enqueue.stage(connection, name, pairs)
        enqueue.merge(connection, name, len(pairs), batch=batch, refresh=refresh)

    do(database, work)


def requeue(database: Database, draw: random.Random) -> None:
    do(database, partial(requeue_dead, which=DeadLetterFilter(kind="timeout", deployment_id=draw.choice([120, None]))))


def bring_back(database: Database, _draw: random.Random) -> None:
    do(database, revive)


def drop(database: Database, _draw: random.Random) -> None:
    do(database, partial(drop_dead, which=DeadLetterFilter(kind="not_found")))


def prune(database: Database, _draw: random.Random) -> None:
    """Of even number, as all of this deployment are, and not of those that nobody touches."""
    choice = pruning.Choice(LISTED_AT - timedelta(hours=1), 120)
    for _ in (*pruning.prune_dead_letters(database, choice), *pruning.prune_scans(database, choice)):
        pass


def delete_scans(database: Database, draw: random.Random) -> None:
    """Of even number."""
    pairs = [pair for pair in some(draw) if pair.scan_id % 2 == 0]

    def work(connection: Connection) -> None:
        lock(connection, scans, pairs)
        on_pairs(connection, delete(scans), scans, pairs)

    do(database, work)


def fill_tables(connection: Connection) -> None:
    """With rows that nobody touches: a small table is read as a whole, and then a row waits for any other."""
    key = [{"deployment_id": 120 + number % 2, "scan_id": number} for number in range(1_000, 3_000)]
    seen = dict.fromkeys(("first_fetched_at", "fetched_at", "changed_at"), LISTED_AT)
    others: dict[Table, dict[str, Any]] = {
        fetch_queue: {"due_at": datetime(2100, 1, 1, tzinfo=UTC)},
        dead_letters: {"error_kind": "other", "died_at": LISTED_AT},
        scan_listings: {"listed_at": LISTED_AT},
        scans: {"content_hash": "", **seen},
    }
    for table, values in others.items():
        connection.execute(insert(table).values(values), key)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"ANALYZE {table.name}")


def some(draw: random.Random) -> list[Pair]:
    return draw.sample(PAIRS, draw.randrange(1, len(PAIRS)))


def test_all_that_work_on_the_same_scans_take_turns(server_url: str) -> None:
    """No deadlock reaches anyone, on PostgreSQL there is none at all, and no scan is lost that nobody deletes."""
    seed = random.randrange(10_000)
    works: list[Work] = [list_scans, list_scans, end_walk, work_off, work_off]
    works += [fill, requeue, bring_back, drop, delete_scans, prune]
    begun = threading.Barrier(len(works))

    def many(database: Database, work: Work, number: int) -> None:
        draw = random.Random(seed + number)
        begun.wait(PATIENCE_SECONDS)
        for _ in range(ROUNDS):
            work(database, draw)

    with ExitStack() as opened, ThreadPoolExecutor(len(works)) as pool:
        databases = [opened.enter_context(closing(Database(server_url))) for _ in works]
        databases[0].run_here(fill_tables)
        listed = [listing(pair.scan_id, deployment_id=pair.deployment_id) for pair in PAIRS]
        databases[0].run_here(partial(record, to_record=page(listed)))
        running_works = [pool.submit(many, databases[at], work, at) for at, work in enumerate(works)]
        errors = [(work.__name__, found.exception(60)) for work, found in zip(works, running_works, strict=True)]
        held = databases[0].run_here(all_held)

    assert [(name, str(error)[:600]) for name, error in errors if error is not None] == [], seed
    assert {pair for pair in PAIRS if pair.scan_id % 2} <= held, seed


def all_held(connection: Connection) -> set[Pair]:
    """What is queued, dead, stored or dropped."""
    found: set[Pair] = set()
    tables: tuple[Table, ...] = (fetch_queue, dead_letters, scans)
    for table in tables:
        found |= {Pair(row[0], row[1]) for row in connection.execute(select(*table.primary_key))}
    dropped = select(*scan_listings.primary_key).where(scan_listings.c.dropped_at.is_not(None))
    return found | {Pair(row[0], row[1]) for row in connection.execute(dropped)}
