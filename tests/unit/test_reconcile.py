"""What a listed scan asks for: every case of what may be known of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from listings_of import listing, running

from etl.model import STILL_RUNNING, Drift
from etl.transform.reconcile import Action, KnownScan, Stored, ask, differences, more_final

DONE, OPEN = listing(), running()
NEVER = running(status="SCAN_STATUS_NEVER_FINISHED")
CANCELLED = running(status="SCAN_STATUS_CANCELLED")
FAILED = listing(status="SCAN_STATUS_ERROR", exit_code="2")
BEGAN_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
FINAL = Stored(7, BEGAN_AT, datetime(2026, 3, 1, 12, 1, 30, 250_001, UTC), 0)
RUNNING = Stored(7, BEGAN_AT, None, None)
WAITS: dict[str, Any] = {"is_queued": True, "queued_kind": STILL_RUNNING}


@pytest.mark.parametrize(
    ("new", "known", "wanted"),
    [
        # New scans
        (DONE, KnownScan(), Action.NOW),
        (OPEN, KnownScan(), Action.LATER),
        (NEVER, KnownScan(), Action.NOW),
        (CANCELLED, KnownScan(), Action.NOW),
        # Queued already
        (DONE, KnownScan(DONE, is_queued=True), Action.NOTHING),
        (DONE, KnownScan(is_queued=True), Action.WAKE),
        (OPEN, KnownScan(OPEN, **WAITS), Action.NOTHING),
        (DONE, KnownScan(OPEN, **WAITS), Action.WAKE),
        (DONE, KnownScan(DONE, RUNNING, **WAITS), Action.WAKE),
        (DONE, KnownScan(DONE, is_queued=True, queued_kind="timeout"), Action.NOTHING),
        # Stored and final
        (DONE, KnownScan(DONE, FINAL), Action.NOTHING),
        (DONE, KnownScan(None, FINAL), Action.NOTHING),
        (OPEN, KnownScan(None, FINAL), Action.NOTHING),
        (CANCELLED, KnownScan(OPEN, FINAL), Action.NOTHING),
        (FAILED, KnownScan(None, FINAL), Action.NOW),
        (FAILED, KnownScan(DONE, FINAL), Action.NOW),
        (FAILED, KnownScan(FAILED, FINAL), Action.NOTHING),
        # Stored as it ran
        (DONE, KnownScan(OPEN, RUNNING), Action.NOW),
        (DONE, KnownScan(DONE, RUNNING), Action.NOTHING),
        (NEVER, KnownScan(NEVER, RUNNING), Action.NOTHING),
        (DONE, KnownScan(NEVER, RUNNING), Action.NOW),
        (OPEN, KnownScan(OPEN, RUNNING), Action.LATER),
        # Given up
        (DONE, KnownScan(DONE, is_given_up=True), Action.NOTHING),
        (OPEN, KnownScan(OPEN, is_given_up=True), Action.NOTHING),
        (DONE, KnownScan(OPEN, is_given_up=True), Action.NOW),
        # Held by nothing
        (DONE, KnownScan(DONE), Action.NOW),
        (OPEN, KnownScan(OPEN), Action.LATER),
    ],
)
def test_a_scan_is_asked_for_when_it_is_needed(new: Any, known: KnownScan, wanted: Action) -> None:
    """New, more final or different, or held by nothing: then it is fetched, and never while it runs."""
    assert ask(new, known) is wanted


def test_refresh_asks_for_final_scans_again() -> None:
    """But not for running ones before their next look."""
    assert ask(DONE, KnownScan(DONE, FINAL), refresh=True) is Action.NOW
    assert ask(DONE, KnownScan(DONE, is_queued=True), refresh=True) is Action.WAKE
    assert ask(OPEN, KnownScan(OPEN, **WAITS), refresh=True) is Action.NOTHING


def test_a_less_final_listing_replaces_none() -> None:
    """Of two listings the more final one is kept, else the newer."""
    assert more_final(OPEN, KnownScan(DONE)) is DONE
    assert more_final(FAILED, KnownScan(DONE)) is FAILED
    assert more_final(DONE, KnownScan(NEVER)) is DONE
    assert more_final(OPEN, KnownScan()) is OPEN


@pytest.mark.parametrize(
    ("new", "stored", "details_are_newer", "paths"),
    [
        (DONE, FINAL, True, []),
        (DONE, FINAL, False, []),
        (OPEN, RUNNING, False, []),
        (OPEN, FINAL, True, []),
        (OPEN, FINAL, False, ["listing.status"]),
        (NEVER, FINAL, True, []),
        (CANCELLED, FINAL, True, ["listing.status"]),
        (DONE, RUNNING, False, []),
        (DONE, RUNNING, True, ["listing.completed_at"]),
        (FAILED, FINAL, True, ["listing.exit_code"]),
        (listing(completed_at="2026-03-01T12:05:00Z"), FINAL, True, ["listing.completed_at"]),
        (
            listing(started_at="2026-03-01T11:00:00Z", repository_id="8"),
            FINAL,
            True,
            ["listing.started_at", "listing.repository_id"],
        ),
        (listing(started_at=None, repository_id=None, exit_code=None), FINAL, True, []),
    ],
)
def test_a_contradiction_is_one_and_progress_is_none(
    new: Any, stored: Stored, details_are_newer: bool, paths: list[str]
) -> None:
    """What the newer answer knows more of isn't a difference; nor is a part of a second."""
    assert differences(new, stored, details_are_newer=details_are_newer) == tuple(Drift(p, "conflict") for p in paths)
