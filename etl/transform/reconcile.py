"""What a listed scan asks for, given what is known of it already. Pure.

Of the listing and the details the newer and more final one wins. Nothing is asked for twice: a scan is fetched when
it is new, when its listing has become more final or says something else, and when nothing at all holds it.
"""

from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

from etl.model import STILL_RUNNING, Drift, Listing
from etl.transform.readers import DRIFT_CONFLICT
from etl.transform.search_page import finality, finality_of

SAME_TIME = timedelta(seconds=1)
"""Instants that are nearer than that are the same: the two calls write them with a different number of digits."""


class Action(Enum):
    """What becomes of the queue row of a listed scan."""

    NOTHING = "nothing"
    NOW = "now"
    """Queue it, due at once."""
    LATER = "later"
    """Queue it, due at its next look: it still runs."""
    WAKE = "wake"
    """It is queued already, and due at once unless a worker has it."""


class Stored(NamedTuple):
    """What the details said."""

    repository_id: int | None
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None


class KnownScan(NamedTuple):
    """What is known of a scan that is listed. `queued_kind` is its queue row's `error_kind`, empty for none."""

    listed: Listing | None = None
    stored: Stored | None = None
    is_queued: bool = False
    queued_kind: str = ""
    is_given_up: bool = False


def ask(listing: Listing, known: KnownScan, *, refresh: bool = False) -> Action:
    """What to do about a listing; that what was known is less final has been seen to."""
    is_final = finality(listing) > 0
    is_changed = known.listed is None or _outcome(listing) != _outcome(known.listed)
    if known.is_queued:
        was_running = known.queued_kind == STILL_RUNNING
        return Action.WAKE if is_final and (refresh or is_changed or was_running) else Action.NOTHING
    fetch = Action.NOW if is_final else Action.LATER
    if refresh:
        return fetch
    stored = known.stored
    if stored is not None and stored.completed_at is not None:
        says_other = finality(listing) == 3 and bool(differences(listing, stored, details_are_newer=False))
        return Action.NOW if is_changed and says_other else Action.NOTHING
    if stored is not None or known.is_given_up:
        is_wanted = is_changed if is_final else stored is not None
        return fetch if is_wanted else Action.NOTHING
    return fetch


def more_final(listing: Listing, known: KnownScan) -> Listing:
    """Which of two listings of a scan is kept: the new one, unless it is less final."""
    before = known.listed
    return before if before is not None and finality(listing) < finality(before) else listing


def _outcome(listing: Listing) -> tuple[object, ...]:
    return listing.status, listing.completed_at, listing.exit_code


def differences(listing: Listing, stored: Stored, *, details_are_newer: bool) -> tuple[Drift, ...]:
    """Where listing and details contradict each other. That the newer one knows more is none."""
    paths = []
    level = finality_of(listing.status, is_complete=listing.completed_at is not None)
    if stored.completed_at is None:
        if level == 3 and details_are_newer:
            paths.append("listing.completed_at")
    elif level < 3:
        if level == 2 or not details_are_newer:
            paths.append("listing.status")
    else:
        if _differ(listing.completed_at, stored.completed_at):
            paths.append("listing.completed_at")
        if None not in (listing.exit_code, stored.exit_code) and listing.exit_code != stored.exit_code:
            paths.append("listing.exit_code")
    if _differ(listing.started_at, stored.started_at):
        paths.append("listing.started_at")
    if None not in (listing.repository_id, stored.repository_id) and listing.repository_id != stored.repository_id:
        paths.append("listing.repository_id")
    return tuple(Drift(path, DRIFT_CONFLICT) for path in paths)


def _differ(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and other is not None and abs(one - other) >= SAME_TIME
