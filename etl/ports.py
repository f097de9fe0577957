"""What the pipeline asks for, answered by the database and the API: the seam between the two floors."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from etl import budgets, listings, queue
from etl.config import ApiSettings, Settings
from etl.database import Database
from etl.errors import DatabaseAwayError
from etl.events import DatabaseAway, DatabaseBack, Tell
from etl.flatten import flatten
from etl.model import History, Lease, Pair, Reached, Settled, Verdict, Walk
from etl.pacing import LONGEST_SNOOZE, WINDOW_SECONDS, backoff_seconds
from etl.pages import Page
from etl.semgrep import Semgrep
from etl.tokens import Tokens

T = TypeVar("T")

PATIENCE_AFTER_STOP_SECONDS = 10.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 10.0
DISBELIEVE_INTERVAL_SECONDS = 60.0
MANY_WORKERS = 100
"""So many may have reserved a token's time, two windows each."""


class Patience:
    """With a database that may go away and come back: the same work is tried again until then, and told of once."""

    def __init__(self, seconds: float, stopping: asyncio.Event, tell: Tell) -> None:
        self._seconds = seconds
        self._stopping = stopping
        self._tell = tell
        self._away_since: float | None = None

    async def retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that finds the database. DatabaseAwayError once patience is over, soon
        after a stop."""
        tries = 0
        while True:
            try:
                result = await attempt()
            except DatabaseAwayError as error:
                tries += 1
                if self._is_over(error):
                    raise
                await self._sleep(backoff_seconds(tries, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS))
            else:
                if self._away_since is not None:
                    self._tell(DatabaseBack(round(time.monotonic() - self._away_since, 1)))
                    self._away_since = None
                return result

    def _is_over(self, error: DatabaseAwayError) -> bool:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._tell(DatabaseAway(str(error)))
        patience = PATIENCE_AFTER_STOP_SECONDS if self._stopping.is_set() else self._seconds
        return now - self._away_since > patience

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
        """The result of `work`, committed. DatabaseAwayError once patience is over."""
        return await self._patience.retry(lambda: self._database.run(work))


def longest_wait_seconds(api: ApiSettings) -> float:
    """The longest that a token may have to wait by these settings or the usual ones, for others may have those."""
    reserved_seconds = MANY_WORKERS * 2 * max(WINDOW_SECONDS, 1 / api.rate)
    return max(api.max_wait_seconds + reserved_seconds, budgets.LONGEST_WAIT_SECONDS)


class TokenBudget:
    """One token's line of time, in the database."""

    def __init__(
        self,
        database: PatientDatabase,
        token: str,
        longest_wait_seconds: float = budgets.LONGEST_WAIT_SECONDS,
    ) -> None:
        self._database = database
        self._longest_wait_seconds = longest_wait_seconds
        self._key = budgets.key_of(token)
        self._is_open = False

    async def reserve(self, seconds: float) -> float:
        """Take the next free piece of `seconds`; returns in how many it begins."""
        begins_in = await self._database.run(partial(self._reserve, seconds=seconds))
        self._is_open = True  # not before the row is committed: what is rolled back is done again
        return begins_in

    def _reserve(self, connection: Connection, seconds: float) -> float:
        if not self._is_open:
            budgets.open_budget(connection, self._key)
        return budgets.reserve(connection, self._key, seconds, self._longest_wait_seconds)

    async def hold(self, seconds: float) -> None:
        """Let no piece begin in the next `seconds`."""
        longest = self._longest_wait_seconds
        await self._database.run(partial(budgets.hold, key=self._key, seconds=seconds, longest_wait_seconds=longest))


