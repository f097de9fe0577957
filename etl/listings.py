"""What the search call lists: stored, reconciled with what is known, and queued; and how far discovery got.

Each page of a walk is one transaction: its listings, and the queue rows that they ask for. The watermark moves with the
last one. So a walk that is killed has lost nothing that it had queued, and the next one starts where it did.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select, update
from sqlalchemy.sql.expression import bindparam

from etl.database import in_pairs, lock, on_pairs, unguessed, upsert
from etl.drift import Met, count_drift
from etl.model import (
    PERISHES_AFTER,
    STILL_RUNNING,
    Drift,
    History,
    Listing,
    Pair,
    Reached,
    Unsettled,
    Walk,
    perishes_at,
)
from etl.pacing import look_again_seconds
from etl.pages import CANCELLED, COMPLETED, ERROR, NEVER_FINISHED, Page
from etl.readers import DRIFT_CONFLICT
from etl.reconcile import Ask, Known, Stored, ask, differences, kept
from etl.schema import (
    at_once,
    dead_letters,
    fetch_queue,
    listing_gaps,
    moved,
    scan_listings,
    scans,
    utc_now,
    watermarks,
)

DISCOVERED_PRIORITY = -10
"""What is discovered goes before what any program has queued (0), and that before the pairs of a file."""
BELIEVED_AFTER = timedelta(days=1)
"""For how long the details are looked at again when they lack the end that the listing has."""

_listed = scan_listings.c
_q = fetch_queue.c
_COLUMNS = tuple(_listed[name] for name in Listing._fields[1:])
_IS_OPEN = and_(
    _listed.completed_at.is_(None),
    func.coalesce(_listed.status, "").not_in((COMPLETED, ERROR, CANCELLED, NEVER_FINISHED)),
)
"""As `pages.finality` has it: not at its end in any way."""


class Piece(NamedTuple):
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


def _known(connection: Connection, pairs: Sequence[Pair]) -> dict[Pair, Known]:
    """What is known of scans. The queue is asked first: a scan that leaves it meanwhile is then found stored."""
    if not pairs:
        return {}
    key = (_q.deployment_id, _q.scan_id)
    queued = {
        Pair(row[0], row[1]): row[2] or ""
        for row in connection.execute(select(*key, _q.error_kind).where(in_pairs(connection, fetch_queue, pairs)))
    }
    columns = (scans.c.deployment_id, scans.c.scan_id, *(scans.c[name] for name in Stored._fields))
    stored = {
        Pair(row[0], row[1]): Stored(*row[2:])
        for row in connection.execute(select(*columns).where(in_pairs(connection, scans, pairs)))
    }
    dead = (dead_letters.c.deployment_id, dead_letters.c.scan_id)
    given_up = {
        Pair(*row) for row in connection.execute(select(*dead).where(in_pairs(connection, dead_letters, pairs)))
    }
    gone = select(_listed.deployment_id, _listed.scan_id).where(
        in_pairs(connection, scan_listings, pairs), unguessed(_listed.details_gone_at.is_not(None))
    )
    given_up |= {Pair(*row) for row in connection.execute(gone)}
    listed = listings_of(connection, pairs)
    return {
        pair: Known(listed.get(pair), stored.get(pair), pair in queued, queued.get(pair, ""), pair in given_up)
        for pair in pairs
    }


# Recording a page


def record(connection: Connection, piece: Piece) -> int:
    """Store a page's listings and queue what they ask for. Returns how many pairs were queued."""
    known = _known(connection, [listing.pair for listing in piece.page.listings])
    met = [Met(drift, pair, piece.listed_at) for drift, pair in piece.page.drift]
    changed, asked = [], dict[Ask, list[Listing]]()
    for listing in piece.page.listings:
        before = known[listing.pair]
        keep = kept(listing, before)
        if keep is not listing:
            met.append(Met(Drift("listing.status", DRIFT_CONFLICT), listing.pair, piece.listed_at))
        elif listing != before.listed:
            changed.append(listing)
            if before.stored is not None:
                found = differences(listing, before.stored, details_are_newer=False)
                met += [Met(drift, listing.pair, piece.listed_at) for drift in found]
        asked.setdefault(ask(keep, before, refresh=piece.refresh), []).append(keep)
    _store(connection, piece, changed)
    count_drift(connection, met)
    _take_over(connection, [pair for pair, before in known.items() if before.is_queued])
    wake(connection, [listing.pair for listing in asked.get(Ask.WAKE, ())])
    now, later = asked.get(Ask.NOW, []), asked.get(Ask.LATER, [])
    _queue(connection, piece, now, later)
    return len(now) + len(later)


