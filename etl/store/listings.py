"""What the search call lists: stored, reconciled with what is known, and queued.

Each page of a walk is one transaction: its listings, and the queue rows that they ask for. The watermark moves after
the last one. So a walk that is killed has lost nothing that it had queued, and the next one starts where it did.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Double, and_, case, delete, func, literal, or_, select, update
from sqlalchemy.sql.expression import bindparam

from etl.backoff import look_again_seconds
from etl.database.dialects import in_pairs, locked, on_pairs, opaque_to_planner, upsert
from etl.database.schema import dead_letters, fetch_queue, scan_listings, scans, watermarks
from etl.database.server import in_its_characters
from etl.database.types import add_seconds, ready_now, utc_now
from etl.model import STILL_RUNNING, Drift, Listing, Pair, retention_end
from etl.store.drift import DriftSeen, count_drift
from etl.store.marks import mark
from etl.transform.readers import DRIFT_CONFLICT
from etl.transform.reconcile import Action, KnownScan, Stored, ask, differences, more_final
from etl.transform.search_page import CANCELLED, COMPLETED, ERROR, NEVER_FINISHED, Page, finality
from etl.transform.timing import started_day

DISCOVERED_PRIORITY = -10
"""What is discovered goes before what any program has queued (0), and that before the pairs of a file."""
BELIEVED_AFTER = timedelta(days=1)
"""For how long the details are looked at again when they lack the end that the listing has."""

_listed = scan_listings.c
_q = fetch_queue.c
_COLUMNS = tuple(_listed[name] for name in Listing._fields if name != "pair")


class PageToRecord(NamedTuple):
    """A page to be recorded. `listed_at` is when its walk began, by the API's clock."""

    page: Page
    listed_at: datetime
    refresh: bool
    snooze_seconds: float


# Reading


def _listing(row: Sequence[Any]) -> Listing:
    return Listing(Pair(row[0], row[1]), *row[2:])


_LISTINGS = select(_listed.deployment_id, _listed.scan_id, *_COLUMNS)


def listings_of(connection: Connection, pairs: Sequence[Pair]) -> dict[Pair, Listing]:
    """The listings of these scans, of those that have one."""
    if not pairs:
        return {}
    found = on_pairs(connection, _LISTINGS, scan_listings, pairs)
    return {listing.pair: listing for listing in map(_listing, found)}


def _known(connection: Connection, pairs: Sequence[Pair], claim: str) -> dict[Pair, KnownScan]:
    """What is known of scans; what is queued by this claim alone isn't. The queue is asked first: a scan that leaves it
    meanwhile is then found stored."""
    if not pairs:
        return {}
    key = (_q.deployment_id, _q.scan_id)
    is_claimed = func.coalesce(_q.lease_token, "") == claim
    in_line = select(*key, _q.error_kind).where(in_pairs(connection, fetch_queue, pairs), ~is_claimed)
    queued = {Pair(row[0], row[1]): row[2] or "" for row in connection.execute(in_line)}
    columns = (scans.c.deployment_id, scans.c.scan_id, *(scans.c[name] for name in Stored._fields))
    stored = {
        Pair(row[0], row[1]): Stored(*row[2:])
        for row in connection.execute(select(*columns).where(in_pairs(connection, scans, pairs)))
    }
    dead = (dead_letters.c.deployment_id, dead_letters.c.scan_id)
    given_up = {
        Pair(*row) for row in connection.execute(select(*dead).where(in_pairs(connection, dead_letters, pairs)))
    }
    is_given_up = or_(_listed.details_gone_at.is_not(None), _listed.dropped_at.is_not(None))
    gone = select(_listed.deployment_id, _listed.scan_id).where(
        in_pairs(connection, scan_listings, pairs), opaque_to_planner(is_given_up)
    )
    given_up |= {Pair(*row) for row in connection.execute(gone)}
    listed = listings_of(connection, pairs)
    return {
        pair: KnownScan(listed.get(pair), stored.get(pair), pair in queued, queued.get(pair, ""), pair in given_up)
        for pair in pairs
    }


# Recording a page