class RunPorts:
    """What the pipeline needs, bound to one run's lease token, batch and settings."""

    def __init__(
        self,
        database: PatientDatabase,
        semgrep: Semgrep,
        settings: Settings,
        run_id: str,
        batch: str | None,
        below: int | None,
        token: str,
    ) -> None:
        self._database = database
        self._lease_seconds = settings.queue.lease_seconds
        self._longest_waits = queue.LongestWaits(
            settings.queue.lease_seconds,
            settings.queue.backoff_max_seconds,
            settings.queue.snooze_seconds * LONGEST_SNOOZE,
        )
        self._disbelieved_at = -math.inf
        self._run_id = run_id
        self._batch = batch
        self._below = below
        self._token = token
        self._semgrep = semgrep
        self.fetch = semgrep.scan
        self.hush = semgrep.hush
        self.flatten = partial(flatten, author=settings.privacy.author)

    async def check(self, deployment_id: int) -> None:
        """FatalError if the token for this deployment can't fetch anything of this run."""
        deployments = await self._database.run(partial(queue.deployments_of, batch=self._batch))
        await self._semgrep.check_token(deployment_id, {*deployments, deployment_id})

    async def lease(self, limit: int, without: Collection[int]) -> list[Lease]:
        """Up to `limit` pairs that are due."""
        # Bound now: the pipeline may stop another deployment while this waits.
        barred = frozenset(without)
        await self._disbelieve()
        return await self._database.run(
            lambda connection: queue.lease(
                connection,
                self._token,
                limit,
                self._lease_seconds,
                batch=self._batch,
                below=self._below,
                without=barred,
            )
        )

    async def _disbelieve(self) -> None:
        """Now and then, bring back what was put off while the clock was ahead."""
        if time.monotonic() < self._disbelieved_at + DISBELIEVE_INTERVAL_SECONDS:
            return
        brought_back = await self._database.run(partial(queue.disbelieve, longest=self._longest_waits))
        if brought_back < queue.DISBELIEVED_AT_ONCE:  # or there are more
            self._disbelieved_at = time.monotonic()

    async def renew(self, pairs: Sequence[Pair]) -> None:
        """Lengthen the leases of these pairs."""
        await self._database.run(lambda connection: queue.renew(connection, self._token, pairs, self._lease_seconds))

    async def settle(self, verdicts: Sequence[Verdict]) -> Settled:
        """Write verdicts, those whose lease is still ours."""
        return await self._database.run(
            lambda connection: queue.settle(connection, self._token, verdicts, self._run_id)
        )

    async def next_due_seconds(self, without: Collection[int]) -> float | None:
        """Seconds until work of this run is due again; None if none will come back."""
        left = partial(queue.left, batch=self._batch, without=frozenset(without), below=self._below)
        return (await self._database.run(left)).next_due_seconds


class DiscoverPorts:
    """What discovery needs."""

    def __init__(
        self, database: PatientDatabase, semgrep: Semgrep, settings: Settings, tokens: Tokens, *, refresh: bool
    ) -> None:
        self._database = database
        self._semgrep = semgrep
        self._snooze_seconds = settings.queue.snooze_seconds
        self._overlap_seconds = settings.discover.overlap_seconds
        self._tokens = tokens
        self._refresh = refresh
        self.search = semgrep.search

    async def api_time(self) -> datetime:
        """What time it is for the API; for us, if it doesn't say."""
        return (await self._semgrep.ping()).server_time or datetime.now(UTC)

    async def history(self, deployment_id: int, room: int) -> History | None:
        """What is known of the walks before."""
        work = partial(listings.history, deployment_id=deployment_id, overlap_seconds=self._overlap_seconds, room=room)
        return await self._database.run(work)

    async def record(self, page: Page, walk: Walk, *, is_last: bool) -> tuple[int, Reached | None]:
        """Store a page and queue what it asks for, and behind the last one move the watermark."""
        token_key = budgets.key_of(self._tokens.for_deployment(walk.deployment_id) or "")
        piece = listings.Piece(page, walk.walked_at, self._refresh, self._snooze_seconds)

        def work(connection: Connection) -> tuple[int, Reached | None]:
            queued = listings.record(connection, piece)
            return queued, listings.finish(connection, walk, token_key) if is_last else None

        return await self._database.run(work)