def _store(connection: Connection, piece: Piece, changed: Sequence[Listing]) -> None:
    names = [column.name for column in _COLUMNS]
    if changed:
        rows = [
            {**dict(zip(names, listing[1:], strict=True)), **listing.pair._asdict(), "listed_at": piece.listed_at}
            for listing in changed
        ]
        change = upsert(connection, scan_listings, lambda new: {name: new[name] for name in (*names, "listed_at")})
        connection.execute(change, rows)
    same = {listing.pair for listing in piece.page.listings} - {listing.pair for listing in changed}
    if same:
        seen = update(scan_listings).where(in_pairs(connection, scan_listings, sorted(same)))
        connection.execute(seen.values(listed_at=piece.listed_at))


def _take_over(connection: Connection, pairs: Sequence[Pair]) -> None:
    """What a file has queued, too, goes with what is discovered: its run may take days, or be dead."""
    if pairs:
        lock(connection, fetch_queue, pairs)
        theirs = and_(in_pairs(connection, fetch_queue, pairs), unguessed(_q.priority > DISCOVERED_PRIORITY))
        connection.execute(update(fetch_queue).where(theirs).values(priority=DISCOVERED_PRIORITY))


def wake(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Make pairs due that wait for later, but for those that a worker has."""
    if pairs:
        lock(connection, fetch_queue, pairs)
        waiting = unguessed(and_(_q.lease_token.is_(None), _q.due_at > utc_now()))
        theirs = and_(in_pairs(connection, fetch_queue, pairs), waiting)
        connection.execute(update(fetch_queue).where(theirs).values(due_at=at_once()))


def _queue(connection: Connection, piece: Piece, now: Sequence[Listing], later: Sequence[Listing]) -> None:
    insert = upsert(connection, fetch_queue, lambda new: {"priority": new.priority, "expires_at": new.expires_at})
    values = {
        "deployment_id": bindparam("deployment"),
        "scan_id": bindparam("scan"),
        "priority": DISCOVERED_PRIORITY,
        "expires_at": bindparam("expiry"),
    }
    if now:
        connection.execute(insert.values(values), [_row(listing, piece.listed_at) for listing in now])
    if later:
        look = {"due_at": moved(utc_now(), bindparam("seconds")), "error_kind": STILL_RUNNING}
        rows = [{**_row(one, piece.listed_at), "seconds": _seconds_to_look(one, piece)} for one in later]
        connection.execute(insert.values(values | look), rows)


def _row(listing: Listing, listed_at: datetime) -> dict[str, Any]:
    expires_at = perishes_at(listing.started_at or listed_at)
    return {"deployment": listing.pair.deployment_id, "scan": listing.pair.scan_id, "expiry": expires_at}


def _seconds_to_look(listing: Listing, piece: Piece) -> float:
    age_seconds = (piece.listed_at - listing.started_at).total_seconds() if listing.started_at else 0.0
    return look_again_seconds(age_seconds, piece.snooze_seconds)


# How far discovery got


def history(connection: Connection, deployment_id: int, overlap_seconds: float, room: int) -> History | None:
    """What the next walk should know of the ones before; None if there was none."""
    mark = connection.execute(
        select(watermarks.c.walked_at, watermarks.c.newest_started_at, watermarks.c.complete_since).where(
            watermarks.c.deployment_id == deployment_id
        )
    ).one_or_none()
    if mark is None:
        return None
    # The newest start bounds it too, so that nothing depends on how far two clocks are apart.
    base = min(mark[0], mark[1] or mark[0]) - timedelta(seconds=overlap_seconds)
    recent = (_listed.deployment_id == deployment_id, _listed.started_at > base - PERISHES_AFTER)
    newer = select(func.count()).where(_listed.deployment_id == deployment_id, _listed.started_at > base)
    nth = select(_listed.started_at).where(*recent).order_by(_listed.started_at.desc()).offset(room - 1).limit(1)
    place = func.row_number().over(order_by=(_listed.started_at.desc(), _listed.scan_id.desc()))
    ranked = select(
        *(_listed.deployment_id, _listed.scan_id, _listed.started_at, _listed.status, _listed.completed_at),
        place.label("place"),
        case((_IS_OPEN, 1), else_=0).label("is_open"),
    ).where(*recent)
    each = ranked.subquery("ranked").c
    is_stored = (
        select(1)
        .where(
            scans.c.deployment_id == each.deployment_id,
            scans.c.scan_id == each.scan_id,
            scans.c.completed_at.is_not(None),
        )
        .exists()
    )
    unsettled = (
        select(each.deployment_id, each.scan_id, each.started_at, each.place, each.is_open)
        .where(
            each.started_at <= base,
            or_(each.is_open == 1, and_(each.status == NEVER_FINISHED, each.completed_at.is_(None))),
            ~is_stored,
        )
        .order_by(each.place)
    )
    return History(
        mark[0],
        base,
        mark[2],
        connection.execute(newer).scalar_one(),
        connection.execute(nth).scalar(),
        tuple(Unsettled(Pair(row[0], row[1]), row[2], row[3], bool(row[4])) for row in connection.execute(unsettled)),
    )


def seen_by(connection: Connection, token_key: str) -> set[int]:
    """The deployments whose lists have been walked with this token."""
    found = select(watermarks.c.deployment_id).where(watermarks.c.token_key == token_key)
    return set(connection.execute(found).scalars())


def finish(connection: Connection, walk: Walk, token_key: str) -> Reached:
    """Move the watermark behind a complete walk, note what can't be had any more, and wake what has to be looked at."""
    mark = watermarks.c
    before = connection.execute(
        select(mark.walked_at, mark.newest_started_at).where(mark.deployment_id == walk.deployment_id)
    ).one_or_none()
    wake(connection, walk.to_wake)
    # What perished during the walk may have slipped from it.
    edge = walk.ended_at - PERISHES_AFTER
    _expire(connection, walk, edge, before[0] - PERISHES_AFTER if before else None)
    begins_at = edge if walk.since is None else max(min(walk.since, walk.walked_at), edge)
    if walk.partial and begins_at > max(edge, before[0] if before else edge):
        return Reached(False, None, None)
    newest = [at for at in (walk.newest_started_at, before[1] if before else None) if at is not None]
    row = {
        "deployment_id": walk.deployment_id,
        "walked_at": walk.walked_at,
        "newest_started_at": min(max(newest), walk.walked_at) if newest else None,
        "complete_since": begins_at,
        "token_key": token_key,
    }
    # Another discovery that began later may have been quicker.
    is_newer = upsert(
        connection,
        watermarks,
        lambda new: {
            "newest_started_at": case(
                (new.walked_at >= mark.walked_at, new.newest_started_at), else_=mark.newest_started_at
            ),
            "complete_since": case(
                (new.complete_since < mark.complete_since, new.complete_since), else_=mark.complete_since
            ),
            "token_key": new.token_key,
            "walked_at": case((new.walked_at >= mark.walked_at, new.walked_at), else_=mark.walked_at),
        },
    )
    connection.execute(is_newer, row)
    if before is None:
        return Reached(True, None, edge if begins_at == edge else None)
    if begins_at <= before[0]:
        return Reached(True, None, None)
    gap = {"deployment_id": walk.deployment_id, "from_at": before[0], "until_at": begins_at}
    connection.execute(upsert(connection, listing_gaps, lambda new: {"until_at": new.until_at}), gap)
    return Reached(True, before[0], begins_at)


def _expire(connection: Connection, walk: Walk, edge: datetime, edge_before: datetime | None) -> None:
    """Mark what is still queued and older than the API has promised to remember, and give it a last chance."""
    of_old = and_(
        _listed.started_at <= edge,
        *([] if edge_before is None else [_listed.started_at > edge_before - timedelta(days=1)]),
    )
    never_begun = and_(_listed.started_at.is_(None), _q.expires_at <= edge + PERISHES_AFTER)
    late = and_(_listed.deployment_id == walk.deployment_id, _listed.expired_at.is_(None), or_(of_old, never_begun))
    queued = select(_listed.deployment_id, _listed.scan_id).join(
        fetch_queue, and_(_q.deployment_id == _listed.deployment_id, _q.scan_id == _listed.scan_id)
    )
    pairs = [Pair(*row) for row in connection.execute(queued.where(late))]
    if pairs:
        expired = update(scan_listings).where(in_pairs(connection, scan_listings, pairs))
        connection.execute(expired.values(expired_at=walk.walked_at))
        wake(connection, pairs)


# What the details have to do with it


def mark_gone(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Note that the API has no details of these scans, of those that are listed."""
    if pairs:
        gone = update(scan_listings).where(in_pairs(connection, scan_listings, pairs))
        connection.execute(gone.values(details_gone_at=utc_now()))


def mark_dropped(connection: Connection, pairs: Sequence[Pair]) -> None:
    """Note that somebody has dropped these scans, of those that are listed."""


def ended(connection: Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Those of these scans that the listing knows to have ended, so that nobody waits for details with an end.

    A cancelled scan never gets one, and what has expired has had its last chance. Where the listing says that a scan
    is complete, the details get a day: from its end on, or from its start where the listing has no end either. A
    finished scan may not be listed again, so it is the last walk that tells what time it is for the API.
    """
    if not pairs:
        return set()
    is_complete = or_(_listed.completed_at.is_not(None), _listed.status.in_((COMPLETED, ERROR)))
    over_at = func.coalesce(_listed.completed_at, _listed.started_at, at_once())
    looked_at = func.coalesce(watermarks.c.walked_at, _listed.listed_at)
    over: ColumnElement[bool] = or_(
        and_(_listed.completed_at.is_(None), _listed.status.in_((CANCELLED, NEVER_FINISHED))),
        _listed.expired_at.is_not(None),
        and_(is_complete, over_at < moved(looked_at, literal(-BELIEVED_AFTER.total_seconds()))),
    )
    found = (
        select(_listed.deployment_id, _listed.scan_id)
        .outerjoin(watermarks, watermarks.c.deployment_id == _listed.deployment_id)
        .where(in_pairs(connection, scan_listings, list(pairs)), unguessed(over))
    )
    return {Pair(*row) for row in connection.execute(found)}
