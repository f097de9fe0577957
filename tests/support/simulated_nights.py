"""Nights of `sync` against a server whose clock a test moves on, and what is true of the tables afterwards.

The server lists 30 days. Scans arrive all the time, also between two pages; they finish later, some days later. Each
night is one `sync`, some of them killed; now and then the API is unavailable for a night, or nobody calls for a while.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from command import Command
from sandbox_thread import RunningSandbox
from sqlalchemy import Connection, select
from tables_of import ask

from etl.app.run import run
from etl.backoff import LONGEST_SNOOZE
from etl.config.settings import QueueSettings, load_settings
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.database.schema import fetch_queue, listing_gaps, scan_listings, scans, watermarks
from etl.model import RETENTION, Pair
from etl.pipeline.run_state import RunRequest
from etl.sandbox import Behaviour, Fault, World
from etl.sandbox.answers import details
from etl.sandbox.world import exists, newest_id, repository_index, scan, started_at
from etl.transform.scan import flatten

OPENED_AT = datetime(2026, 1, 5, 2, 17, tzinfo=UTC)
SETTLED = timedelta(days=4)
"""A scan has its outcome after so long, or never gets one."""
LONGEST_LOOK = timedelta(seconds=QueueSettings().snooze_seconds * LONGEST_SNOOZE)
LEASE_SECONDS = 0.5
AWAY = Behaviour(faults=tuple(Fault("status-503", times=0, endpoint=where) for where in ("search", "details")))


class TickingTime:
    """A clock that goes on a little each time somebody looks, so that scans arrive while pages are read."""

    def __init__(self) -> None:
        self.now = OPENED_AT

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=2)
        return self.now


@dataclass(slots=True)
class Night:
    """What happened in a night: `walked_at` is when a sync that walked the whole list began. `lost` answers were on
    their way when it was killed."""

    walked_at: datetime
    is_whole: bool
    requests: Mapping[tuple[str, int], int]
    lost: int = 0


@dataclass(slots=True)
class Nights:
    """A server, a database, and the nights so far."""

    sandbox: RunningSandbox
    clock: TickingTime
    cli: Command
    url: str
    behaviour: Behaviour
    nights: list[Night] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return self.sandbox.environment(
            SCAN_ETL_DATABASE__URL=self.url,
            SCAN_ETL_QUEUE__LEASE_SECONDS=str(LEASE_SECONDS),
            SCAN_ETL_API__MAX_WAIT_SECONDS="0.2",
            SCAN_ETL_OBSERVE__LOG_LEVEL="error",
        )

    def sleep(self, **units: float) -> None:
        """Nobody calls for so long."""
        self.clock.now += timedelta(**units)

    def sync(self, **options: Any) -> dict[str, Any]:
        """A sync to its end, in this process."""
        environment = self.environment()
        settings = load_settings(config_file=None, flags={}, environ=environment, directory=Path("/nowhere"))
        request = RunRequest("sync", discovers=True, **options)
        # With a factory the loop of the other tests stays as it is; `asyncio.run` would leave them without one.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            summary: dict[str, Any] = self._note(
                lambda: runner.run(run(request, settings, load_tokens(environment), interactive=False))
            )
        self.nights[-1].is_whole = summary["exit_code"] in (0, 1)
        return summary

    def killed_sync(self, after_seconds: float) -> None:
        """A sync that is killed with `kill -9`, if it takes that long."""

        def start_and_kill() -> None:
            with self.cli.start("sync", environment=self.environment()) as process:
                try:
                    process.wait(after_seconds)
                except subprocess.TimeoutExpired:
                    process.kill()

        began_at = datetime.now(UTC)
        self._note(start_and_kill)
        stored = ask(self.url, select(scans.c.scan_id).where(scans.c.fetched_at >= began_at))
        self.nights[-1].lost = max(0, self.nights[-1].requests.get(("details", 200), 0) - len(stored))
        time.sleep(2 * LEASE_SECONDS)  # the next night comes when its leases are long over

    def away(self) -> None:
        """A night in which the API answers nothing but 503."""
        self.sandbox.sandbox.behaviour = AWAY
        try:
            self.sync()
        finally:
            self.sandbox.sandbox.behaviour = self.behaviour

    def _note(self, work: Callable[[], Any]) -> Any:
        stats, began_at = self.sandbox.sandbox.stats, self.clock.now
        stats.requests.clear()
        try:
            return work()
        finally:
            self.nights.append(Night(began_at, False, dict(stats.requests)))


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What the server knows against what the tables hold. Each is a set of scan ids, or a number of requests."""

    missing: set[int]
    different: set[int]
    still_queued: set[int]
    made_up: set[int]
    lost: set[int]
    reported_lost: set[int]
    requests: int
    least_requests: int


