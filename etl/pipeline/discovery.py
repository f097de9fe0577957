"""Finding scans: walk the search call's list of each deployment, and queue what is new or not final.

No HTTP and no SQL here: what a walk needs is handed in as `Ports`.

The list goes back 30 days and is asked from an instant on, so a walk starts where the last complete one left off, less
an overlap: scans change their status after they were listed, and pages shift while they are read. A page holds 500
scans whatever it is asked for, so the overlap is as long as it costs nothing. Beyond it, a scan that is still open
costs a look at its details, unless walking back to it is cheaper. And on a night with news a small part of the
requests goes into walking back to those that the API calls never finished, for some of them finish after all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from etl.backoff import LONGEST_SNOOZE, backoff_seconds
from etl.config.settings import Settings
from etl.errors import FatalError, ItemError, RefusedError, StoppedError, TransientError, foremost
from etl.model import (
    PAGE_SIZE,
    RETENTION,
    SLACK,
    Drift,
    ListingPass,
    Pair,
    PreviousPasses,
    SearchResponse,
    WatermarkMove,
)
from etl.pipeline.run_state import RunState
from etl.telemetry.events import (
    DeploymentStopped,
    ListingSkipped,
    NothingNew,
    OutOfReach,
    Walked,
    WalkFailed,
)
from etl.transform.readers import DRIFT_REFUSED
from etl.transform.search_page import Page

T = TypeVar("T")

ROOM = 250
"""How many known scans a walk may list again for nothing: half a page, so that what is new fits on it, too."""
DEEPER_SHARE = 0.04
"""The part of the requests of a night with news that may go into pages for late changes. Whatever the size of the
deployment it reaches back 20 days: each scan of a day makes 0.06 pages of 30 days."""
STALE_PAGES = 50
"""So many pages in a row that bring nothing new to a walk show that its cursors have no end."""
MOST_SKIPPED = 20
"""Where the database refuses more listings than that, they aren't to blame: the walk fails, and finds them again."""
MOST_PAGES = 100_000
"""No list is longer: what comes then is made up on the way."""


