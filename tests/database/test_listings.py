"""What is listed, stored and queued page by page, on each dialect: nothing is lost, nothing is asked for twice."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from counted_days import count_all
from listings_of import PAIR, listing, running
from queue_filling import enqueue
from recorded_pages import BEGAN_AT, DAY, LISTED_AT, OPEN, lease, put, queued, rows, settle, walked
from scan_rows import scan_rows
from sqlalchemy import insert, text, update

from etl.database.connection import Database
from etl.database.schema import fetch_queue, scan_listings, schema_drift
from etl.database.schema import watermarks as marks
from etl.database.types import ready_now
from etl.model import (
    STILL_RUNNING,
    Complete,
    Discard,
    Drift,
    Listing,
    Pair,
    PreviousPasses,
    Snooze,
    Unsettled,
    WatermarkMove,
)
from etl.store import queue, watermarks
from etl.store.listings import DISCOVERED_PRIORITY
from etl.store.scans import load_scans
from etl.store.status import DeadLetterFilter, drop_dead


def drift(database: Database) -> dict[Drift, int]:
    return {Drift(row["path"], row["kind"]): row["count"] for row in rows(database, schema_drift)}


def test_a_new_scan_is_listed_and_queued_before_all_else(database: Database) -> None:
    """With what the search call knows, due at once, until the API forgets it."""
    assert put(database, listing(1)) == 1

    (row,) = rows(database, scan_listings)
    assert row | entry_columns() == row
    (row,) = queued(database)
    assert (row["priority"], row["expires_at"], row["error_kind"]) == (DISCOVERED_PRIORITY, BEGAN_AT + 30 * DAY, None)
    assert lease(database) == [PAIR]


@pytest.mark.parametrize("year", ["0001", "1999", "2300", "9999"])
def test_a_start_that_cannot_be_true_counts_as_none(database: Database, year: str) -> None:
    """The scan is queued as one that has not begun, and the next walk begins as ever."""
    assert put(database, running(1, started_at=f"{year}-12-31T00:00:00Z")) == 1
    walked(database, LISTED_AT, newest=None)

    found = database.run_here(partial(watermarks.previous_passes, deployment_id=120, overlap_seconds=3_600.0, room=2))

    assert rows(database, scan_listings)[0]["started_at"] is None
    assert queued(database)[0]["expires_at"] == LISTED_AT + 30 * DAY
    assert found is not None
    assert (found.base, found.known, found.unsettled) == (LISTED_AT - DAY / 24, 0, ())


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)])
def test_instants_that_others_have_written_end_no_walk(database: Database, at: datetime) -> None:
    """A watermark that can't be true is as good as none, a newest start likewise, and no listed scan changes where the
    next walk begins."""
    put(database, running(1), running(2))
    walked(database, LISTED_AT)
    ask = partial(watermarks.previous_passes, deployment_id=120, overlap_seconds=3_600.0, room=2)
    change(database, update(scan_listings).where(scan_listings.c.scan_id == 2).values(started_at=at))
    change(database, update(marks).values(newest_started_at=at))
    with_odd_starts = database.run_here(ask)
    again = put(database, listing(2, started_at="2026-03-01T12:00:00Z"), listed_at=LISTED_AT + DAY)
    moved = walked(database, LISTED_AT + DAY, LISTED_AT)
    change(database, update(marks).values(walked_at=at, complete_since=at))
    without = database.run_here(ask)
    anew = walked(database, LISTED_AT + 2 * DAY)

    began = (Unsettled(PAIR, BEGAN_AT, 1, is_open=True),)
    assert with_odd_starts == PreviousPasses(LISTED_AT, LISTED_AT - DAY / 24, LISTED_AT - 30 * DAY, 0, None, began)
    assert again == 0
    assert (moved, without, anew) == (
        WatermarkMove(True, None, None),
        None,
        WatermarkMove(True, None, None),
    )
    assert [row["walked_at"] for row in rows(database, marks)] == [LISTED_AT + 2 * DAY]


def change(database: Database, statement: Any) -> None:
    database.run_here(lambda connection: connection.execute(statement).close())


def entry_columns() -> dict[str, Any]:
    return {
        "status": "SCAN_STATUS_COMPLETED",
        "is_full_scan": True,
        "findings_total": 3,
        "findings_code": 2,
        "findings_supply_chain": 0,
        "findings_secrets": 1,
        "total_time_seconds": 90.25,
        "branch": "main",
        "commit_sha": "94c5be1",
        "repository_id": 7,
        "started_at": BEGAN_AT,
        "completed_at": BEGAN_AT + timedelta(seconds=90.25),
        "exit_code": 0,
        "extra": {"enabled_products": ["sast"]},
        "listed_at": LISTED_AT,
        "details_gone_at": None,
        "expired_at": None,
        "dropped_at": None,
    }


def test_a_page_that_comes_twice_changes_nothing_but_the_time(database: Database) -> None:
    """Pages shift, and walks are killed: what is known already is only seen again."""
    put(database, listing(1), running(2))
    before = queued(database)

    assert put(database, listing(1), running(2), listed_at=LISTED_AT + DAY) == 0
    assert queued(database) == before
    assert {row["listed_at"] for row in rows(database, scan_listings)} == {LISTED_AT + DAY}


def test_a_running_scan_is_fetched_when_it_is_final_and_not_before(database: Database) -> None:
    """It waits for its next look, and is due at once when a later listing says that it has ended."""
    assert put(database, running(1)) == 1
    (row,) = queued(database)
    assert row["error_kind"] == STILL_RUNNING
    assert lease(database) == []

    assert put(database, running(1), listed_at=LISTED_AT + DAY) == 0
    assert lease(database) == []
    assert put(database, listing(1), listed_at=LISTED_AT + DAY) == 0
    assert lease(database) == [PAIR]


def test_a_lease_is_left_to_its_worker(database: Database) -> None:
    """A scan that a worker is just fetching isn't made due for another one."""
    put(database, listing(1))
    assert lease(database, "other") == [PAIR]

    put(database, listing(1, exit_code="1"))

    assert lease(database) == []


