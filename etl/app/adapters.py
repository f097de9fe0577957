"""What the pipeline asks for, answered by the database and the API: the seam between the two floors."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from etl.app.context import RunContext
from etl.app.privacy import privacy_of
from etl.backoff import LONGEST_SNOOZE, backoff_seconds
from etl.config.settings import ApiSettings
from etl.database.connection import Database, RunHere
from etl.errors import DatabaseAwayError, ItemError, RefusedError
from etl.model import Lease, ListingPass, Outcome, Pair, PreviousPasses, Settled, WalkedRepository, WatermarkMove
from etl.semgrep.client import Semgrep
from etl.semgrep.slot_schedule import WINDOW_SECONDS
from etl.store import dropping, listings, queue, rate_slots, repositories, runs, settle, watermarks
from etl.store.revive import PIECE, revive
from etl.telemetry.events import DatabaseAway, DatabaseBack, DeadRevived, EventSink
from etl.transform.repositories_page import RepositoryPage, read_deployments, read_repositories
from etl.transform.scan import flatten
from etl.transform.search_page import Page, read_page

T = TypeVar("T")

PATIENCE_AFTER_STOP_SECONDS = 3.0
"""A process ends ten seconds after a stop at the latest, and requests in flight have a grace period before this."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 10.0
BRING_BACK_INTERVAL_SECONDS = 60.0
MANY_WORKERS = 100
"""So many may have reserved a token's time, two windows each."""


class Patience:
    """With a database that may go away and come back: the same work is tried again until then.

    Each piece of work has the patience to itself. An outage is emitted once, however much work it holds up.
    """

    def __init__(self, seconds: float, stopping: asyncio.Event, emit: EventSink) -> None:
        self._seconds = seconds
        self._stopping = stopping
        self._emit = emit
        self._held_up = 0
        self._away_since: float | None = None

    async def retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that finds the database. DatabaseAwayError once patience is over, soon
        after a stop; RefusedError when the database answers and the work fails all the same."""
        try:
            result = await attempt()
        except DatabaseAwayError as error:
            return await self._outlast(error, attempt)
        self.succeeded()
        return result

    async def _outlast(self, error: DatabaseAwayError, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt after the first one, which has failed with `error`."""
        with self._outage(error):
            return await self._retry_after(error, attempt)

    def succeeded(self) -> None:
        """Some work has found the database: emit the end of an outage, unless it still holds other work up."""
        if self._away_since is not None and not self._held_up:
            self._emit(DatabaseBack(round(time.monotonic() - self._away_since, 1)))
            self._away_since = None

    @contextmanager
    def _outage(self, error: DatabaseAwayError) -> Iterator[None]:
        """Emit the failure of the first work that is held up, and the end of that for the last. Where the last was
        cancelled, that is left to who finds the database next."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._emit(DatabaseAway(str(error)))
        self._held_up += 1
        is_back = False
        try:
            yield
            is_back = True
        except RefusedError:
            is_back = True
            raise
        except DatabaseAwayError:
            if self._held_up == 1:
                self._away_since = None  # given up
            raise
        finally:
            self._held_up -= 1
            if is_back:
                self.succeeded()

    async def _retry_after(self, error: DatabaseAwayError, attempt: Callable[[], Awaitable[T]]) -> T:
        began_at, tries, suspicious = time.monotonic(), 0, 0
        while True:
            tries += 1
            suspicious = suspicious + 1 if error.most_failures < math.inf else 0
            if suspicious >= error.most_failures:
                raise RefusedError(
                    f"the database answers, but the same work failed {suspicious} times: {error}"
                ) from error
            if time.monotonic() - began_at > self._patience_seconds():
                raise error
            await self._sleep(backoff_seconds(tries, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS))
            try:
                return await attempt()
            except DatabaseAwayError as failure:
                error = failure

    def _patience_seconds(self) -> float:
        return PATIENCE_AFTER_STOP_SECONDS if self._stopping.is_set() else self._seconds

    async def _sleep(self, seconds: float) -> None:
        """Sleep; a stop ends it, or comes before the last tries."""
        if self._stopping.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class PatientDatabase:
    """A database with patience.

    That is safe for all work of a run: what has been committed without our hearing of it has taken the lease
    with it, so that it isn't done twice.
    """

    def __init__(self, database: Database, patience: Patience) -> None:
        self._database = database
        self._patience = patience

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, committed. DatabaseAwayError once patience is over, RefusedError as `Patience` says."""
        return await self._patience.retry(partial(self._database.run, work))

    def for_thread(self) -> RunHere:
        """The same for another thread, which waits for the result."""
        loop = asyncio.get_running_loop()

        def run_here(work: Callable[[Connection], T]) -> T:
            return asyncio.run_coroutine_threadsafe(self.run(work), loop).result()

        return run_here


