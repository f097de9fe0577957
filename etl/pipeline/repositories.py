"""Repositories: listed, and where the search doesn't list a deployment, walked one by one.

A repository's list of 30 days is most often one page, whatever is asked of it. So one that is due is walked back over
all its scans that fit onto a page, and late changes are found on the way; only those with a newer scan than at their
last walk are due, and each once a week.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from etl.errors import ItemError, RefusedError, TransientError, foremost
from etl.model import RETENTION, SLACK, Drift, Pair, WalkedRepository
from etl.pipeline.walk import MOST_PAGES, Ports, Reading, Start, Walker
from etl.telemetry.events import WalkedByRepository
from etl.transform.readers import DRIFT_REFUSED
from etl.transform.repositories_page import RepositoryPage
from etl.transform.search_page import Page

Answer = tuple[datetime, RepositoryPage]
Ask = Callable[[Callable[[], Awaitable[Answer]]], Awaitable[Answer]]

ROOM = 250
"""How many known scans a walk may list again for nothing: half a page, so that what is new fits on it, too."""
WALKED_AGAIN_AFTER = timedelta(days=6, hours=12)
"""Once a week by a nightly job, whose hours vary."""
NEAR_THE_EDGE = timedelta(hours=6)
"""So old a scan that began within what the API lists may have ended."""
SIDE_BY_SIDE = 8
_NO_PAGE = Page((), "", ())


async def list_repositories(ports: Ports, deployment_id: int, ask: Ask) -> datetime:
    """List the repositories, until a page is empty or brings nothing new, and store them. Returns when that began."""
    at, known = None, set[int]()
    for number in range(MOST_PAGES):
        came_at, page = await ask(partial(ports.repositories, deployment_id, number))
        at = at or came_at
        new = {one.repository_id for one in page.repositories} - known
        await _save(ports, deployment_id, page, at)
        if not new:
            await ports.finish_repositories(deployment_id, at)
            return at
        known |= new
    raise ItemError(f"the repositories don't end after {MOST_PAGES} pages", kind="endless")


async def _save(ports: Ports, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
    """Store a page. If the database refuses it, without `extra` and tags, which may hold anything."""
    try:
        await ports.save_repositories(deployment_id, page, at)
    except RefusedError:
        refused = (Drift("repository.extra", DRIFT_REFUSED), Pair(deployment_id, 0))
        less = tuple(one._replace(tags=None, extra=None) for one in page.repositories)
        await ports.save_repositories(deployment_id, RepositoryPage(less, (*page.drift, refused)), at)


class Repositories(NamedTuple):
    """The repositories of a deployment as they are known, and when they were listed."""

    at: datetime
    known: Sequence[WalkedRepository]

    @property
    def were_walked(self) -> bool:
        """Whether they have been walked one by one before."""
        return any(one.walked_at for one in self.known)

    def newer(self, since: datetime | None) -> list[WalkedRepository]:
        """Those that show a newer scan than is known, which a walk from `since` on must find."""
        return [one for one in self.known if shows_newer(one, self.at, since)]


async def known_repositories(walker: Walker) -> Repositories:
    """List the repositories, as patiently as scans are listed."""
    at = await list_repositories(walker.ports, walker.deployment_id, walker.patiently)
    return Repositories(at, await walker.ports.walked_repositories(walker.deployment_id, at, ROOM))


async def walk_by_repository(walker: Walker, start: Start, repositories: Repositories, reason: str) -> None:
    """Walk the lists of the repositories that are due, and then move the watermark of the deployment.

    ItemError where one couldn't be walked; and where none lists a scan though some show newer ones: then no watermark
    has moved.
    """
    at, overlap = repositories.at, timedelta(seconds=walker.settings.discover.overlap_seconds)
    due = [one for one in repositories.known if is_due(one, at, start)]
    walker.state.emit(WalkedByRepository(walker.deployment_id, len(due), len(repositories.known), reason))
    walks = await _walk_each(walker, [start_of(one, at, start, overlap) for one in due])
    readings = [one for one in walks if isinstance(one, Reading)]
    failures = [one for one in walks if isinstance(one, Exception)]
    newer = repositories.newer(start.since)
    if not newer or any(one.listed for one in readings):
        for empty in [one for one in readings if not one.listed]:
            await walker.finish(empty)
    elif not failures:
        raise _nothing_listed(len(newer), len(repositories.known))
    if failures:
        message = f"{len(failures)} of {len(due)} repositories couldn't be walked: {failures[0]}"
        raise ItemError(message, kind="repositories_unwalked")
    await _finish_deployment(walker, start, at, readings)


def _nothing_listed(newer: int, known: int) -> ItemError:
    return ItemError(
        f"the search lists no scan, though {newer} of {known} repositories were scanned since the last walk: look at"
        " what the token may see",
        kind="nothing_listed",
    )


async def _walk_each(walker: Walker, starts: Sequence[Start]) -> list[Reading | Exception]:
    """What came of the walk of each repository. FatalError and StoppedError end them all."""
    slots = asyncio.Semaphore(SIDE_BY_SIDE)

    async def walk(start: Start) -> Reading | Exception:
        async with slots:
            return await _walk_one(walker, start)

    try:
        async with asyncio.TaskGroup() as tasks:
            going = [tasks.create_task(walk(start)) for start in starts]
    except BaseExceptionGroup as group:
        raise foremost(group) from None
    return [task.result() for task in going]


async def _walk_one(walker: Walker, start: Start) -> Reading | Exception:
    """Walk one repository's list. An empty one isn't finished: it is believed when others aren't empty."""
    try:
        reading = await _read(walker, start)
        return reading._replace(queued=await walker.finish(reading), last=_NO_PAGE) if reading.listed else reading
    except (TransientError, ItemError, RefusedError) as error:
        return error


