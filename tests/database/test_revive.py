"""Dead letters whose reason may pass: when they come back into the queue, with what, and which never do."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
from leased_queue import fill, lease, pairs, settle
from scan_rows import scan_rows
from sqlalchemy import Table, func, select, update

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue
from etl.database.types import add_seconds
from etl.model import Complete, Discard, Pair
from etl.store.revive import PIECE, revive

ONE = Pair(120, 1)
DAY_SECONDS = 86_400.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as opened:
        yield opened


def count(database: Database, table: Table) -> int:
    rows = select(func.count()).select_from(table)
    return database.run_here(lambda connection: connection.execute(rows).scalar_one())


def dead(database: Database) -> dict[int, dict[str, Any]]:
    """The dead letters by scan."""
    found = database.run_here(lambda connection: connection.execute(select(dead_letters)).mappings().all())
    return {row["scan_id"]: dict(row) for row in found}


def bury(database: Database, pair: Pair = ONE, again_in_seconds: float | None = 3_600.0, attempts: int = 5) -> None:
    """Lease what is due, and give up a pair of it."""
    lease(database, "a")
    letter = Discard(pair, attempts, "http_status", "HTTP 502", 502, again_in_seconds)
    assert settle(database, "a", letter).dead == 1


def move(database: Database, column: str, seconds: float) -> None:
    """Move an instant of all dead letters."""
    moved = {column: add_seconds(dead_letters.c[column], seconds)}
    database.run_here(lambda connection: connection.execute(update(dead_letters).values(moved)))


@pytest.mark.parametrize(
    ("again_in_seconds", "is_retried"), [(None, False), (3_600.0, True), (40 * DAY_SECONDS, False)]
)
def test_a_dead_letter_knows_when_it_is_tried_again(
    database: Database, again_in_seconds: float | None, is_retried: bool
) -> None:
    """Unless its reason is its own, or its scan has expired by then."""
    fill(database, ONE)
    bury(database, again_in_seconds=again_in_seconds)

    letter = dead(database)[1]
    retry_at: datetime | None = letter["retry_at"]
    assert (retry_at is not None) == is_retried
    if retry_at is not None:
        assert abs(retry_at - letter["died_at"] - timedelta(hours=1)) < timedelta(seconds=5)


def test_it_comes_back_when_its_time_has_come_and_dies_with_one_more_attempt(database: Database) -> None:
    """Not before. Its attempts count on, whoever asked for it is served first, and its letter is gone meanwhile."""
    fill(database, ONE, batch="night")
    bury(database)
    early = database.run_here(revive)
    move(database, "retry_at", -3_600.0)
    on_time = database.run_here(revive)
    again = database.run_here(revive)
    [leased] = lease(database, "b")

    assert (early, on_time, again) == (0, 1, 0)
    assert (leased.pair, leased.attempts) == (ONE, 5)
    assert dead(database) == {}
    queued = database.run_here(lambda connection: connection.execute(select(fetch_queue)).mappings().one())
    assert (queued["batch"], queued["priority"]) == (None, 0)
    settle(database, "b", Discard(ONE, 6, "timeout", "slow", None, 7_200.0))
    assert dead(database)[1]["attempts"] == 6


def test_one_that_is_stored_after_all_leaves_no_letter(database: Database) -> None:
    """As if it had never died."""
    fill(database, ONE)
    bury(database)
    move(database, "retry_at", -3_600.0)
    database.run_here(revive)
    lease(database, "b")

    assert settle(database, "b", Complete(scan_rows(1))).inserted == 1
    assert (count(database, dead_letters), count(database, fetch_queue)) == (0, 0)


def test_one_that_has_expired_meanwhile_stays_dead(database: Database) -> None:
    """It is asked for no more, and doesn't stand in the way of others."""
    fill(database, ONE)
    bury(database)
    move(database, "retry_at", -3_600.0)
    move(database, "expires_at", -40 * DAY_SECONDS)

    assert database.run_here(revive) == 0
    assert dead(database)[1]["retry_at"] is None
    assert count(database, fetch_queue) == 0


def test_one_that_is_queued_already_keeps_its_place(database: Database) -> None:
    """And its lease: only the letter goes."""
    fill(database, ONE)
    bury(database)
    fill(database, ONE)
    held = lease(database, "b")
    move(database, "retry_at", -3_600.0)

    assert database.run_here(revive) == 1
    assert dead(database) == {}
    assert [one.attempts for one in held] == [0]
    assert settle(database, "b", Complete(scan_rows(1))).lost == 0


def test_many_come_back_piece_by_piece(database: Database) -> None:
    """So that nobody waits for long."""
    fill(database, *pairs(*range(1, PIECE + 6)))
    leased = lease(database, "a", PIECE + 5)
    settle(database, "a", *(Discard(one.pair, 5, "timeout", "slow", None, 1.0) for one in leased))
    move(database, "retry_at", -10.0)

    assert [database.run_here(revive) for _ in range(3)] == [PIECE, 5, 0]
    assert count(database, fetch_queue) == PIECE + 5
