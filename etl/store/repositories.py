"""Deployments and their repositories as the API lists them, and how far the walks by repository got."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, or_, select, update

from etl.database.dialects import upsert
from etl.database.schema import deployments, repositories, repository_watermarks, scan_listings, watermarks
from etl.database.server import in_its_characters
from etl.model import RETENTION, SLACK, Deployment, ListingPass, Pair, Repository, WalkedRepository
from etl.store.drift import DriftSeen, count_drift
from etl.store.marks import UNKNOWN_DAY, mark_days
from etl.store.watermarks import IS_OPEN
from etl.transform.repositories_page import RepositoryPage

LISTED_AGAIN_AFTER, NAMED_AFTER = timedelta(days=7), timedelta(hours=20)
"""So old are the repositories when they are listed again where the deployment's list of scans comes: in any case, and
where a scan is listed of one that isn't known."""

_deployment, _repository, _walk, _mark = deployments.c, repositories.c, repository_watermarks.c, watermarks.c
_listed = scan_listings.c


# What the API says


def slug_of(connection: Connection, deployment_id: int) -> str | None:
    """The name of a deployment in addresses, as far as it is known."""
    return connection.execute(select(_deployment.slug).where(_deployment.deployment_id == deployment_id)).scalar()


def save_deployments(connection: Connection, found: Sequence[Deployment], at: datetime) -> None:
    """Write what a token sees."""
    change = upsert(
        connection, deployments, lambda new: {name: new[name] for name in ("slug", "name", "extra", "seen_at")}
    )
    rows = [{**one._asdict(), "first_seen_at": at, "seen_at": at} for one in sorted(found)]
    if rows:
        connection.execute(change, in_its_characters(connection, rows))


_SAID = tuple(name for name in Repository._fields if name != "repository_id")