def test_a_stored_scan_is_fetched_again_only_if_the_listing_says_something_else(database: Database) -> None:
    """An old listing of it changes nothing, one with another outcome does, once, and is counted."""
    database.run_here(partial(load_scans, batch=[scan_rows(1)], run_id="run"))

    assert put(database, running(1)) == 0
    assert put(database, listing(1)) == 0
    assert put(database, listing(1, exit_code="2")) == 1
    lease(database)
    settle(database, Complete(scan_rows(1, minutes=5, exit_code=2)))
    assert put(database, listing(1, exit_code="2")) == 0
    assert drift(database) | {
        Drift("listing.status", "conflict"): 1,
        Drift("listing.exit_code", "conflict"): 1,
    } == drift(database)


def test_a_less_final_listing_replaces_none(database: Database) -> None:
    """An API that answers from an old copy doesn't make a finished scan run again; the difference is counted."""
    put(database, listing(1))
    put(database, running(1))

    assert rows(database, scan_listings)[0]["status"] == "SCAN_STATUS_COMPLETED"
    assert drift(database) == {Drift("listing.status", "conflict"): 1}


def test_details_that_contradict_their_listing_are_counted(database: Database) -> None:
    """When they come; a second look that says the same isn't counted again."""
    put(database, listing(1))
    lease(database)
    settle(database, Complete(scan_rows(1, exit_code=1)))
    database.run_here(partial(load_scans, batch=[scan_rows(1, minutes=9, exit_code=1)], run_id="run"))

    assert drift(database)[Drift("listing.exit_code", "conflict")] == 1


@pytest.mark.parametrize(
    ("listed", "days_later", "is_over"),
    [
        (running(1), 0, False),
        (running(1, status="SCAN_STATUS_CANCELLED"), 0, True),
        (running(1, status="SCAN_STATUS_NEVER_FINISHED"), 0, True),
        (listing(1), 0, False),
        (listing(1), 2, True),
        (running(1, status="SCAN_STATUS_COMPLETED"), 0, False),
        (running(1, status="SCAN_STATUS_ERROR"), 2, True),
        (running(1, status="SCAN_STATUS_ERROR", started_at=None), 0, True),
    ],
)
def test_nobody_waits_for_details_that_get_no_end(
    database: Database, listed: Listing, days_later: int, is_over: bool
) -> None:
    """What the listing knows to have ended is done with, after a day where the details should follow."""
    put(database, listed, listed_at=LISTED_AT + days_later * DAY, refresh=True)
    database.run_here(lambda connection: connection.execute(update(fetch_queue).values(due_at=text("enqueued_at"))))
    assert lease(database) == [PAIR]

    settled = settle(database, Snooze(scan_rows(1, **OPEN), 300.0, BEGAN_AT + 30 * DAY))

    assert (settled.inserted, settled.waiting) == (1, 0 if is_over else 1)
    assert (queued(database) == []) is is_over
    assert put(database, listed, listed_at=LISTED_AT + (days_later + 1) * DAY) == 0


