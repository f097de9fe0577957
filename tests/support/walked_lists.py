"""Walks through lists in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from listings_of import entry

from etl.config.settings import DiscoverSettings, QueueSettings, Settings
from etl.errors import FatalError
from etl.model import ListingPass, Pair, PreviousPasses, SearchResponse, WalkedRepository, WatermarkMove
from etl.pipeline.discovery import discover
from etl.pipeline.repositories import ROOM
from etl.pipeline.run_state import RunState
from etl.pipeline.stop import Stop
from etl.telemetry.events import Event, RunCounts
from etl.transform.repositories_page import RepositoryPage
from etl.transform.search_page import Page, read_page

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
Answer = dict[str, Any] | Exception


class MemoryPorts:
    """Gives the pages one after the other, whatever is asked for, and keeps what it is given."""

    def __init__(
        self, answers: Sequence[Answer], previous: PreviousPasses | None = None, move: WatermarkMove | None = None
    ) -> None:
        self.answers = list(answers)
        self.known = previous
        self.move = move
        self.asked: list[tuple[datetime | None, str]] = []
        self.recorded: list[tuple[list[int], ListingPass, bool]] = []

    async def search(
        self, deployment_id: int, since: datetime | None, cursor: str, repository_id: int | None = None
    ) -> SearchResponse:
        assert (deployment_id, repository_id) == (120, None)
        self.asked.append((since, cursor))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SearchResponse(answer, NOW)

    async def api_time(self) -> datetime:
        return NOW

    def read_page(self, deployment_id: int, document: object) -> Page:
        return read_page(deployment_id, document)

    async def previous_passes(self, deployment_id: int, room: int) -> PreviousPasses | None:
        assert (deployment_id, room) == (120, ROOM)
        return self.known

    async def record(self, page: Page, walk: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        self.recorded.append(([one.pair.scan_id for one in page.listings], walk, is_last))
        return len(page.listings), self.move if is_last else None

    async def repositories(self, deployment_id: int, number: int) -> tuple[datetime, RepositoryPage]:
        assert (deployment_id, number) == (120, 0)
        return NOW, RepositoryPage((), ())

    async def save_repositories(self, deployment_id: int, page: RepositoryPage, at: datetime) -> None:
        assert (deployment_id, page.repositories, at) == (120, (), NOW)

    async def finish_repositories(self, deployment_id: int, at: datetime) -> None:
        assert (deployment_id, at) == (120, NOW)

    async def wants_repositories(self, deployment_id: int) -> bool:
        assert deployment_id == 120
        return False

    async def walked_repositories(self, deployment_id: int, at: datetime, room: int) -> list[WalkedRepository]:
        assert (deployment_id, at, room) == (120, NOW, ROOM)
        return []

    async def left_open(self, deployment_id: int, at: datetime) -> list[Pair]:
        raise AssertionError((deployment_id, at))


def page(*scan_ids: int, cursor: str = "", **changes: Any) -> dict[str, Any]:
    """Scans that started at the minute of their id."""
    scans = [
        entry(number, started_at=(NOW - DAY + timedelta(minutes=number)).isoformat(), **changes) for number in scan_ids
    ]
    return {"scans": scans, "cursor": cursor}


def quick(lookback_seconds: float = 30 * 86_400, **queue: Any) -> Settings:
    """Settings with which little is waited for."""
    numbers = {"max_attempts": 3, "backoff_seconds": 0.001, "backoff_max_seconds": 0.002} | queue
    return Settings(discover=DiscoverSettings(lookback=f"{lookback_seconds}s"), queue=QueueSettings(**numbers))


async def walk(
    ports: MemoryPorts, since: datetime | float | None = None, *, stop: Stop | None = None, **changes: Any
) -> tuple[set[int], list[Event], Stop, dict[int, FatalError], RunCounts]:
    events = list[Event]()
    state = RunState(RunCounts(), events.append, stop or Stop())
    await discover(ports, [120], quick(**changes), since, state)
    assert state.walks.of == set()
    return state.unwalked, events, state.stop, state.halted, state.counts


def previous(**changes: Any) -> PreviousPasses:
    facts: dict[str, Any] = {
        "walked_at": NOW - DAY,
        "base": NOW - 1.25 * DAY,
        "complete_since": NOW - 40 * DAY,
        "known": 300,
        "room_at": None,
        "unsettled": (),
    }
    return PreviousPasses(**(facts | changes))
