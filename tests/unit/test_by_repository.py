"""Walks by repository on ports in memory: which are due, where each begins, and what one that fails means."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from listings_of import entry
from walked_lists import DAY, NOW, MemoryPorts, previous, quick

from etl.errors import FatalError, ItemError, RefusedError, TransientError
from etl.model import Drift, ListingPass, Pair, Repository, SearchResponse, WalkedRepository, WatermarkMove
from etl.pipeline.discovery import discover
from etl.pipeline.repositories import is_due, list_repositories, shows_newer, start_of
from etl.pipeline.run_state import RunState
from etl.pipeline.stop import Stop
from etl.pipeline.walk import Start
from etl.telemetry.events import Event, RunCounts, WalkedByRepository, WalkFailed
from etl.transform.repositories_page import RepositoryPage
from etl.transform.search_page import Page

HOUR = timedelta(hours=1)


def known(repository_id: int = 1, **changes: Any) -> WalkedRepository:
    """A repository that was walked yesterday, and scanned before that."""
    facts: dict[str, Any] = {
        "latest_scan_at": NOW - 2 * DAY,
        "gone_at": None,
        "walked_at": NOW - DAY,
        "walked_latest_scan_at": NOW - 2 * DAY,
        "newest_started_at": NOW - 2 * DAY,
        "room_at": None,
    }
    return WalkedRepository(repository_id, **(facts | changes))


NEW = {"latest_scan_at": NOW - HOUR}
UNWALKED: dict[str, Any] = {"walked_at": None, "walked_latest_scan_at": None, "newest_started_at": None}
NIGHTLY = Start(NOW - DAY, previous(), partial=False)


@pytest.mark.parametrize(
    ("changes", "is_so"),
    [
        ({}, False),
        (NEW, True),
        ({"latest_scan_at": None, "walked_latest_scan_at": None}, False),
        (UNWALKED, True),
        (UNWALKED | {"latest_scan_at": None}, True),
        ({"walked_at": NOW - 6 * DAY}, False),
        ({"walked_at": NOW - 7 * DAY + HOUR}, True),
        ({"walked_at": NOW + 3 * DAY}, True),
        ({"gone_at": NOW}, True),
        ({"gone_at": NOW - 2 * DAY} | NEW, False),
    ],
)
def test_a_repository_is_due_when_it_may_have_unknown_scans(changes: dict[str, Any], is_so: bool) -> None:
    """A newer scan, never walked, a week ago, by a clock that was ahead, or gone since."""
    assert is_due(known(**changes), NOW, NIGHTLY) is is_so


def test_with_since_those_that_were_scanned_since_then_are_due() -> None:
    """Whatever is known of them."""
    start = Start(NOW - 3 * DAY, None, partial=True)

    assert is_due(known(), NOW, start)
    assert not is_due(known(latest_scan_at=NOW - 4 * DAY), NOW, start)
    assert start_of(known(), NOW, start, HOUR).since == start.since


@pytest.mark.parametrize(
    ("changes", "since"),
    [
        ({}, NOW - 32 * DAY - HOUR),
        ({"room_at": NOW - 5 * DAY}, NOW - 5 * DAY),
        ({"room_at": NOW - HOUR}, NOW - 2 * DAY - HOUR),
        ({"walked_at": NOW - 7 * DAY}, NOW - 35 * DAY),
        (UNWALKED, NOW - 35 * DAY),
    ],
)
def test_a_walk_goes_back_over_what_fits_onto_a_page(changes: dict[str, Any], since: datetime) -> None:
    """Never behind what the first walk of the deployment was told to leave out."""
    start = NIGHTLY._replace(previous=previous(complete_since=NOW - 35 * DAY))

    assert start_of(known(**changes), NOW, start, HOUR).since == since


@pytest.mark.parametrize(
    ("changes", "is_so"),
    [
        ({}, False),
        (NEW, True),
        (UNWALKED, True),
        (UNWALKED | {"latest_scan_at": NOW - 30 * DAY}, False),
        ({"latest_scan_at": None}, False),
        ({"latest_scan_at": NOW + 2 * DAY}, False),
        (NEW | {"gone_at": NOW}, False),
    ],
)
def test_newer_is_what_a_walk_must_find(changes: dict[str, Any], is_so: bool) -> None:
    """Neither what the API lists no more, nor what is gone, nor what comes from a clock that is ahead."""
    assert shows_newer(known(**changes), NOW, None) is is_so


class RepositoryPorts(MemoryPorts):
    """Refuses a search without a repository, and lists of each what it is given: scan ids, or an error."""

    def __init__(self, lists: dict[int, list[int] | Exception], repositories: list[WalkedRepository]) -> None:
        super().__init__([{}])
        self.lists, self.walked = lists, repositories
        self.finished: list[ListingPass] = []

    async def search(
        self, deployment_id: int, since: datetime | None, cursor: str, repository_id: int | None = None
    ) -> SearchResponse:
        assert (deployment_id, cursor) == (120, "")
        if repository_id is None:
            raise ItemError("HTTP 400", kind="http_status", http_status=400)
        self.asked.append((since, str(repository_id)))
        found = self.lists[repository_id]
        if isinstance(found, Exception):
            raise found
        return SearchResponse({"scans": [entry(number) for number in found], "cursor": ""}, NOW)

    async def repositories(self, deployment_id: int, number: int) -> tuple[datetime, RepositoryPage]:
        assert deployment_id == 120
        ids = [one.repository_id for one in self.walked] if not number else []
        none: dict[str, Any] = dict.fromkeys(Repository._fields)
        return NOW, RepositoryPage(tuple(Repository(**none | {"repository_id": one}) for one in ids), ())

    async def save_repositories(self, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
        assert (deployment_id, len(page.repositories) in (0, len(self.walked)), at) == (120, True, NOW)

    async def walked_repositories(self, deployment_id: int, at: datetime, room: int) -> list[WalkedRepository]:
        assert (deployment_id, at, room > 0) == (120, NOW, True)
        return self.walked

    async def left_open(self, deployment_id: int, at: datetime) -> list[Pair]:
        assert at == NOW
        return [Pair(deployment_id, 7)]

    async def record(self, page: Page, walk: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        if is_last:
            self.finished.append(walk)
        return len(page.listings), None


async def nightly(ports: MemoryPorts) -> tuple[RunState, list[Event]]:
    events = list[Event]()
    state = RunState(RunCounts(), events.append, Stop())
    await discover(ports, [120], quick(), None, state)
    return state, events


def moved(ports: RepositoryPorts) -> list[int | None]:
    """Whose watermarks have moved; None is the deployment's."""
    return [one.repository and one.repository.repository_id for one in ports.finished]