def record(connection: Connection, to_record: PageToRecord) -> int:
    """Store a page's listings and queue what they ask for. Returns how many pairs were queued.

    What is queued, or may have to be, is claimed before it is looked at for good: who settles one of these pairs has
    done all of it by then, or sees all of this.
    """
    pairs, claim = [listing.pair for listing in to_record.page.listings], secrets.token_hex(16)
    known = _known(connection, pairs, claim)
    best = [more_final(listing, known[listing.pair]) for listing in to_record.page.listings]
    wanted = [
        one for one in best if known[one.pair].is_queued or _asks(one, known[one.pair], to_record) != Action.NOTHING
    ]
    _claim(connection, to_record, wanted, claim)
    known |= _known(connection, [one.pair for one in wanted], claim)
    asked: dict[Action, list[Pair]] = {each: [] for each in Action}
    for one in wanted:
        asked[_asks(one, known[one.pair], to_record)].append(one.pair)
    queued = [*asked[Action.NOW], *asked[Action.LATER]]
    changed = {one.pair for one in best if one != known[one.pair].listed} | {one.pair for one in wanted}
    mark(connection, sorted(changed))
    _let_go(connection, queued, [pair for pair in asked[Action.NOTHING] if not known[pair].is_queued], claim)
    wake(connection, asked[Action.WAKE])
    _store(connection, to_record, known)
    mark(connection, sorted(changed))
    return len(queued)


def _asks(listing: Listing, before: KnownScan, to_record: PageToRecord) -> Action:
    return ask(more_final(listing, before), before, refresh=to_record.refresh)


def _claim(connection: Connection, to_record: PageToRecord, wanted: Sequence[Listing], claim: str) -> None:
    """Lock the queue rows of these scans, and make those that there aren't, with the claim as their token: all in one
    go, for it is in the order of the keys.

    What a file has queued, too, goes with what is discovered: its run may take days, or be dead.
    """
    if wanted:
        insert = upsert(
            connection,
            fetch_queue,
            lambda new: {"priority": case((_q.priority > new.priority, new.priority), else_=_q.priority)},
        )
        connection.execute(insert.values(_QUEUED), [_row(one, to_record, claim) for one in sorted(wanted)])


_SECONDS = bindparam("seconds", type_=Double)
_QUEUED = {
    "deployment_id": bindparam("deployment"),
    "scan_id": bindparam("scan"),
    "priority": DISCOVERED_PRIORITY,
    "expires_at": bindparam("expiry"),
    "due_at": case((_SECONDS == 0.0, ready_now()), else_=add_seconds(utc_now(), _SECONDS)),
    "error_kind": bindparam("kind"),
    "lease_token": bindparam("claim"),
}


def _row(listing: Listing, to_record: PageToRecord, claim: str) -> dict[str, Any]:
    """The queue row of a scan: due at once if it has ended, else at its next look."""
    is_final = finality(listing) > 0
    return {
        "deployment": listing.pair.deployment_id,
        "scan": listing.pair.scan_id,
        "expiry": retention_end(listing.started_at or to_record.listed_at),
        "seconds": 0.0 if is_final else _seconds_to_look(listing, to_record),
        "kind": None if is_final else STILL_RUNNING,
        "claim": claim,
    }


def _seconds_to_look(listing: Listing, to_record: PageToRecord) -> float:
    age_seconds = (to_record.listed_at - listing.started_at).total_seconds() if listing.started_at else 0.0
    return look_again_seconds(age_seconds, to_record.snooze_seconds)


def _let_go(connection: Connection, queued: Sequence[Pair], unwanted: Sequence[Pair], claim: str) -> None:
    """End a claim: what is to be queued is free for every worker, and the rest is gone."""
    is_claimed = opaque_to_planner(_q.lease_token == claim)
    if queued:
        connection.execute(
            update(fetch_queue).where(in_pairs(connection, fetch_queue, queued), is_claimed).values(lease_token=None)
        )
    if unwanted:
        connection.execute(delete(fetch_queue).where(in_pairs(connection, fetch_queue, unwanted), is_claimed))


