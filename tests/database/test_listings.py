"""What is listed, stored and queued page by page, on each dialect: nothing is lost, nothing is asked for twice."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from listings_of import PAIR, listing, running
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, insert, select, text, update

from etl.database.connection import Database
from etl.database.schema import fetch_queue, listing_gaps, scan_listings, scans, schema_drift
from etl.database.schema import watermarks as marks
from etl.database.types import ready_now
from etl.model import (
    STILL_RUNNING,
    Complete,
    Discard,
    Drift,
    Listing,
    ListingPass,
    Pair,
    PreviousPasses,
    Settled,
    Snooze,
    Unsettled,
    WatermarkMove,
)
from etl.store import queue, watermarks
from etl.store import settle as settling
from etl.store.listings import DISCOVERED_PRIORITY, PageToRecord, record
from etl.store.scans import load_scans
from etl.store.status import DeadLetterFilter, drop_dead
from etl.transform.search_page import Page

BEGAN_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LISTED_AT = BEGAN_AT + timedelta(hours=2)
DAY = timedelta(days=1)
OPEN: dict[str, Any] = {"completed_at": None, "exit_code": None}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as opened:
        yield opened


def put(database: Database, *found: Listing, listed_at: datetime = LISTED_AT, refresh: bool = False) -> int:
    """Record one page."""
    to_record = PageToRecord(Page(tuple(sorted(found)), "", ()), listed_at, refresh, 300.0)
    return database.run_here(partial(record, to_record=to_record))


def queued(database: Database) -> list[dict[str, Any]]:
    return rows(database, fetch_queue)


def rows(database: Database, table: Any) -> list[dict[str, Any]]:
    statement = select(table).order_by(*table.primary_key)
    return database.run_here(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])


def lease(database: Database, token: str = "w", **options: Any) -> list[Pair]:
    leases = database.run_here(lambda connection: queue.lease(connection, token, 100, 60.0, **options))
    return [one.pair for one in leases]


def settle(database: Database, *outcomes: Any, token: str = "w") -> Settled:
    return database.run_here(lambda connection: settling.settle(connection, token, outcomes, "run"))


def drift(database: Database) -> dict[Drift, int]:
    return {Drift(row["path"], row["kind"]): row["count"] for row in rows(database, schema_drift)}


def walked(
    database: Database,
    at: datetime,
    since: datetime | None = None,
    *,
    hours: float = 0,
    partial_: bool = False,
    wake: Any = (),
    newest: datetime | None = BEGAN_AT,
) -> WatermarkMove:
    """End a walk that took so many hours."""
    walk = ListingPass(120, since, at, at + timedelta(hours=hours), newest, partial_, wake)
    return database.run_here(partial(watermarks.finish, listing_pass=walk, token_key="key"))


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
        WatermarkMove(True, None, LISTED_AT - 28 * DAY),
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


def test_the_first_walk_says_from_when_on_the_list_is_complete(database: Database) -> None:
    """And where it was told to begin later, it leaves the rest to a whole one."""
    assert walked(database, LISTED_AT, LISTED_AT - 7 * DAY, partial_=True) == WatermarkMove(False, None, None)
    assert walked(database, LISTED_AT, LISTED_AT + 7 * DAY, partial_=True) == WatermarkMove(False, None, None)
    assert rows(database, marks) == []
    assert walked(database, LISTED_AT) == WatermarkMove(True, None, LISTED_AT - 30 * DAY)
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
    assert walked(database, LISTED_AT, hours=2) == WatermarkMove(True, None, LISTED_AT + timedelta(hours=2) - 30 * DAY)

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