def reckon(nights: Nights) -> Reckoning:
    """Compare. What started within minutes of a bound may be on either side of it."""
    world, now = nights.sandbox.sandbox.world, nights.clock.now
    began = {number: started_at(world, number) for number in range(world.first_scan_id, newest_id(world, now) + 1)}
    walks = [night.walked_at for night in nights.nights if night.is_whole]
    slack = timedelta(minutes=30)
    known_at = {index: first_listed(nights, index, walks) for index in range(world.repositories)}
    could = {
        number
        for number, at in began.items()
        for known in [known_at[repository_index(world, number)]]
        if any(walk - RETENTION + slack < at < walk >= known for walk in walks)
    }
    might = {
        number
        for number, at in began.items()
        # A walk that was killed may have listed some, too.
        if any(night.walked_at - RETENTION - slack < at < night.walked_at + slack for night in nights.nights)
    }
    # One that never ends is listed as running, and not asked for before the next look at it is due.
    ended = {
        number: scan(world, number).completed_at or next(walk for walk in walks if walk > began[number]) + LONGEST_LOOK
        for number in could
    }
    # Where the search lists but repositories, one without a newer scan is looked at once a week.
    seen_after = timedelta(0) if nights.behaviour.search == "whole" else timedelta(days=8)
    settled = {
        number
        for number in could
        if any(ended[number] + seen_after < walk < began[number] + RETENTION - slack for walk in walks)
        and began[number] < walks[-1] - SETTLED
    }
    tables = _tables(nights.url)
    truth = {number: _hash(world, number, now) for number in settled}
    lost = began.keys() - might - {number for number, at in began.items() if at > walks[-1]}
    return Reckoning(
        missing=could - tables.listed,
        different={number for number in settled if tables.stored.get(number) != truth[number]},
        still_queued=tables.queued & settled,
        made_up=(tables.listed | tables.stored.keys()) - might,
        lost=lost,
        reported_lost={number for number in lost if any(a <= began[number] <= b for a, b in tables.gaps)},
        requests=sum(
            count
            for night in nights.nights
            for (_, status), count in night.requests.items()
            if status in (200, 400, 404)
        ),
        least_requests=len(tables.stored) + least_to_find(nights, walks) + sum(night.lost for night in nights.nights),
    )


def first_listed(nights: Nights, index: int, walks: Sequence[datetime]) -> datetime:
    """The walk that first knew a repository; where the search lists a deployment, nobody has to. One that goes before
    that is never found."""
    world = nights.sandbox.sandbox.world
    is_whole = nights.behaviour.search == "whole"
    return next((walk for walk in walks if is_whole or exists(world, index, walk)), datetime.max.replace(tzinfo=UTC))


def least_to_find(nights: Nights, walks: Sequence[datetime]) -> int:
    """The fewest requests in which these walks could find what they found: a page each; or two to list the
    repositories, and a page for each that has been scanned since the walk before."""
    if nights.behaviour.search == "whole":
        return len(walks)
    world, found = nights.sandbox.sandbox.world, 0
    for before, walk in pairwise([OPENED_AT - RETENTION, *walks]):
        numbers = range(newest_id(world, before) + 1, newest_id(world, walk) + 1)
        found += 2 + len({repository_index(world, number) for number in numbers})
    return found


@dataclass(frozen=True, slots=True)
class _Tables:
    listed: set[int]
    stored: dict[int, str]
    queued: set[int]
    gaps: list[tuple[datetime, datetime]]


def _tables(url: str) -> _Tables:
    def work(connection: Connection) -> _Tables:
        ids = [set(connection.execute(select(table.c.scan_id)).scalars()) for table in (scan_listings, fetch_queue)]
        stored = {row[0]: row[1] for row in connection.execute(select(scans.c.scan_id, scans.c.content_hash))}
        gaps = [(row[0], row[1]) for row in connection.execute(select(listing_gaps.c.from_at, listing_gaps.c.until_at))]
        began_at = connection.execute(select(watermarks.c.complete_since)).scalar_one()
        gaps.append((datetime.min.replace(tzinfo=UTC), began_at))
        return _Tables(ids[0], stored, ids[1], gaps)

    with closing(Database(url)) as database:
        return database.run_here(work)


def _hash(world: World, scan_id: int, now: datetime) -> str:
    return flatten(Pair(120, scan_id), details(scan(world, scan_id), now), now).content_hash