def wake(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Make pairs due that wait for later, but for those that a worker has."""
    if pairs:
        rows = locked(connection, fetch_queue, pairs, _IS_WAITING)
        if waiting := [Pair(row.deployment_id, row.scan_id) for row in rows if row.is_waiting]:
            theirs = in_pairs(connection, fetch_queue, waiting)
            connection.execute(update(fetch_queue).where(theirs).values(due_at=ready_now()))


_IS_WAITING = and_(_q.lease_token.is_(None), _q.due_at > utc_now()).label("is_waiting")


def _store(connection: Connection, to_record: PageToRecord, known: Mapping[Pair, KnownScan]) -> None:
    """Write the listings, each as it is known best, and count what is odd about them."""
    met = [DriftSeen(drift, pair, to_record.listed_at) for drift, pair in to_record.page.drift]
    for listing in to_record.page.listings:
        met += [
            DriftSeen(drift, listing.pair, to_record.listed_at) for drift in _conflicts(listing, known[listing.pair])
        ]
    _write(connection, to_record, [more_final(listing, known[listing.pair]) for listing in to_record.page.listings])
    count_drift(connection, met)


def _conflicts(listing: Listing, before: KnownScan) -> tuple[Drift, ...]:
    """Where a listing contradicts the one before it or, if it says something new, the details."""
    if more_final(listing, before) is not listing:
        return (Drift("listing.status", DRIFT_CONFLICT),)
    if listing == before.listed or before.stored is None:
        return ()
    return differences(listing, before.stored, details_are_newer=False)


def _write(connection: Connection, to_record: PageToRecord, listings: Sequence[Listing]) -> None:
    """In one go, in the order of the keys; what says the same as before is only seen again."""
    if listings:
        listed_at = to_record.listed_at
        rows = [
            {
                **listing._asdict(),
                **listing.pair._asdict(),
                "listed_at": listed_at,
                "started_day": started_day(listing.started_at, listed_at),
            }
            for listing in listings
        ]
        for row in rows:
            del row["pair"]
        names = [*(column.name for column in _COLUMNS), "listed_at", "started_day"]
        change = upsert(connection, scan_listings, lambda new: {name: new[name] for name in names})
        connection.execute(change, in_its_characters(connection, rows))


# What the details have to do with it


def mark_gone(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Note that the API has no details of these scans, of those that are listed."""
    _note(connection, pairs, "details_gone_at", utc_now())


def mark_dropped(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Note that somebody has dropped these scans for good, of those that are listed."""
    _note(connection, pairs, "dropped_at", utc_now())


def mark_expired(connection: Connection, pairs: Sequence[Pair], at: datetime) -> None:
    """Note that a walk at that time has found these scans in the queue, older than what the API promises to show."""
    _note(connection, pairs, "expired_at", at)


def _note(connection: Connection, pairs: Sequence[Pair], column: str, at: Any) -> None:
    if pairs and (listed := [Pair(row.deployment_id, row.scan_id) for row in locked(connection, scan_listings, pairs)]):
        noted = update(scan_listings).where(in_pairs(connection, scan_listings, listed))
        connection.execute(noted.values({column: at}))
    mark(connection, pairs)


def ended(connection: Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Those of these scans that the listing knows to have ended, so that nobody waits for details with an end.

    A cancelled scan never gets one, and what has expired has had its last chance. Where the listing says that a scan
    is complete, the details get a day: from its end on, or from its start where the listing has no end either. A
    finished scan may not be listed again, so it is the last walk that tells what time it is for the API.
    """
    if not pairs:
        return set()
    is_complete = or_(_listed.completed_at.is_not(None), _listed.status.in_((COMPLETED, ERROR)))
    over_at = func.coalesce(_listed.completed_at, _listed.started_at, ready_now())
    looked_at = func.coalesce(watermarks.c.walked_at, _listed.listed_at)
    over: ColumnElement[bool] = or_(
        and_(_listed.completed_at.is_(None), _listed.status.in_((CANCELLED, NEVER_FINISHED))),
        _listed.expired_at.is_not(None),
        and_(is_complete, over_at < add_seconds(looked_at, literal(-BELIEVED_AFTER.total_seconds()))),
    )
    found = (
        select(_listed.deployment_id, _listed.scan_id)
        .outerjoin(watermarks, watermarks.c.deployment_id == _listed.deployment_id)
        .where(in_pairs(connection, scan_listings, list(pairs)), opaque_to_planner(over))
    )
    return {Pair(*row) for row in connection.execute(found)}
