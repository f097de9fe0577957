"""One page of the search call, read tolerantly: what it says of each scan, and where the next page is. Pure.

An entry that can't be used is noted and skipped; a page that is none raises, so that an error which comes with
status 200 never counts as the end of the list.
"""

from typing import Any, NamedTuple, cast

from etl.errors import ItemError, TransientError
from etl.model import Drift, Listing, Pair
from etl.transform.fields import IDENTITY, LISTED_FINDINGS, LISTING, leftovers, note_unknown, take
from etl.transform.privacy import KEEP, Privacy, without_people
from etl.transform.readers import DRIFT_CONFLICT, DRIFT_ODD_TYPE, to_json
from etl.transform.sanitize import (
    DRIFT_OUT_OF_RANGE,
    PATH_MAX_CHARACTERS,
    Notes,
    clean,
    clean_number,
    clean_text,
    is_storable,
)

SHOWN_CHARACTERS = 60
"""So much of a name that the server has made up is told."""
COMPLETED, ERROR = "SCAN_STATUS_COMPLETED", "SCAN_STATUS_ERROR"
CANCELLED, NEVER_FINISHED = "SCAN_STATUS_CANCELLED", "SCAN_STATUS_NEVER_FINISHED"


class Page(NamedTuple):
    """The scans of one page, each once, and the cursor of the next; empty at the end. `drift` has a sample for each."""

    listings: tuple[Listing, ...]
    cursor: str
    drift: tuple[tuple[Drift, Pair], ...]


def read_page(deployment_id: int, document: object, privacy: Privacy = KEEP) -> Page:
    """The scans of a decoded answer, without what `privacy` hides. TransientError for one that is no page: the next
    answer may be."""
    if not isinstance(document, dict):
        raise TransientError("the search's answer is no object", kind="odd_page", http_status=200)
    entries, cursor = document.get("scans"), document.get("cursor")
    if entries is None and not document.keys() <= {"scans", "cursor"}:
        names = [without_people(name)[:SHOWN_CHARACTERS] for name in sorted(document)[:5]]
        raise TransientError(f"the search's answer has no scans, but {names}", kind="odd_page", http_status=200)
    if not isinstance(entries, list | None) or not isinstance(cursor, str | int | None):
        raise TransientError("the search's answer has an unexpected form", kind="odd_page", http_status=200)
    is_clean = _is_clean(entries)
    listings: dict[Pair, Listing] = {}
    drift: dict[Drift, Pair] = {}
    for entry in entries or ():
        notes: Notes = {}
        listing = _listing(deployment_id, entry, notes, privacy, is_clean=is_clean)
        pair = listing.pair if listing else Pair(deployment_id, 0)
        met = privacy.drift(notes)
        drift.update({Drift(f"listing.{note.path}"[:PATH_MAX_CHARACTERS], note.kind): pair for note in met})
        if listing and (pair not in listings or finality(listing) >= finality(listings[pair])):
            listings[pair] = listing
    return Page(tuple(sorted(listings.values())), "" if cursor is None else str(cursor), tuple(drift.items()))


def _is_clean(entries: object) -> bool:
    """Whether no text and no number of a page needs cleaning: to look at all at once is ten times as fast."""
    try:
        return is_storable(entries, 2) and b"\\u0000" not in to_json(entries)
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _listing(deployment_id: int, entry: object, notes: Notes, privacy: Privacy, *, is_clean: bool) -> Listing | None:
    """None, with the reason in the notes, for an entry that names no scan of this deployment."""
    if not isinstance(entry, dict):
        notes[Drift("scans", DRIFT_ODD_TYPE)] = None
        return None
    extra: dict[str, Any] = dict(entry)
    if not is_clean:
        try:
            extra = cast(dict[str, Any], clean(clean(entry, "", 1, notes, clean_text), "", 1, notes, clean_number))
        except ItemError:  # nested too deep
            notes[Drift("scans", DRIFT_OUT_OF_RANGE)] = None
            return None
    source = dict(extra)
    identity = take(extra, IDENTITY, notes)
    scan_id = identity["id"]
    if scan_id is None or scan_id <= 0:  # 0 is a managed scan that failed before it ran: it names none
        notes[Drift("id", DRIFT_OUT_OF_RANGE if scan_id is not None else DRIFT_ODD_TYPE)] = None
        return None
    if identity["deployment_id"] not in (None, deployment_id):
        notes[Drift("deployment_id", DRIFT_CONFLICT)] = None
        return None
    found, counts = take(extra, LISTING, notes), _findings(extra, notes)
    note_unknown(source, LISTING, notes)
    extra = privacy.left_of(leftovers(extra, LISTING), LISTING.prefix)
    return Listing(pair=Pair(deployment_id, scan_id), **found, **counts, extra=extra or None)


def _findings(extra: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """The counts of a listing, taken out of it."""
    counts = extra.pop("findings_counts", None)
    left = dict(counts) if isinstance(counts, dict) else {}
    note_unknown(left, LISTED_FINDINGS, notes)
    found = take(left, LISTED_FINDINGS, notes)
    left = leftovers(left, LISTED_FINDINGS)
    if left or not isinstance(counts, dict | None):
        extra["findings_counts"] = left or counts
    return found


def finality(listing: Listing) -> int:
    """How final a listed scan is: 0 still to come, 1 never finished so far, 2 cancelled, 3 complete.

    NEVER_FINISHED is what the API says of any scan without an outcome after an hour: it may still get one.
    """
    return finality_of(listing.status, is_complete=listing.completed_at is not None)


def finality_of(status: str | None, *, is_complete: bool) -> int:
    """Likewise, of a status and whether the scan has a `completed_at`."""
    if is_complete or status in (COMPLETED, ERROR):
        return 3
    return {CANCELLED: 2, NEVER_FINISHED: 1}.get(status or "", 0)
