"""Walks through the list of an API into each kind of database: wrong clocks, and rows that the database refuses."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from listings_of import entry
from sqlalchemy import Table, select, text

from etl.app.adapters import DiscoverPorts, Patience, PatientDatabase
from etl.app.context import RunContext
from etl.config.settings import DiscoverSettings, QueueSettings, Settings
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.database.schema import fetch_queue, listing_gaps, scan_listings, schema_drift, watermarks
from etl.model import Drift, Pair, SearchResponse
from etl.pipeline.discovery import discover
from etl.pipeline.run_state import RunRequest, RunState
from etl.semgrep.client import Semgrep
from etl.telemetry.events import Event, ListingSkipped, RunCounts, Walked
from etl.telemetry.reporter import Reporter

DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)


class ListOfScans:
    """The search call of an API whose list and whose clock a test sets. It keeps since when it was asked."""

    def __init__(self) -> None:
        self.scans: list[tuple[datetime, dict[str, Any]]] = []
        self.now = NOW
        self.asked: list[datetime | None] = []

    @property
    def server_time(self) -> datetime:
        return self.now

    def add(self, scan_id: int, began_at: datetime, **changes: Any) -> None:
        ended_at = began_at + timedelta(minutes=1)
        changes = {"started_at": began_at.isoformat(), "completed_at": ended_at.isoformat(), **changes}
        self.scans.append((began_at, entry(scan_id, **changes)))

    async def search(
        self, _deployment_id: int, since: datetime | None, _cursor: str, _repository_id: int | None = None
    ) -> SearchResponse:
        self.asked.append(since)
        found = [scan for began_at, scan in self.scans if since is None or began_at > since]
        return SearchResponse({"scans": found, "cursor": ""}, self.now)

    async def deployments(self, deployment_id: int, *, again: bool) -> SearchResponse:
        assert not again
        return SearchResponse({"deployments": [{"id": deployment_id, "slug": "small"}]}, self.now)

    async def repositories(self, _deployment_id: int, _slug: str, _page: int) -> SearchResponse:
        return SearchResponse({"projects": []}, self.now)

    async def ping(self) -> "ListOfScans":
        return self


async def walk(database: Database, api: ListOfScans, since: datetime | None = None) -> list[Event]:
    """One discovery of deployment 120; what it told."""
    settings = Settings(
        discover=DiscoverSettings(lookback="7d"),
        queue=QueueSettings(max_attempts=3, backoff_seconds=0.001, backoff_max_seconds=0.002),
    )
    events, counts = list[Event](), RunCounts()
    patient = PatientDatabase(database, Patience(10, asyncio.Event(), events.append))
    request, reporter = RunRequest("sync", since=since), Reporter(counts, interactive=False)
    this = RunContext(request, settings, load_tokens({}), reporter, RunState(counts, events.append), run_id="run")
    await discover(DiscoverPorts(patient, cast(Semgrep, api), this), [120], settings, since, this.state)
    assert this.state.unwalked == set()
    return events


def rows(database: Database, table: Table) -> list[dict[str, Any]]:
    statement = select(table).order_by(*table.primary_key)
    return database.run_here(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])


def queued(database: Database) -> list[int]:
    return [row["scan_id"] for row in rows(database, fetch_queue)]


async def test_the_zero_of_a_clock_ends_no_later_walk(database: Database) -> None:
    """A scan that is listed alone, with a start in the year 1, is queued, and so is what is listed the day after."""
    api = ListOfScans()
    api.add(7, NOW, status="SCAN_STATUS_PENDING", started_at="0001-01-01T00:00:00Z", completed_at=None)
    await walk(database, api)
    api.add(8, NOW + timedelta(hours=1))
    api.now += DAY

    await walk(database, api)
    await walk(database, api, since=NOW - DAY)

    assert queued(database) == [7, 8]
    assert [row["started_at"] for row in rows(database, scan_listings)] == [None, NOW + timedelta(hours=1)]


async def test_a_watermark_from_a_clock_that_was_ahead_is_replaced(database: Database) -> None:
    """The next walk reads all that the API has, also past the lookback, and later ones go on where that one began."""
    api = ListOfScans()
    api.now = NOW + 3 * 365 * DAY
    await walk(database, api)
    api.now = NOW
    api.add(1, NOW - 20 * DAY)
    api.add(2, NOW - timedelta(hours=1))

    await walk(database, api, since=NOW - timedelta(minutes=1))
    still_ahead = rows(database, watermarks)
    await walk(database, api)
    found, (mark,) = queued(database), rows(database, watermarks)
    api.now += timedelta(hours=1)
    await walk(database, api)

    assert [row["walked_at"] for row in still_ahead] == [NOW + 3 * 365 * DAY]
    assert found == [1, 2]
    assert (mark["walked_at"], mark["newest_started_at"]) == (NOW, NOW - timedelta(hours=1))
    assert mark["complete_since"] == NOW - 30 * DAY
    assert api.asked[-1] is not None
    assert rows(database, listing_gaps) == []


async def test_a_watermark_is_believed_that_is_ahead_of_our_clock_alone(database: Database) -> None:
    """It may be ours that is wrong: while the API agrees with the watermark, walks go on from it."""
    api = ListOfScans()
    api.now = NOW + 5 * DAY
    api.add(1, NOW + 4 * DAY)
    await walk(database, api)
    api.now += DAY

    await walk(database, api)

    assert api.asked[-1] is not None
    assert [row["walked_at"] for row in rows(database, watermarks)] == [NOW + 6 * DAY]


REFUSALS = {
    "sqlite": (
        "CREATE TRIGGER refuse_{0} BEFORE INSERT ON scan_listings WHEN {1} BEGIN SELECT RAISE(ABORT, 'no'); END".format
    ),
    "postgresql": "ALTER TABLE scan_listings ADD CONSTRAINT refuse_{0} CHECK (NOT ({2}))".format,
    "mysql": (
        "CREATE TRIGGER refuse_{0} BEFORE INSERT ON scan_listings FOR EACH ROW IF {1} THEN"
        " SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 1048, MESSAGE_TEXT = 'no'; END IF".format
    ),
}
"""Statements that make a database refuse the listings for which a condition is true: by trigger, or by constraint."""


def refuse(database: Database, name: str, condition: str) -> None:
    statement = REFUSALS[database.engine.dialect.name](name, condition, condition.replace("NEW.", ""))
    database.run_here(lambda connection: connection.execute(text(statement.replace(":", r"\:"))).close())


async def test_a_listing_that_the_database_refuses_costs_no_other(database: Database) -> None:
    """It is stored without its `extra`; where even that is refused it is skipped and told, and the watermark moves."""
    refuse(database, "extra", "NEW.scan_id IN (5, 60) AND NEW.extra IS NOT NULL")
    refuse(database, "all_of", "NEW.scan_id = 33")
    api = ListOfScans()
    for number in range(1, 61):
        api.add(number, NOW - timedelta(hours=number))

    events = await walk(database, api)
    after_one = {Drift(row["path"], row["kind"]): row["count"] for row in rows(database, schema_drift)}
    again = await walk(database, api)

    stored = {row["scan_id"]: row["extra"] for row in rows(database, scan_listings)}
    assert set(queued(database)) == set(stored) == set(range(1, 61)) - {33}
    assert {number for number, extra in stored.items() if extra is None} == {5, 60}
    assert after_one == {Drift("listing.extra", "refused_row"): 3, Drift("listing", "refused_row"): 1}
    for told, number in ((events, 59), (again, 0)):
        skipped = [event for event in told if isinstance(event, ListingSkipped)]
        assert [event.pair for event in skipped] == [Pair(120, 33)]
        assert [(event.listed, event.queued) for event in told if isinstance(event, Walked)] == [(60, number)]
    assert [row["walked_at"] for row in rows(database, watermarks)] == [NOW]
