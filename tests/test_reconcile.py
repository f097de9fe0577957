"""What a listed scan asks for: every case of what may be known of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from listings_of import listing, running

from etl.model import STILL_RUNNING, Drift
from etl.transform.reconcile import Ask, Known, Stored, ask, differences, kept

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
        (DONE, Known(), Ask.NOW),
        (OPEN, Known(), Ask.LATER),
        (NEVER, Known(), Ask.NOW),
        (CANCELLED, Known(), Ask.NOW),
        # Queued already
        (DONE, Known(DONE, is_queued=True), Ask.NOTHING),
        (DONE, Known(is_queued=True), Ask.WAKE),
        (OPEN, Known(OPEN, **WAITS), Ask.NOTHING),
        (DONE, Known(OPEN, **WAITS), Ask.WAKE),
        (DONE, Known(DONE, RUNNING, **WAITS), Ask.WAKE),
        (DONE, Known(DONE, is_queued=True, queued_kind="timeout"), Ask.NOTHING),
        # Stored and final
        (DONE, Known(DONE, FINAL), Ask.NOTHING),
        (DONE, Known(None, FINAL), Ask.NOTHING),
        (OPEN, Known(None, FINAL), Ask.NOTHING),
        (CANCELLED, Known(OPEN, FINAL), Ask.NOTHING),
        (FAILED, Known(None, FINAL), Ask.NOW),
        (FAILED, Known(DONE, FINAL), Ask.NOW),
        (FAILED, Known(FAILED, FINAL), Ask.NOTHING),
        # Stored as it ran
        (DONE, Known(OPEN, RUNNING), Ask.NOW),
        (DONE, Known(DONE, RUNNING), Ask.NOTHING),
        (NEVER, Known(NEVER, RUNNING), Ask.NOTHING),
        (DONE, Known(NEVER, RUNNING), Ask.NOW),
        (OPEN, Known(OPEN, RUNNING), Ask.LATER),
        # Given up
        (DONE, Known(DONE, is_given_up=True), Ask.NOTHING),
        (OPEN, Known(OPEN, is_given_up=True), Ask.NOTHING),
        (DONE, Known(OPEN, is_given_up=True), Ask.NOW),
        # Held by nothing
        (DONE, Known(DONE), Ask.NOW),
        (OPEN, Known(OPEN), Ask.LATER),
    ],
)
def test_a_scan_is_asked_for_when_it_is_needed(new: Any, known: Known, wanted: Ask) -> None:
    """New, more final or different, or held by nothing: then it is fetched, and never while it runs."""
    assert ask(new, known) is wanted


def test_refresh_asks_for_final_scans_again() -> None:
    """But not for running ones before their next look."""
    assert ask(DONE, Known(DONE, FINAL), refresh=True) is Ask.NOW
    assert ask(DONE, Known(DONE, is_queued=True), refresh=True) is Ask.WAKE
    assert ask(OPEN, Known(OPEN, **WAITS), refresh=True) is Ask.NOTHING


def test_a_less_final_listing_replaces_none() -> None:
    """Of two listings the more final one is kept, else the newer."""
    assert kept(OPEN, Known(DONE)) is DONE
    assert kept(FAILED, Known(DONE)) is FAILED
    assert kept(DONE, Known(NEVER)) is DONE
    assert kept(OPEN, Known()) is OPEN


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