class Ports(Protocol):
    """What a walk asks of the floors below."""

    async def search(self, deployment_id: int, since: datetime | None, cursor: str) -> SearchResponse:
        """One page; raises TransientError, ItemError, FatalError, StoppedError."""

    async def api_time(self) -> datetime:
        """What time it is for the API."""

    async def previous_passes(self, deployment_id: int, room: int) -> PreviousPasses | None:
        """What is known of the walks before, and the start of the known scan at place `room`."""

    def read_page(self, deployment_id: int, document: object) -> Page:
        """The scans of a page; raises TransientError."""

    async def record(self, page: Page, listing_pass: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        """Store a page and queue what it asks for, as one transaction, and after the last one move the watermark.
        Returns how many pairs were queued, and how far the watermark got. RefusedError if the database
        refuses the page."""


class PageCursor:
    """Where a walk is, and what it has met on its way."""

    def __init__(self) -> None:
        self.value = ""
        self.pages = 0
        self.stale = 0
        self.turned = False
        self._cursors = {""}
        self._seen = set[int]()
        self._newest: datetime | None = None

    def follow(self, page: Page) -> bool:
        """Go on to the next page; True if there is none: the cursor is empty, repeats, or leads to nothing new."""
        scan_ids = {listing.pair.scan_id for listing in page.listings}
        if scan_ids <= self._seen:
            self.stale += 1
        else:
            self.stale = 0
            newest = newest_start(page)
            self.turned |= bool(newest and self._newest and newest > self._newest)
            self._newest = newest or self._newest
        self._seen |= scan_ids
        self.pages += 1
        self.value = page.cursor
        if self.pages >= MOST_PAGES:
            raise ItemError(f"the list doesn't end after {self.pages} pages", kind="endless")
        is_end = page.cursor in self._cursors or self.stale >= STALE_PAGES
        self._cursors.add(page.cursor)
        return is_end


def newest_start(page: Page) -> datetime | None:
    """When the newest scan of a page began."""
    return max((listing.started_at for listing in page.listings if listing.started_at), default=None)


def answered_at(found: SearchResponse, page: Page, ours: datetime) -> datetime:
    """When a page was answered, by the API's clock; by ours if the scans on it show that its date is wrong."""
    return ours if _fits(page, ours) and not _fits(page, found.at) else found.at


def _fits(page: Page, now: datetime) -> bool:
    """Whether most scans of a page started within what the API lists, give or take a day."""
    starts = [listing.started_at for listing in page.listings if listing.started_at]
    inside = sum(now - RETENTION - SLACK < start < now + SLACK for start in starts)
    return 2 * inside >= len(starts)


def without_refused(page: Page) -> tuple[Page, ...]:
    """What to record instead of a page that the database refuses: its halves; of one listing all but its `extra`, which
    may hold anything; and without one, nothing of it."""
    half = len(page.listings) // 2
    if half:
        return page._replace(listings=page.listings[:half]), page._replace(listings=page.listings[half:], drift=())
    (listing,) = page.listings
    less, path = ((listing._replace(extra=None),), "listing.extra") if listing.extra else ((), "listing")
    return (page._replace(listings=less, drift=(*page.drift, (Drift(path, DRIFT_REFUSED), listing.pair))),)


async def discover(
    ports: Ports, deployments: Collection[int], settings: Settings, since: datetime | float | None, state: RunState
) -> None:
    """Walk the lists of these deployments, side by side. Those whose list wasn't walked to its end stay `unwalked`, and
    those that can't be asked are `halted`, as soon as that is known.

    `since` is an instant, or so many seconds ago; None goes on where the last walk left off. Raises what no deployment
    is to blame for: DatabaseError, but not a page that the database refuses, and bugs.
    """
    state.unwalked.update(deployments)
    state.walks.of.update(deployments)
    try:
        async with asyncio.TaskGroup() as tasks:
            for deployment_id in sorted(set(deployments)):
                tasks.create_task(_Discovery(ports, deployment_id, settings, since, state).run())
    except BaseExceptionGroup as group:
        raise foremost(group) from None


class _Discovery:
    """The walks of one deployment in this run."""

    def __init__(
        self,
        ports: Ports,
        deployment_id: int,
        settings: Settings,
        since: datetime | float | None,
        state: RunState,
    ) -> None:
        self.ports, self.deployment_id = ports, deployment_id
        self.settings, self.since, self.state = settings, since, state
        self.skipped = 0

    async def run(self) -> None:
        """Find what is new; and if there is something, what has changed late. Then, however that ended, what was found
        may be fetched."""
        try:
            await self.find()
        except FatalError as error:
            self.state.halted[self.deployment_id] = error
            self.state.emit(DeploymentStopped(self.deployment_id, str(error)))
        except (TransientError, ItemError, RefusedError) as error:
            self.state.emit(WalkFailed(self.deployment_id, str(error)))
        except StoppedError:
            pass  # the stop has emitted its reason
        else:
            self.state.unwalked.discard(self.deployment_id)
        finally:
            self.state.walks.end(self.deployment_id)

    async def find(self) -> None:
        """Walk from where the last walk left off; then further back, where that may find late changes."""
        previous, replaces = await self.previous_passes()
        since = None if replaces and self.since is None else await self.start(previous)
        queued = await self.walk(since, previous, partial=self.since is not None, replaces=replaces)
        if previous is not None and self.since is None:
            deeper = start_of_deeper_walk(previous, since, queued)
            if deeper is not None:
                await self.walk(deeper, previous, partial=True)

    async def previous_passes(self) -> tuple[PreviousPasses | None, bool]:
        """What is known of the walks before, and whether this one replaces it: a watermark that is further ahead than
        two clocks may be apart, of the API's clock and of ours, was written by a wrong clock."""
        previous = await self.ports.previous_passes(self.deployment_id, ROOM)
        if previous is None or previous.walked_at <= datetime.now(UTC) + SLACK:
            return previous, False
        is_ahead = previous.walked_at > await self.patiently(self.ports.api_time) + SLACK
        return (None, True) if is_ahead else (previous, False)

    async def start(self, previous: PreviousPasses | None) -> datetime | None:
        """Where the walk begins; None for all that the API has."""
        since = self.since
        if isinstance(since, datetime):
            return since
        seconds = since if since is not None else self.settings.discover.lookback_seconds
        if since is None and previous is not None:
            return start_of_walk(previous)
        if seconds >= RETENTION.total_seconds():
            return None
        return await self.patiently(self.ports.api_time) - timedelta(seconds=seconds)

    async def walk(
        self, since: datetime | None, previous: PreviousPasses | None, *, partial: bool, replaces: bool = False
    ) -> int:
        """Read page after page to the end of the list. Returns how many pairs were queued.

        If the pages don't go back in time, what drops out at the end of the 30 days moves the rest along, and a scan
        may slip from a page to come onto one that was read: then all is walked once more.
        """
        look_seconds = self.settings.queue.snooze_seconds * LONGEST_SNOOZE
        cursor, listing_pass, listed, queued, pages, again = PageCursor(), None, 0, 0, 0, False
        while True:
            at, page = await self.page(since, cursor.value)
            if listing_pass is None:
                wake = () if partial else left_open(previous, since, at, look_seconds)
                listing_pass = ListingPass(self.deployment_id, since, at, at, None, partial, wake, replaces)
            starts = [start for start in (listing_pass.newest_started_at, newest_start(page)) if start]
            listing_pass = listing_pass._replace(newest_started_at=max(starts, default=None), ended_at=at)
            is_end = cursor.follow(page)
            once_more = is_end and cursor.turned and not again
            new, move = await self.record(page, listing_pass, is_last=is_end and not once_more)
            self.state.counts.discovered += new
            listed, queued, pages = listed + len(page.listings), queued + new, pages + 1
            if once_more:
                cursor, again = PageCursor(), True
            elif is_end:
                break
        if cursor.stale >= STALE_PAGES:
            self.state.emit(NothingNew(self.deployment_id, cursor.pages))
        self.state.emit(Walked(self.deployment_id, _text(since), pages, listed, queued))
        if move is not None and move.until_at is not None:
            until_at = move.until_at.isoformat(timespec="seconds")
            self.state.emit(OutOfReach(self.deployment_id, _text(move.from_at), until_at))
        return queued

    async def record(self, page: Page, listing_pass: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        """Record a page. If the database refuses it, all of it but what is refused: found by halves, each recorded on
        its own."""
        try:
            return await self.ports.record(page, listing_pass, is_last=is_last)
        except RefusedError as error:
            if not page.listings or self.skipped >= MOST_SKIPPED:
                raise
            *parts, last = without_refused(page)
            if not last.listings:
                self.skipped += 1
                self.state.emit(ListingSkipped(page.listings[0].pair, str(error)))
        queued = 0
        for part in parts:
            queued += (await self.record(part, listing_pass, is_last=False))[0]
        new, move = await self.record(last, listing_pass, is_last=is_last)
        return queued + new, move

    async def page(self, since: datetime | None, cursor: str) -> tuple[datetime, Page]:
        """One page, and when it came."""

        async def ask() -> tuple[datetime, Page]:
            found = await self.ports.search(self.deployment_id, since, cursor)
            page = self.ports.read_page(self.deployment_id, found.document)
            return answered_at(found, page, datetime.now(UTC)), page

        return await self.patiently(ask)

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question, asked again while it may still come."""
        queue, failures = self.settings.queue, 0
        while True:
            try:
                return await ask()
            except TransientError as error:
                failures += error.spends_attempt
                if failures >= queue.max_attempts:
                    raise
                self.state.counts.retried += 1
                wait = backoff_seconds(max(failures, 1), queue.backoff_seconds, queue.backoff_max_seconds)
            try:
                async with asyncio.timeout(wait):
                    await self.state.stop.asked.wait()
            except TimeoutError:
                continue
            raise StoppedError("stopped while walking the list")


def _text(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None


# Where a walk begins


def start_of_walk(previous: PreviousPasses) -> datetime:
    """Where the next walk begins, for as few requests as there can be; of two such starts it is the earlier one.
    What the first walk was told to leave out stays out.

    Each scan that is still open and older than the start costs a request for its details.
    """
    open_scans = [one for one in previous.unsettled if one.is_open]
    start, known, fewest = previous.base, previous.known, _pages(previous.known) + len(open_scans)
    for nth, one in enumerate(open_scans, 1):
        requests = _pages(one.place) + len(open_scans) - nth
        if requests <= fewest:
            start, known, fewest = _just_before(one.started_at), one.place, requests
    if known < ROOM:
        oldest = previous.base - RETENTION
        start = min(start, previous.room_at or oldest)
    return max(start, previous.complete_since)


def start_of_deeper_walk(previous: PreviousPasses, start: datetime | None, queued: int) -> datetime | None:
    """Where to walk back to for late changes, after `queued` pairs were found from `start` on; None if not at all."""
    pages = int(queued * DEEPER_SHARE)
    within = [one for one in previous.unsettled if one.place + queued <= pages * PAGE_SIZE]
    older = [one for one in within if start is not None and previous.complete_since < one.started_at <= start]
    return _just_before(older[-1].started_at) if older else None


def left_open(
    previous: PreviousPasses | None, since: datetime | None, now: datetime, look_seconds: float
) -> tuple[Pair, ...]:
    """The open scans that a walk from `since` doesn't list: their details are looked at, if their time has come."""
    if previous is None or since is None or (now - previous.walked_at).total_seconds() < look_seconds:
        return ()
    return tuple(one.pair for one in previous.unsettled if one.is_open and one.started_at <= since)


def _pages(scans: int) -> int:
    return max(1, -(-scans // PAGE_SIZE))


def _just_before(at: datetime) -> datetime:
    return at - timedelta(seconds=1)