async def test_the_watermark_of_the_deployment_moves_behind_those_of_its_repositories() -> None:
    """Only what is due is walked, and what nobody has listed is woken."""
    ports = RepositoryPorts({1: [11, 12], 2: [21]}, [known(1, **NEW), known(2, **NEW), known(3)])
    ports.known = previous()
    state, events = await nightly(ports)

    assert sorted(repository for _, repository in ports.asked) == ["1", "2"]
    assert sorted(moved(ports)[:2], key=str) == [1, 2]
    assert moved(ports)[2:] == [None]
    assert ports.finished[-1].to_wake == (Pair(120, 7),)
    assert (state.unwalked, state.counts.discovered) == (set(), 3)
    assert events[0] == WalkedByRepository(120, 2, 3, "HTTP 400")


@pytest.mark.parametrize("error", [ItemError("no", kind="x"), TransientError("away", kind="x")])
async def test_a_repository_that_fails_costs_no_other(error: Exception) -> None:
    """Its watermark and the deployment's stay, and the night is a failure."""
    ports = RepositoryPorts({1: error, 2: [21]}, [known(1, **NEW), known(2, **NEW)])
    state, events = await nightly(ports)

    assert moved(ports) == [2]
    assert state.unwalked == {120}
    assert events[-1] == WalkFailed(120, f"1 of 2 repositories couldn't be walked: {error}")


async def test_a_list_that_is_gone_with_its_repository_is_no_failure() -> None:
    """An archived one may be unknown to the search."""
    gone = known(1, gone_at=NOW)
    ports = RepositoryPorts({1: ItemError("no", kind="not_found", http_status=404), 2: [21]}, [gone, known(2, **NEW)])
    state, _ = await nightly(ports)

    assert sorted(moved(ports), key=str) == [1, 2, None]
    assert state.unwalked == set()


async def test_an_empty_list_of_one_repository_is_believed_when_others_list_scans() -> None:
    """Its newest scan may be one that the search doesn't list."""
    ports = RepositoryPorts({1: [], 2: [21]}, [known(1, **NEW), known(2, **NEW)])
    state, _ = await nightly(ports)

    assert moved(ports) == [2, 1, None]
    assert state.unwalked == set()


async def test_lists_that_are_all_empty_are_not_believed() -> None:
    """No watermark moves, not even of those that show no newer scan."""
    ports = RepositoryPorts(
        {1: [], 2: [], 3: []}, [known(1, **NEW), known(2, **NEW), known(3, walked_at=NOW - 7 * DAY)]
    )
    state, events = await nightly(ports)

    assert (moved(ports), state.unwalked) == ([], {120})
    assert isinstance(events[-1], WalkFailed)
    assert "lists no scan, though 2 of 3 repositories were scanned" in events[-1].reason


async def test_what_is_fatal_for_one_repository_is_so_for_all() -> None:
    """The token is refused: the deployment is halted."""
    refused = FatalError("refused", kind="token_refused", stop_code=3)
    state, _ = await nightly(RepositoryPorts({1: refused, 2: [21]}, [known(1, **NEW), known(2, **NEW)]))

    assert state.halted == {120: refused}


async def test_repositories_that_the_database_refuses_are_stored_without_what_may_hold_anything() -> None:
    """MariaDB reads no JSON of more than 32 levels."""
    saved = list[RepositoryPage]()

    class Refusing(RepositoryPorts):
        async def repositories(self, deployment_id: int, number: int) -> tuple[datetime, RepositoryPage]:
            at, page = await super().repositories(deployment_id, number)
            return at, RepositoryPage(tuple(one._replace(tags=["x"], extra={"x": 1}) for one in page.repositories), ())

        async def save_repositories(self, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
            if any(one.extra for one in page.repositories):
                raise RefusedError("too deep")
            saved.append(page)
            await super().save_repositories(deployment_id, page, at)

    await list_repositories(Refusing({}, [known(1)]), 120, lambda ask: ask())

    assert [(one.repository_id, one.tags, one.extra) for one in saved[0].repositories] == [(1, None, None)]
    assert saved[0].drift == ((Drift("repository.extra", "refused_row"), Pair(120, 0)),)