async def _read(walker: Walker, start: Start) -> Reading:
    """A repository's list. That of one that is gone may be gone, too."""
    gone_at = start.repository and start.repository.gone_at
    try:
        return await walker.read(start)
    except ItemError:
        if gone_at is None:
            raise
        return Reading(walker.listing_pass(start, gone_at), _NO_PAGE)


async def _finish_deployment(walker: Walker, start: Start, at: datetime, readings: Sequence[Reading]) -> None:
    """Move the watermark of a deployment whose repositories have been walked, and wake what none of them has listed."""
    previous, wake = start.previous, list[Pair]()
    if previous is not None and not start.partial and (at - previous.walked_at).total_seconds() >= walker.look_seconds:
        wake = await walker.ports.left_open(walker.deployment_id, at)
    newest = [one.listing_pass.newest_started_at for one in readings if one.listing_pass.newest_started_at]
    listing_pass = walker.listing_pass(start, at)._replace(
        ended_at=max((one.listing_pass.ended_at for one in readings), default=at),
        newest_started_at=max(newest, default=None),
        to_wake=tuple(wake),
    )
    sums = [sum(getattr(one, name) for one in readings) for name in ("pages", "listed", "queued")]
    await walker.finish(Reading(listing_pass, _NO_PAGE, *sums))


# Which are walked, and from where on


def is_due(one: WalkedRepository, at: datetime, start: Start) -> bool:
    """Whether a repository may have scans that aren't known."""
    latest = one.latest_scan_at
    if start.partial:
        return start.since is None or latest is None or latest > start.since
    if one.walked_at is None or not timedelta(0) <= at - one.walked_at + SLACK < WALKED_AGAIN_AFTER + SLACK:
        return True
    if one.gone_at is not None:
        return one.walked_at < one.gone_at
    return latest is not None and (one.walked_latest_scan_at is None or latest > one.walked_latest_scan_at)


def start_of(one: WalkedRepository, at: datetime, start: Start, overlap: timedelta) -> Start:
    """Where the walk of a repository begins: back over all its scans, or over as many as cost no request. What the
    first walk was told to leave out stays out."""
    is_ahead = one.walked_at is not None and one.walked_at > at + SLACK
    if start.partial:
        return start._replace(previous=None, repository=one)
    since = start.previous.complete_since if start.previous else start.since
    if one.walked_at is not None and not is_ahead and at - one.walked_at < WALKED_AGAIN_AFTER:
        base = min(one.walked_at, one.newest_started_at or one.walked_at) - overlap
        back = min(base, one.room_at or base - RETENTION)
        since = max(back, since) if since else back
    return Start(since, None, partial=False, replaces=is_ahead, repository=one)


def shows_newer(one: WalkedRepository, at: datetime, since: datetime | None) -> bool:
    """Whether a repository that isn't gone shows a newer scan than is known, which a walk from `since` on must find."""
    known = (at - RETENTION + NEAR_THE_EDGE, since, one.walked_latest_scan_at, one.newest_started_at)
    newest_known = max(instant for instant in known if instant)
    latest = one.latest_scan_at if one.gone_at is None else None
    return latest is not None and newest_known < latest < at + SLACK