def longest_wait_seconds(api: ApiSettings) -> float:
    """The longest that a token may have to wait by these settings or the usual ones, for others may have those."""
    reserved_seconds = MANY_WORKERS * 2 * max(WINDOW_SECONDS, 1 / api.rate)
    return max(api.max_wait_seconds + reserved_seconds, rate_slots.LONGEST_WAIT_SECONDS)


class SharedSlots:
    """One token's line of time, in the database."""

    def __init__(
        self,
        database: PatientDatabase,
        token: str,
        longest_wait_seconds: float = rate_slots.LONGEST_WAIT_SECONDS,
    ) -> None:
        self._database = database
        self._longest_wait_seconds = longest_wait_seconds
        self._key = rate_slots.key_of(token)
        self._is_open = False

    async def reserve(self, seconds: float) -> float:
        """Take the next free piece of `seconds`; returns in how many it begins."""
        begins_in = await self._database.run(partial(self._reserve, seconds=seconds))
        self._is_open = True  # not before the row is committed: what is rolled back is done again
        return begins_in

    def _reserve(self, connection: Connection, seconds: float) -> float:
        if not self._is_open:
            rate_slots.open_slots(connection, self._key)
        return rate_slots.reserve(connection, self._key, seconds, self._longest_wait_seconds)

    async def hold(self, seconds: float) -> None:
        """Let no piece begin in the next `seconds`."""
        longest = self._longest_wait_seconds
        await self._database.run(partial(rate_slots.hold, key=self._key, seconds=seconds, longest_wait_seconds=longest))


class RunPorts:
    """What the pipeline needs, bound to one run's lease token, scope and settings."""

    def __init__(self, database: PatientDatabase, semgrep: Semgrep, this: RunContext) -> None:
        self._database = database
        self._semgrep = semgrep
        self._queue = this.settings.queue
        self._run_id, self._token, self._scope = this.run_id, this.token, this.scope
        self._brought_back_at = -math.inf
        self._emit = this.state.emit
        self.fetch = semgrep.scan
        self.ask_again = semgrep.ask_again
        self.stop_sending = semgrep.stop_sending
        self.flatten = partial(flatten, privacy=privacy_of(this.settings))

    async def check(self, deployment_id: int) -> None:
        """FatalError if the token for this deployment can't fetch anything of it."""
        await self._semgrep.check_token(deployment_id)

    async def lease(self, limit: int, without: Collection[int]) -> list[Lease]:
        """Up to `limit` pairs that are due."""
        await self._bring_back()
        lease = partial(self._scope.lease, token=self._token, limit=limit, lease_seconds=self._queue.lease_seconds)
        return await self._database.run(partial(lease, without=without))

    async def _bring_back(self) -> None:
        """Now and then, bring back what was put off while the clock was ahead, and, unless this run has pairs of its
        own, the dead letters that are to be tried again."""
        if time.monotonic() < self._brought_back_at + BRING_BACK_INTERVAL_SECONDS:
            return
        settings = self._queue
        longest = queue.LongestWaits(
            settings.lease_seconds, settings.backoff_max_seconds, settings.snooze_seconds * LONGEST_SNOOZE
        )
        brought_back = await self._database.run(partial(queue.disbelieve, longest=longest))
        revived = 0 if self._scope.batch else await self._database.run(revive)
        if revived:
            self._emit(DeadRevived(revived))
        if brought_back < queue.DISBELIEVED_AT_ONCE and revived < PIECE:  # or there are more
            self._brought_back_at = time.monotonic()

    async def renew(self, pairs: Sequence[Pair]) -> None:
        """Lengthen the leases of these pairs."""
        renew = partial(queue.renew, token=self._token, pairs=pairs, lease_seconds=self._queue.lease_seconds)
        await self._database.run(renew)

    async def settle(self, outcomes: Sequence[Outcome]) -> Settled:
        """Write outcomes, those whose lease is still ours, and count them in `runs`; RefusedError if the database
        refuses one of the rows."""
        tries = 0

        def work(connection: Connection) -> Settled:
            nonlocal tries
            tries += 1
            settled = settle.settle(connection, self._token, outcomes, self._run_id)
            fetched = settled.inserted + settled.updated + settled.unchanged
            counts = {name: getattr(settled, name) for name in ("inserted", "updated", "unchanged", "dead")}
            runs.count(connection, self._run_id, fetched=fetched, **counts)
            return settled

        settled = await self._database.run(work)
        # A second try may miss the leases because the first one has settled them, and its answer was lost.
        return settled if tries == 1 else settled._replace(lost=0)

    async def bury_expired(self, deployment_id: int, reason: str) -> int:
        """Make dead letters of the expired pairs of a deployment that can't be asked. Returns how many."""

        def work(connection: Connection) -> int:
            buried = dropping.bury_expired(connection, deployment_id, reason, self._run_id)
            runs.count(connection, self._run_id, dead=buried)
            return buried

        count = buried = await self._database.run(work)
        while buried == dropping.PIECE:
            buried = await self._database.run(work)
            count += buried
        return count

    async def next_due_seconds(self, without: Collection[int]) -> float | None:
        """Seconds until work of this run is due again; None if none will come back."""
        next_due = partial(self._scope.next_due_seconds, without=without, ours=self._token)
        return await self._database.run(next_due)

    async def awaited(self) -> tuple[int, int]:
        """How many pairs of this run back off after a failure, and how many somebody has leased."""
        left = await self._database.run(self._scope.left)
        return left.retrying, left.leased