def save_page(connection: Connection, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
    """Write a page of a pass that began at `at`. What a later one has written stays."""
    change = upsert(
        connection, repositories, lambda new: {name: _newer(new, name) for name in (*_SAID, "gone_at", "seen_at")}
    )
    rows = [
        {**one._asdict(), "deployment_id": deployment_id, "first_seen_at": at, "seen_at": at, "gone_at": None}
        for one in sorted(page.repositories, key=lambda one: one.repository_id)
    ]
    if rows:
        connection.execute(change, in_its_characters(connection, rows))
    count_drift(connection, [DriftSeen(drift, pair, at) for drift, pair in page.drift])
    mark_days(connection, [(deployment_id, UNKNOWN_DAY)])


def _newer(new: Any, name: str) -> ColumnElement[Any]:
    """The new value, unless the row was seen by a later pass. MySQL sets one column after the other: `seen_at` last."""
    return case((new.seen_at >= _repository.seen_at, new[name]), else_=_repository[name])


def finish_pass(connection: Connection, deployment_id: int, at: datetime) -> None:
    """Mark those that a complete pass hasn't listed, and note when it began."""
    is_gone = and_(_repository.deployment_id == deployment_id, _repository.seen_at < at, _repository.gone_at.is_(None))
    # Locked in the order of the keys, as a page of another pass is.
    key = _repository.repository_id
    if connection.execute(select(key).where(is_gone).order_by(key).with_for_update()).all():
        connection.execute(update(repositories).where(is_gone).values(gone_at=at))
    is_later = or_(_deployment.repositories_at.is_(None), _deployment.repositories_at < at)
    noted = update(deployments).where(_deployment.deployment_id == deployment_id, is_later)
    connection.execute(noted.values(repositories_at=at))


def are_wanted(connection: Connection, deployment_id: int) -> bool:
    """Whether the repositories should be listed after a walk of the deployment's list: by the API's clock it was long
    ago, or a scan was listed whose repository has no name."""
    of_deployment = _mark.deployment_id == deployment_id
    walked_at = connection.execute(select(_mark.walked_at).where(of_deployment)).scalar()
    listed_at = connection.execute(
        select(_deployment.repositories_at).where(_deployment.deployment_id == deployment_id)
    ).scalar()
    if walked_at is None or listed_at is None:
        return walked_at is not None
    age = abs(walked_at - listed_at)
    return age >= LISTED_AGAIN_AFTER or (age >= NAMED_AFTER and _has_unnamed(connection, deployment_id, walked_at))


def _has_unnamed(connection: Connection, deployment_id: int, walked_at: datetime) -> bool:
    known = (_repository.deployment_id == _listed.deployment_id, _repository.repository_id == _listed.repository_id)
    unnamed = select(1).where(
        _listed.deployment_id == deployment_id,
        _listed.started_at > walked_at - RETENTION,
        _listed.repository_id.is_not(None),
        ~select(1).where(*known).exists(),
    )
    return connection.execute(unnamed.limit(1)).first() is not None


# The walks by repository


def walked(connection: Connection, deployment_id: int, at: datetime, room: int) -> list[WalkedRepository]:
    """The repositories of a deployment as they are known at `at`, but for those that are long gone."""
    place = func.row_number().over(partition_by=_listed.repository_id, order_by=_listed.started_at.desc())
    recent = (_listed.deployment_id == deployment_id, _listed.started_at > at - RETENTION - SLACK)
    ranked = select(_listed.repository_id, _listed.started_at, place.label("place")).where(*recent).subquery("ranked")
    nth = select(ranked.c.repository_id, ranked.c.started_at).where(ranked.c.place == room).subquery("nth")
    of_same = (_walk.deployment_id == _repository.deployment_id, _walk.repository_id == _repository.repository_id)
    found = connection.execute(
        select(
            _repository.repository_id,
            _repository.latest_scan_at,
            _repository.gone_at,
            _walk.walked_at,
            _walk.latest_scan_at,
            _walk.newest_started_at,
            nth.c.started_at,
        )
        .select_from(repositories)
        .outerjoin(repository_watermarks, and_(*of_same))
        .outerjoin(nth, nth.c.repository_id == _repository.repository_id)
        .where(
            _repository.deployment_id == deployment_id,
            or_(_repository.gone_at.is_(None), _repository.gone_at > at - RETENTION),
        )
        .order_by(_repository.repository_id)
    )
    return [WalkedRepository(*row) for row in found]


def finish_walk(connection: Connection, listing_pass: ListingPass, repository: WalkedRepository) -> None:
    """Move the watermark of a repository behind a complete walk: forwards only, and not over what was left out."""
    before, edge = repository.walked_at, listing_pass.ended_at - RETENTION
    if listing_pass.partial and listing_pass.since is not None and listing_pass.since > max(edge, before or edge):
        return
    key = {"deployment_id": listing_pass.deployment_id, "repository_id": repository.repository_id}
    if listing_pass.replaces:
        connection.execute(delete(repository_watermarks).filter_by(**key))
    row = {
        **key,
        "newest_started_at": listing_pass.newest_started_at or repository.newest_started_at,
        "latest_scan_at": repository.latest_scan_at,
        "walked_at": listing_pass.walked_at,
    }
    change = upsert(
        connection,
        repository_watermarks,
        lambda new: {
            name: case((new.walked_at >= _walk.walked_at, new[name]), else_=_walk[name])
            for name in ("newest_started_at", "latest_scan_at", "walked_at")
        },
    )
    connection.execute(change, row)


def left_open(connection: Connection, deployment_id: int, at: datetime) -> list[Pair]:
    """The scans that haven't ended and that no walk has listed since `at`: their details are looked at."""
    recent = (_listed.deployment_id == deployment_id, _listed.started_at > at - RETENTION - SLACK)
    found = select(_listed.deployment_id, _listed.scan_id).where(*recent, IS_OPEN, _listed.listed_at < at)
    return [Pair(*row) for row in connection.execute(found)]
