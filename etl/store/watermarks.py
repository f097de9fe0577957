"""How far discovery got: where the next walk of a deployment begins, and what the end of a walk means.

What a watermark says is believed only as far as it can be true: it may come from a clock that was wrong, or from
another program.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, or_, select

from etl.database.dialects import upsert
from etl.database.schema import fetch_queue, listing_gaps, scan_listings, scans, watermarks
from etl.model import RETENTION, SLACK, ListingPass, Pair, PreviousPasses, Unsettled, WatermarkMove
from etl.store.listings import mark_expired, wake
from etl.transform.readers import END_OF_INSTANTS, FIRST_INSTANT
from etl.transform.search_page import CANCELLED, COMPLETED, ERROR, NEVER_FINISHED

_listed = scan_listings.c
_q = fetch_queue.c
IS_OPEN = and_(
    _listed.completed_at.is_(None),
    func.coalesce(_listed.status, "").not_in((COMPLETED, ERROR, CANCELLED, NEVER_FINISHED)),
)
"""As `search_page.finality` has it: not at its end in any way."""


class _Mark(NamedTuple):
    """A watermark."""

    walked_at: datetime
    newest_started_at: datetime | None
    complete_since: datetime


def _can_be_true(instant: ColumnElement[Any]) -> ColumnElement[bool]:
    """As `is_believable`, before it leaves the database: others write there too, and Python knows fewer years."""
    return and_(instant >= FIRST_INSTANT, instant < END_OF_INSTANTS)


_mark = watermarks.c
_MARK = select(
    _mark.walked_at, case((_can_be_true(_mark.newest_started_at), _mark.newest_started_at)), _mark.complete_since
).where(_can_be_true(_mark.walked_at), _can_be_true(_mark.complete_since))


def _watermark(connection: Connection, deployment_id: int) -> _Mark | None:
    """The watermark of a deployment, if there is one that can be true."""
    found = connection.execute(_MARK.where(_mark.deployment_id == deployment_id)).one_or_none()
    return None if found is None else _Mark(*found)


def previous_passes(
    connection: Connection, deployment_id: int, overlap_seconds: float, room: int
) -> PreviousPasses | None:
    """What the next walk should know of the ones before; None if there was none."""
    mark = _watermark(connection, deployment_id)
    if mark is None:
        return None
    # The newest start bounds it too, so that nothing depends on how far two clocks are apart.
    base = min(mark.walked_at, mark.newest_started_at or mark.walked_at) - timedelta(seconds=overlap_seconds)
    has_begun = (_listed.deployment_id == deployment_id, _listed.started_at < mark.walked_at + SLACK)
    recent = (*has_begun, _listed.started_at > base - RETENTION)
    newer = select(func.count()).where(*has_begun, _listed.started_at > base)
    nth = select(_listed.started_at).where(*recent).order_by(_listed.started_at.desc()).offset(room - 1).limit(1)
    place = func.row_number().over(order_by=(_listed.started_at.desc(), _listed.scan_id.desc()))
    ranked = select(
        *(_listed.deployment_id, _listed.scan_id, _listed.started_at, _listed.status, _listed.completed_at),
        place.label("place"),
        case((IS_OPEN, 1), else_=0).label("is_open"),
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
    return PreviousPasses(
        mark.walked_at,
        base,
        mark.complete_since,
        connection.execute(newer).scalar_one(),
        connection.execute(nth).scalar(),
        tuple(Unsettled(Pair(row[0], row[1]), row[2], row[3], bool(row[4])) for row in connection.execute(unsettled)),
    )


def seen_by(connection: Connection, token_key: str) -> set[int]:
    """The deployments whose lists have been walked with this token."""
    found = select(watermarks.c.deployment_id).where(watermarks.c.token_key == token_key)
    return set(connection.execute(found).scalars())


def finish(connection: Connection, listing_pass: ListingPass, token_key: str) -> WatermarkMove:
    """Move the watermark behind a complete walk, note what is no longer available, wake what has to be looked at."""
    before = None if listing_pass.replaces else _watermark(connection, listing_pass.deployment_id)
    # What expired during the walk may have slipped from it.
    edge = listing_pass.ended_at - RETENTION
    late = _late(connection, listing_pass.deployment_id, edge, before)
    wake(connection, [*listing_pass.to_wake, *late])
    mark_expired(connection, late, listing_pass.walked_at)
    begins_at = edge if listing_pass.since is None else max(min(listing_pass.since, listing_pass.walked_at), edge)
    if listing_pass.partial and begins_at > max(edge, before.walked_at if before else edge):
        return WatermarkMove(False, None, None)
    if before is None:
        connection.execute(delete(watermarks).where(_mark.deployment_id == listing_pass.deployment_id))
    _move_watermark(connection, listing_pass, before, begins_at, token_key)
    if before is None or begins_at <= before.walked_at:
        return WatermarkMove(True, None, None)
    gap = {"deployment_id": listing_pass.deployment_id, "from_at": before.walked_at, "until_at": begins_at}
    connection.execute(upsert(connection, listing_gaps, lambda new: {"until_at": new.until_at}), gap)
    return WatermarkMove(True, before.walked_at, begins_at)


def _move_watermark(
    connection: Connection, listing_pass: ListingPass, before: _Mark | None, begins_at: datetime, token_key: str
) -> None:
    """Forwards only: another discovery that began later may have been quicker."""
    newest = [
        at for at in (listing_pass.newest_started_at, before.newest_started_at if before else None) if at is not None
    ]
    row = {
        "deployment_id": listing_pass.deployment_id,
        "walked_at": listing_pass.walked_at,
        "newest_started_at": min(max(newest), listing_pass.walked_at) if newest else None,
        "complete_since": begins_at,
        "token_key": token_key,
    }
    is_newer = upsert(
        connection,
        watermarks,
        lambda new: {
            "newest_started_at": case(
                (new.walked_at >= _mark.walked_at, new.newest_started_at), else_=_mark.newest_started_at
            ),
            "complete_since": case(
                (new.complete_since < _mark.complete_since, new.complete_since), else_=_mark.complete_since
            ),
            "token_key": new.token_key,
            "walked_at": case((new.walked_at >= _mark.walked_at, new.walked_at), else_=_mark.walked_at),
        },
    )
    connection.execute(is_newer, row)


def _late(connection: Connection, deployment_id: int, edge: datetime, before: _Mark | None) -> list[Pair]:
    """What is still queued and older than the API has promised to remember: it gets a last chance."""
    of_old = _listed.started_at <= edge
    if before is not None:
        of_old = and_(of_old, _listed.started_at > before.walked_at - RETENTION - SLACK)
    never_begun = and_(_listed.started_at.is_(None), _q.expires_at <= edge + RETENTION)
    late = and_(_listed.deployment_id == deployment_id, _listed.expired_at.is_(None), or_(of_old, never_begun))
    queued = select(_listed.deployment_id, _listed.scan_id).join(
        fetch_queue, and_(_q.deployment_id == _listed.deployment_id, _q.scan_id == _listed.scan_id)
    )
    return [Pair(*row) for row in connection.execute(queued.where(late))]