class DiscoverPorts:
    """What discovery needs."""

    def __init__(self, database: PatientDatabase, semgrep: Semgrep, this: RunContext) -> None:
        self._database = database
        self._semgrep = semgrep
        self._settings, self._tokens = this.settings, this.tokens
        self._run_id, self._refresh = this.run_id, this.request.refresh
        self.search = semgrep.search
        self._privacy = privacy_of(this.settings)
        self.read_page = partial(read_page, privacy=self._privacy)

    async def api_time(self) -> datetime:
        """What time it is for the API; for us, if it doesn't say."""
        return (await self._semgrep.ping()).server_time or datetime.now(UTC)

    async def previous_passes(self, deployment_id: int, room: int) -> PreviousPasses | None:
        """What is known of the walks before."""
        work = partial(
            watermarks.previous_passes,
            deployment_id=deployment_id,
            overlap_seconds=self._settings.discover.overlap_seconds,
            room=room,
        )
        return await self._database.run(work)

    async def record(self, page: Page, listing_pass: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        """Store a page and queue what it asks for, and after the last one move the watermark."""
        token_key = rate_slots.key_of(self._tokens.for_deployment(listing_pass.deployment_id) or "")
        to_record = listings.PageToRecord(
            page, listing_pass.walked_at, self._refresh, self._settings.queue.snooze_seconds
        )

        def work(connection: Connection) -> int:
            queued = listings.record(connection, to_record)
            runs.count(connection, self._run_id, discovered=queued)
            return queued

        queued = await self._database.run(work)
        if not is_last:
            return queued, None
        if listing_pass.repository is not None:
            finish = partial(repositories.finish_walk, repository=listing_pass.repository)
            await self._database.run(partial(finish, listing_pass=listing_pass))
            return queued, None
        return queued, await self._database.run(
            partial(watermarks.finish, listing_pass=listing_pass, token_key=token_key)
        )

    async def repositories(self, deployment_id: int, number: int) -> tuple[datetime, RepositoryPage]:
        """One page of the repositories, and when it came."""
        slug = await self._database.run(partial(repositories.slug_of, deployment_id=deployment_id))
        try:
            found = await self._semgrep.repositories(deployment_id, slug or await self._slug(deployment_id), number)
        except ItemError as error:
            if error.http_status != 404 or slug is None:
                raise
            renamed = await self._slug(deployment_id, again=True)
            found = await self._semgrep.repositories(deployment_id, renamed, number)
        return found.at, read_repositories(deployment_id, found.document, self._privacy)

    async def _slug(self, deployment_id: int, *, again: bool = False) -> str:
        """The name of a deployment in addresses, as the API says it."""
        found = await self._semgrep.deployments(deployment_id, again=again)
        said = read_deployments(found.document, self._privacy)
        await self._database.run(partial(repositories.save_deployments, found=said, at=found.at))
        slugs = {one.deployment_id: one.slug for one in said}
        slug = slugs.get(deployment_id)
        if not slug:
            raise ItemError(f"the API gives no slug for deployment {deployment_id}", kind="no_slug")
        return slug

    async def save_repositories(self, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
        """Store a page of the pass that began then."""
        save = partial(repositories.save_page, deployment_id=deployment_id)
        await self._database.run(partial(save, page=page, at=at))

    async def finish_repositories(self, deployment_id: int, at: datetime) -> None:
        """Mark what the pass that began then hasn't listed."""
        await self._database.run(partial(repositories.finish_pass, deployment_id=deployment_id, at=at))

    async def wants_repositories(self, deployment_id: int) -> bool:
        """Whether the repositories should be listed again."""
        return await self._database.run(partial(repositories.are_wanted, deployment_id=deployment_id))

    async def walked_repositories(self, deployment_id: int, at: datetime, room: int) -> list[WalkedRepository]:
        """The repositories, and how far the walks of each got."""
        return await self._database.run(partial(repositories.walked, deployment_id=deployment_id, at=at, room=room))

    async def left_open(self, deployment_id: int, at: datetime) -> list[Pair]:
        """The scans that haven't ended, and that were not listed since."""
        return await self._database.run(partial(repositories.left_open, deployment_id=deployment_id, at=at))
