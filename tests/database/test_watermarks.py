"""From when on the list is complete, and the gaps in it."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from counted_days import count_all
from listings_of import PAIR, listing, running
from recorded_pages import BEGAN_AT, DAY, LISTED_AT, OPEN, lease, put, queued, rows, settle, walked
from scan_rows import scan_rows
from sqlalchemy import Connection, text

from etl.database.connection import Database
from etl.database.schema import listing_gaps, scan_listings, scans, schema_drift
from etl.database.schema import watermarks as marks
from etl.model import (
    Complete,
    Drift,
    Pair,
    Snooze,
    Unsettled,
    WatermarkMove,
)
from etl.store import watermarks
from etl.store.listings import PageToRecord, record
from etl.store.scans import load_scans
from etl.transform.search_page import Page


def test_the_first_walk_says_from_when_on_the_list_is_complete(database: Database) -> None:
    """And where it was told to begin later, it leaves the rest to a whole one."""
    assert walked(database, LISTED_AT, LISTED_AT - 7 * DAY, partial_=True) == WatermarkMove(False, None, None)
    assert walked(database, LISTED_AT, LISTED_AT + 7 * DAY, partial_=True) == WatermarkMove(False, None, None)
    assert rows(database, marks) == []
    assert walked(database, LISTED_AT) == WatermarkMove(True, None, None)
    assert rows(database, marks) == [
        {
            "deployment_id": 120,
            "walked_at": LISTED_AT,
            "newest_started_at": BEGAN_AT,
            "complete_since": LISTED_AT - 30 * DAY,
            "token_key": "key",
        }
    ]
    assert database.run_here(partial(watermarks.seen_by, token_key="key")) == {120}


def test_a_first_walk_of_less_than_30_days_leaves_out_what_can_be_had_later(database: Database) -> None:
    """It isn't out of reach; a walk that goes further back completes it."""
    assert walked(database, LISTED_AT, LISTED_AT - DAY) == WatermarkMove(True, None, None)
    walked(database, LISTED_AT + DAY, LISTED_AT)
    found = database.run_here(partial(watermarks.previous_passes, deployment_id=120, overlap_seconds=3_600.0, room=2))
    assert found is not None
    assert found.complete_since == LISTED_AT - DAY

    assert walked(database, LISTED_AT + 2 * DAY, partial_=True) == WatermarkMove(True, None, None)
    assert [row["complete_since"] for row in rows(database, marks)] == [LISTED_AT - 28 * DAY]
    assert rows(database, listing_gaps) == []


def test_a_watermark_moves_forwards_and_never_past_a_hole(database: Database) -> None:
    """A walk from after the last one leaves a hole; one that began earlier than another that has ended is late."""
    walked(database, LISTED_AT)

    assert walked(database, LISTED_AT + 5 * DAY, LISTED_AT + DAY, partial_=True).moved is False
    assert walked(database, LISTED_AT + 5 * DAY, LISTED_AT - DAY, partial_=True).moved is True
    walked(database, LISTED_AT + 3 * DAY, LISTED_AT)

    (mark,) = rows(database, marks)
    assert (mark["walked_at"], mark["complete_since"]) == (LISTED_AT + 5 * DAY, LISTED_AT - 30 * DAY)
    assert rows(database, listing_gaps) == []


def test_a_gap_of_more_than_30_days_is_written_down(database: Database) -> None:
    """Between the last walk and 30 days before the next nobody has listed what started."""
    walked(database, LISTED_AT)

    reached = walked(database, LISTED_AT + 40 * DAY, LISTED_AT - DAY)

    assert reached == WatermarkMove(True, LISTED_AT, LISTED_AT + 10 * DAY)
    assert rows(database, listing_gaps) == [
        {"deployment_id": 120, "from_at": LISTED_AT, "until_at": LISTED_AT + 10 * DAY}
    ]


def test_what_perishes_during_a_walk_is_in_the_gap(database: Database) -> None:
    """The oldest scans come last, and those that were gone by then may not have been listed."""
    assert walked(database, LISTED_AT, hours=2) == WatermarkMove(True, None, None)
    assert [row["complete_since"] for row in rows(database, marks)] == [LISTED_AT + timedelta(hours=2) - 30 * DAY]

    reached = walked(database, LISTED_AT + 40 * DAY, LISTED_AT - DAY, hours=3)

    until_at = LISTED_AT + 10 * DAY + timedelta(hours=3)
    assert reached == WatermarkMove(True, LISTED_AT, until_at)
    assert [row["until_at"] for row in rows(database, listing_gaps)] == [until_at]
    assert [row["walked_at"] for row in rows(database, marks)] == [LISTED_AT + 40 * DAY]