@pytest.mark.parametrize("listed", [listing(1), running(1, status="SCAN_STATUS_COMPLETED")])
def test_a_finished_scan_that_is_not_listed_again_is_over_a_day_later(database: Database, listed: Listing) -> None:
    """The walks go on to younger scans, so the last of them says what time it is; then the scan counts as stored."""
    put(database, listed)
    for walked_at, left in ((LISTED_AT, 1), (LISTED_AT + DAY, 0)):
        walked(database, walked_at)
        database.run_here(lambda connection: connection.execute(update(fetch_queue).values(due_at=ready_now())))
        assert lease(database) == [PAIR]
        settle(database, Snooze(scan_rows(1, **OPEN), 300.0, BEGAN_AT + 30 * DAY))
        assert len(queued(database)) == left

    database.run_here(count_all)
    counts = "SELECT listed, stored, stored_without_end FROM bi_coverage"
    assert database.run_here(lambda connection: connection.execute(text(counts)).one()) == (1, 1, 1)


def test_a_late_outcome_is_fetched(database: Database) -> None:
    """Of a scan that was never finished when its details were stored."""
    put(database, running(1, status="SCAN_STATUS_NEVER_FINISHED"))
    lease(database)
    settle(database, Snooze(scan_rows(1, **OPEN), 300.0, BEGAN_AT + 30 * DAY))

    assert put(database, listing(1)) == 1
    assert lease(database) == [PAIR]


def test_a_listed_scan_whose_details_are_gone_keeps_its_listing(database: Database) -> None:
    """It is marked so, becomes a dead letter, and isn't asked for again unless its listing changes."""
    put(database, listing(1), listing(2))
    lease(database)
    settle(
        database,
        Discard(PAIR, 1, "not_found", "no such scan", 404),
        Discard(Pair(120, 2), 5, "http_status", "500", 500),
    )

    assert [row["details_gone_at"] is not None for row in rows(database, scan_listings)] == [True, False]
    assert put(database, listing(1), listing(2)) == 0
    assert put(database, listing(1, status="SCAN_STATUS_ERROR", exit_code="2")) == 1


def test_a_listed_scan_that_was_dropped_stays_dropped(database: Database) -> None:
    """No walk queues it again, unless its listing changes or everything is asked for anew; it counts as what it is."""

    def state() -> dict[str, int]:
        database.run_here(count_all)
        counts = text("SELECT stored, waiting, dead, dropped, missing FROM bi_coverage")
        row = database.run_here(lambda connection: connection.execute(counts).mappings().one())
        return {name: int(count) for name, count in row.items() if count}

    put(database, listing(1), listing(2), listing(3))
    lease(database)
    settle(database, *(Discard(Pair(120, number), 1, "not_found", "no such scan", 404) for number in (1, 2, 3)))
    dropped = database.run_here(partial(drop_dead, which=DeadLetterFilter()))
    after_drop = state()
    again = put(database, listing(1), listing(2), listing(3), listed_at=LISTED_AT + DAY)
    changed = put(database, listing(2, exit_code="2"))
    refreshed = put(database, listing(3), refresh=True)
    after_asking = state()
    lease(database)
    settle(database, Complete(scan_rows(2, exit_code=2)), Discard(Pair(120, 3), 5, "http_status", "500", 500))

    assert (dropped, again, changed, refreshed) == (3, 0, 1, 1)
    assert after_drop == {"dropped": 3}
    assert after_asking == {"dropped": 1, "waiting": 2}
    assert state() == {"dropped": 1, "stored": 1, "dead": 1}


def test_what_nothing_holds_is_queued_again(database: Database) -> None:
    """A queue that somebody has emptied fills by itself."""
    put(database, listing(1))
    database.run_here(lambda connection: connection.execute(text("DELETE FROM fetch_queue")))

    assert put(database, listing(1)) == 1


def test_a_scan_of_a_backfill_goes_with_what_is_discovered(database: Database) -> None:
    """The pairs of a file go last, and whoever drains up to them leaves them to its run; one that is listed doesn't."""
    pairs = [Pair(120, number) for number in (1, 2)]
    enqueue(database, pairs, batch="backfill")
    database.run_here(lambda connection: connection.execute(insert(fetch_queue).values(deployment_id=121, scan_id=3)))
    below = queue.FILE_PRIORITY

    put(database, listing(2), listing(4))

    left = database.run_here(lambda connection: queue.left(connection, None, below=below))
    assert left[:3] == (3, 0, 0.0)
    assert sorted(lease(database, below=below)) == [(120, 2), (120, 4), (121, 3)]
    assert lease(database, batch="backfill") == [Pair(120, 1)]
    left = database.run_here(lambda connection: queue.left(connection, None, below=below))
    assert left[:3] == (3, 0, None)


def test_refresh_queues_what_is_stored(database: Database) -> None:
    """But doesn't disturb scans that still run."""
    database.run_here(partial(load_scans, batch=[scan_rows(1)], run_id="run"))
    put(database, running(2))

    assert put(database, listing(1), running(2), refresh=True) == 1
    assert lease(database) == [PAIR]
