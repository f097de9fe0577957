"""One list of scans, walked to its end: page after page is read, stored, and what it asks for queued.

No HTTP and no SQL here: what a walk needs is handed in as `Ports`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeVar

from etl.backoff import LONGEST_SNOOZE, backoff_seconds
from etl.config.settings import Settings
from etl.errors import ItemError, RefusedError, StoppedError, TransientError
from etl.model import (
    RETENTION,
    SLACK,
    Drift,
    ListingPass,
    Pair,
    PreviousPasses,
    SearchResponse,
    WalkedRepository,
    WatermarkMove,
)
from etl.pipeline.run_state import RunState
from etl.telemetry.events import ListingSkipped, NothingNew, OutOfReach, Walked
from etl.transform.readers import DRIFT_REFUSED
from etl.transform.repositories_page import RepositoryPage
from etl.transform.search_page import Page

T = TypeVar("T")

STALE_PAGES = 50
"""So many pages in a row that bring nothing new to a walk show that its cursors have no end."""
MOST_SKIPPED = 20
"""Where the database refuses more listings than that, they aren't to blame: the walk fails, and finds them again."""
MOST_PAGES = 100_000
"""No list is longer: what comes then is made up on the way."""


class Ports(Protocol):
    """What a walk asks of the floors below."""

    async def search(
        self, deployment_id: int, since: datetime | None, cursor: str, repository_id: int | None = None
    ) -> SearchResponse:
        """One page, of all repositories or of one; raises TransientError, ItemError, FatalError, StoppedError."""

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

    async def repositories(self, deployment_id: int, number: int) -> tuple[datetime, RepositoryPage]:
        """One page of the repositories, from 0 on, and when it came by the API's clock; raises as `search` does."""

    async def save_repositories(self, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
        """Store a page of the pass that began then."""

    async def finish_repositories(self, deployment_id: int, at: datetime) -> None:
        """Mark what the pass that began then hasn't listed."""

    async def wants_repositories(self, deployment_id: int) -> bool:
        """Whether the repositories should be listed, now that the list of scans was walked."""

    async def walked_repositories(self, deployment_id: int, at: datetime, room: int) -> list[WalkedRepository]:
        """The repositories, how far the walks of each got, and the start of the listed scan at place `room`."""

    async def left_open(self, deployment_id: int, at: datetime) -> list[Pair]:
        """The scans that haven't ended, and that were not listed since."""


class Start(NamedTuple):
    """Where a walk begins, and why: the fields are as in `ListingPass`."""

    since: datetime | None
    previous: PreviousPasses | None
    partial: bool
    replaces: bool = False
    repository: WalkedRepository | None = None


class Reading(NamedTuple):
    """A list that was read to its end. All but its `last` page is recorded."""

    listing_pass: ListingPass
    last: Page
    pages: int = 0
    listed: int = 0
    queued: int = 0
    endless: int = 0
    """After so many pages cursors without end were seen through."""


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


class Walker:
    """Walks lists of one deployment in this run."""

    def __init__(self, ports: Ports, deployment_id: int, settings: Settings, state: RunState) -> None:
        self.ports, self.deployment_id = ports, deployment_id
        self.settings, self.state = settings, state
        self.skipped = 0

    @property
    def look_seconds(self) -> float:
        """How long a scan that still runs is left alone at most."""
        return self.settings.queue.snooze_seconds * LONGEST_SNOOZE

    async def walk(self, start: Start) -> int:
        """Walk a list to its end. Returns how many pairs were queued."""
        return await self.finish(await self.read(start))

    async def read(self, start: Start) -> Reading:
        """Read page after page to the end of the list, and record all but the last.

        If the pages don't go back in time, what drops out at the end of the 30 days moves the rest along, and a scan
        may slip from a page to come onto one that was read: then all is walked once more.
        """
        cursor, listing_pass, listed, queued, pages, again = PageCursor(), None, 0, 0, 0, False
        while True:
            at, page = await self.page(start, cursor.value)
            listing_pass = listing_pass or self.listing_pass(start, at)
            starts = [began for began in (listing_pass.newest_started_at, newest_start(page)) if began]
            listing_pass = listing_pass._replace(newest_started_at=max(starts, default=None), ended_at=at)
            is_end = cursor.follow(page)
            listed, pages = listed + len(page.listings), pages + 1
            if is_end and (again or not cursor.turned):
                endless = cursor.pages if cursor.stale >= STALE_PAGES else 0
                return Reading(listing_pass, page, pages, listed, queued, endless)
            queued += (await self.record(page, listing_pass, is_last=False))[0]
            if is_end:
                cursor, again = PageCursor(), True

    def listing_pass(self, start: Start, at: datetime) -> ListingPass:
        """A walk that begins now."""
        wake = () if start.partial else left_open(start.previous, start.since, at, self.look_seconds)
        return ListingPass(
            self.deployment_id, start.since, at, at, None, start.partial, wake, start.replaces, start.repository
        )

    async def finish(self, reading: Reading) -> int:
        """Record the last page of a list, which moves the watermark. Returns how many pairs the walk has queued."""
        listing_pass = reading.listing_pass
        new, move = await self.record(reading.last, listing_pass, is_last=True)
        queued = reading.queued + new
        if reading.endless:
            self.state.emit(NothingNew(self.deployment_id, reading.endless))
        if listing_pass.repository is None:
            since = _text(listing_pass.since)
            self.state.emit(Walked(self.deployment_id, since, reading.pages, reading.listed, queued))
        if move is not None and move.from_at is not None and move.until_at is not None:
            period = (at.isoformat(timespec="seconds") for at in (move.from_at, move.until_at))
            self.state.emit(OutOfReach(self.deployment_id, *period))
        return queued

    async def record(self, page: Page, listing_pass: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        """Record a page. If the database refuses it, all of it but what is refused: found by halves, each recorded on
        its own."""
        try:
            new, move = await self.ports.record(page, listing_pass, is_last=is_last)
            self.state.counts.discovered += new
            return new, move
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

    async def page(self, start: Start, cursor: str) -> tuple[datetime, Page]:
        """One page, and when it came."""

        async def ask() -> tuple[datetime, Page]:
            repository_id = start.repository and start.repository.repository_id
            found = await self.ports.search(self.deployment_id, start.since, cursor, repository_id)
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


def left_open(
    previous: PreviousPasses | None, since: datetime | None, now: datetime, look_seconds: float
) -> tuple[Pair, ...]:
    """The open scans that a walk from `since` doesn't list: their details are looked at, if their time has come."""
    if previous is None or since is None or (now - previous.walked_at).total_seconds() < look_seconds:
        return ()
    return tuple(one.pair for one in previous.unsettled if one.is_open and one.started_at <= since)