def test_what_has_expired_in_the_queue_is_marked_and_tried_once_more(database: Database) -> None:
    """The API may still have it; what is stored by then isn't marked."""
    put(database, running(1), listing(2))
    walked(database, LISTED_AT)
    assert lease(database) == [Pair(120, 2)]
    settle(database, Complete(scan_rows(2)))

    walked(database, LISTED_AT + 30 * DAY, LISTED_AT)

    assert [row["expired_at"] for row in rows(database, scan_listings)] == [LISTED_AT + 30 * DAY, None]
    assert lease(database) == [PAIR]


@pytest.mark.parametrize("changes", [{}, {"status": "SCAN_STATUS_PENDING", "started_at": None}])
def test_a_scan_that_is_open_for_ever_is_over_after_30_days(database: Database, changes: dict[str, Any]) -> None:
    """The first answer after them is the last, also of a scan that never began; it is stored, not expired."""
    put(database, running(1, **changes))
    still_open = Snooze(scan_rows(1, **(OPEN | {"started_at": None} if changes else OPEN)), 0.0, LISTED_AT + 30 * DAY)
    for days, left in ((29, 1), (31, 0), (32, 0)):
        walked(database, LISTED_AT + days * DAY, LISTED_AT, wake=(PAIR,))
        lease(database)
        settle(database, still_open)
        assert len(queued(database)) == left

    database.run_here(count_all)
    counts = "SELECT listed, stored, stored_without_end, expired FROM bi_coverage"
    assert database.run_here(lambda connection: connection.execute(text(counts)).one()) == (1, 1, 1, 0)


def test_open_scans_that_a_walk_leaves_out_are_looked_at(database: Database) -> None:
    """Its end makes them due."""
    put(database, running(1))

    walked(database, LISTED_AT, wake=(PAIR,))

    assert lease(database) == [PAIR]


def test_the_next_walk_knows_what_the_last_one_left_open(database: Database) -> None:
    """Where it ended less the overlap, and the unsettled scans of before, with their place."""
    assert (
        database.run_here(partial(watermarks.previous_passes, deployment_id=120, overlap_seconds=3_600.0, room=2))
        is None
    )
    old: dict[str, Any] = {"started_at": "2026-02-20T12:00:00Z"}
    put(
        database,
        listing(1),
        running(2, **old),
        running(3, status="SCAN_STATUS_NEVER_FINISHED", started_at="2026-02-21T12:00:00Z"),
        listing(4, **old),
        running(5, **old),
        running(6),
        running(7, started_at="2026-01-01T12:00:00Z"),
    )
    database.run_here(partial(load_scans, batch=[scan_rows(5)], run_id="run"))
    walked(database, LISTED_AT)

    found = database.run_here(partial(watermarks.previous_passes, deployment_id=120, overlap_seconds=3_600.0, room=2))

    at = datetime(2026, 2, 20, 12, tzinfo=UTC)
    assert found is not None
    assert (found.walked_at, found.base, found.known, found.room_at) == (LISTED_AT, BEGAN_AT - DAY / 24, 2, BEGAN_AT)
    assert found.unsettled == (
        Unsettled(Pair(120, 3), at + DAY, 3, False),
        Unsettled(Pair(120, 2), at, 6, True),
    )


def test_odd_entries_of_a_page_are_counted(database: Database) -> None:
    """With a scan to look at."""
    found = Drift("listing.novelty", "unknown_field")
    to_record = PageToRecord(Page((listing(1),), "", ((found, PAIR),)), LISTED_AT, False, 300.0)
    database.run_here(partial(record, to_record=to_record))

    (row,) = rows(database, schema_drift)
    assert (row["path"], row["sample_scan_id"], row["first_seen_at"]) == ("listing.novelty", 1, LISTED_AT)


def test_a_page_is_all_or_nothing(database: Database) -> None:
    """Killed between its listings and its queue rows, neither is there."""

    def killed(connection: Connection) -> None:
        record(connection, PageToRecord(Page((listing(1),), "", ()), LISTED_AT, False, 300.0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.run_here(killed)

    assert (rows(database, scan_listings), queued(database), rows(database, scans)) == ([], [], [])
