"""Walks through the list of a deployment, on ports in memory: where they begin, what ends them, what they survive."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings_of import entry

from etl.config.settings import DiscoverSettings, QueueSettings, Settings
from etl.errors import DatabaseError, FatalError, ItemError, RefusedError, StoppedError, TransientError
from etl.model import PAGE_SIZE, ListingPass, Pair, PreviousPasses, SearchResponse, Unsettled, WatermarkMove
from etl.pipeline.discovery import (
    DEEPER_SHARE,
    ROOM,
    answered_at,
    discover,
    left_open,
    start_of_deeper_walk,
    start_of_walk,
)
from etl.pipeline.run_state import RunState
from etl.pipeline.stop import Stop
from etl.telemetry.events import Event, ListingSkipped, NothingNew, OutOfReach, RunCounts, Walked, WalkFailed
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

    async def search(self, deployment_id: int, since: datetime | None, cursor: str) -> SearchResponse:
        assert deployment_id == 120
        self.asked.append((since, cursor))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SearchResponse(answer, NOW)

    async def api_time(self) -> datetime:
        return NOW

    async def previous_passes(self, deployment_id: int, room: int) -> PreviousPasses | None:
        assert (deployment_id, room) == (120, ROOM)
        return self.known

    async def record(self, page: Page, walk: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        self.recorded.append(([one.pair.scan_id for one in page.listings], walk, is_last))
        return len(page.listings), self.move if is_last else None


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


def unsettled(place: int, days: float, *, is_open: bool = True) -> Unsettled:
    return Unsettled(Pair(120, place), NOW - days * DAY, place, is_open)


async def test_a_walk_reads_until_the_cursor_is_empty() -> None:
    """Each page is recorded as it comes, and only the last one ends the walk."""
    ports = MemoryPorts([page(9, 8, cursor="a"), page(7, cursor="b"), page(6)])

    failed, events, _, _, counts = await walk(ports)

    assert failed == set()
    assert ports.asked == [(None, ""), (None, "a"), (None, "b")]
    assert [(ids, is_last) for ids, _, is_last in ports.recorded] == [([8, 9], False), ([7], False), ([6], True)]
    assert ports.recorded[-1][1].newest_started_at == NOW - DAY + timedelta(minutes=9)
    assert counts.discovered == 4
    assert events == [Walked(120, None, 3, 4, 4)]


@pytest.mark.parametrize("cursors", [("a", "a"), ("a", "b", "a")])
async def test_a_cursor_that_repeats_is_the_end(cursors: Sequence[str]) -> None:
    """Also one that has come before the last."""
    ports = MemoryPorts([page(100 - number, cursor=cursor) for number, cursor in enumerate(cursors)])

    await walk(ports)

    assert len(ports.recorded) == len(cursors)
    assert ports.recorded[-1][2]


async def test_cursors_without_end_are_seen_through() -> None:
    """Page after page without anything new is the end of the list, and is told of."""

    class Endless(MemoryPorts):
        async def search(self, deployment_id: int, since: datetime | None, cursor: str) -> SearchResponse:
            assert deployment_id == 120
            self.asked.append((since, cursor))
            return SearchResponse(page(*([5] if len(self.asked) % 2 else []), cursor=str(len(self.asked))), NOW)

    ports = Endless([page()])
    failed, events, _, _, _ = await walk(ports)

    assert failed == set()
    assert len(ports.recorded) < 60
    assert ports.recorded[-1][2]
    assert [event for event in events if isinstance(event, NothingNew)] == [NothingNew(120, len(ports.recorded))]


async def test_pages_that_come_round_again_are_seen_through() -> None:
    """Also with ever new cursors, and with other scans than the page before."""
    rounds = [page(9, 8, cursor="0"), *(page(7 - (number - 1) % 3, 3, cursor=str(number)) for number in range(1, 200))]
    ports = MemoryPorts(rounds)

    failed, events, _, _, _ = await walk(ports)

    assert failed == set()
    assert len(ports.recorded) < 60
    assert [event for event in events if isinstance(event, NothingNew)] == [NothingNew(120, len(ports.recorded))]


async def test_pages_that_bring_something_new_now_and_then_are_read_to_the_end() -> None:
    """Pages shift while they are read, and some are empty, however many."""
    some = [
        page(*([300 - number, 301 - number] if number % 4 == 0 else []), cursor=f"c{number}") for number in range(200)
    ]
    ports = MemoryPorts([*some, page(1)])

    _, events, _, _, _ = await walk(ports)

    assert ports.recorded[-1][0] == [1]
    assert not [event for event in events if isinstance(event, NothingNew)]


async def test_an_empty_page_with_a_cursor_is_not_the_end() -> None:
    """The API may give fewer scans than a page holds, and none."""
    ports = MemoryPorts([page(9, cursor="a"), page(cursor="b"), page(8)])

    await walk(ports)

    assert [ids for ids, _, _ in ports.recorded] == [[9], [], [8]]


async def test_pages_that_dont_go_back_in_time_are_walked_twice() -> None:
    """There a scan may slip between two pages as others drop out; so the watermark waits for a second look."""
    ports = MemoryPorts([page(1, cursor="a"), page(5), page(2, cursor="a"), page(6)])

    await walk(ports)

    assert [cursor for _, cursor in ports.asked] == ["", "a", "", "a"]
    assert [is_last for _, _, is_last in ports.recorded] == [False, False, False, True]


@pytest.mark.parametrize(
    "failure", [TransientError("500", kind="http_status"), {"error": "no"}, {"scans": "none", "cursor": ""}]
)
async def test_a_page_that_fails_is_asked_for_again(failure: Answer) -> None:
    """An error is never an empty page, and the walk goes on where it was."""
    ports = MemoryPorts([page(9, cursor="a"), failure, failure, page(8)])

    failed, _, _, _, counts = await walk(ports)

    assert failed == set()
    assert [cursor for _, cursor in ports.asked] == ["", "a", "a", "a"]
    assert counts.retried == 2


async def test_a_walk_that_fails_half_way_moves_no_watermark() -> None:
    """What it has found stays queued, the rest is for the next walk, and the failure is told."""
    ports = MemoryPorts([page(9, cursor="a"), TransientError("500", kind="http_status")])

    failed, events, stop, _, _ = await walk(ports)

    assert failed == {120}
    assert [is_last for _, _, is_last in ports.recorded] == [False]
    assert events == [WalkFailed(120, "500")]
    assert not stop.asked.is_set()


@pytest.mark.parametrize(
    ("error", "halted"),
    [
        (FatalError("refused", kind="token_refused", stop_code=3), True),
        (FatalError("unavailable", kind="api_away", stop_code=4), True),
        (ItemError("HTTP 400", kind="http_status", http_status=400), False),
        (RefusedError("the database refuses a row"), False),
        (StoppedError("stop"), False),
    ],
)
async def test_what_ends_a_walk_is_said_where_it_belongs(error: Exception, halted: bool) -> None:
    """A bad token and an unavailable API stop this deployment, a refused search fails this walk, and no other."""
    failed, _, stop, stopped, _ = await walk(MemoryPorts([error]))

    assert failed == {120}
    assert stop.exit_code is None
    assert (120 in stopped) is halted


async def test_what_no_deployment_is_to_blame_for_is_raised() -> None:
    """An unavailable database ends discovery as it ends a run."""
    with pytest.raises(DatabaseError):
        await walk(MemoryPorts([DatabaseError("away")]))


async def test_a_stop_ends_a_walk_that_waits() -> None:
    """Nobody waits out a pause between two tries after Ctrl-C."""
    stop = Stop()
    stop.ask(130, "SIGINT received")
    ports = MemoryPorts([TransientError("500", kind="http_status")])

    failed, *_ = await walk(ports, stop=stop, backoff_seconds=600, backoff_max_seconds=600)

    assert failed == {120}
    assert len(ports.asked) == 1


async def test_what_cannot_be_had_any_more_is_told() -> None:
    """As an instant, and since when."""
    ports = MemoryPorts([page()], move=WatermarkMove(True, NOW - 40 * DAY, NOW - 30 * DAY))

    _, events, _, _, _ = await walk(ports)

    assert events[-1] == OutOfReach(120, "2026-01-20T12:00:00+00:00", "2026-01-30T12:00:00+00:00")


@pytest.mark.parametrize(
    ("changes", "known", "since", "partial"),
    [
        ({}, None, None, False),
        ({"lookback_seconds": 86_400.0}, None, NOW - DAY, False),
        ({}, previous(), NOW - 1.25 * DAY, False),
        ({"lookback_seconds": 86_400.0}, previous(), NOW - 1.25 * DAY, False),
        ({"since": 7 * 86_400.0}, previous(), NOW - 7 * DAY, True),
        ({"since": NOW - 2 * DAY}, previous(), NOW - 2 * DAY, True),
        ({"since": 30 * 86_400.0}, previous(), None, True),
    ],
)
async def test_where_a_walk_begins(
    changes: Any, known: PreviousPasses | None, since: datetime | None, partial: bool
) -> None:
    """The first one goes as far back as it is told, others go on less an overlap, and `--since` wins over both."""
    ports = MemoryPorts([page()], known)

    await walk(ports, **changes)

    assert ports.asked == [(since, "")]
    assert ports.recorded[0][1].partial is partial


@pytest.mark.parametrize(
    ("ahead_days", "api_ahead_days", "is_believed"), [(0.5, 0, True), (2, 0, False), (2, 1.5, True), (900, 2, False)]
)
async def test_a_watermark_that_is_ahead_of_all_clocks_is_not_believed(
    ahead_days: float, api_ahead_days: float, is_believed: bool
) -> None:
    """More than a day ahead of ours and of the API's it comes from a wrong clock: all is read, whatever the lookback,
    and the walk replaces it."""
    now = datetime.now(UTC)

    class Ahead(MemoryPorts):
        async def api_time(self) -> datetime:
            return now + api_ahead_days * DAY

    known = previous(walked_at=now + ahead_days * DAY)
    ports = Ahead([page()], known)
    await walk(ports, lookback_seconds=86_400.0)

    assert ports.asked == [(start_of_walk(known) if is_believed else None, "")]
    assert ports.recorded[0][1].replaces is not is_believed


class Refusing(MemoryPorts):
    """Its database takes no page that `is_refused`."""

    def __init__(self, answers: Sequence[Answer], is_refused: Callable[[Page], bool]) -> None:
        super().__init__(answers)
        self.is_refused = is_refused

    async def record(self, page: Page, walk: ListingPass, *, is_last: bool) -> tuple[int, WatermarkMove | None]:
        if self.is_refused(page):
            raise RefusedError("no")
        return await super().record(page, walk, is_last=is_last)


async def test_a_page_that_is_refused_is_recorded_by_halves() -> None:
    """All but the refused listings, each once, in the order of the page; only the last part ends the walk."""
    ports = Refusing(
        [page(*range(1, 10))],
        lambda page: any((one.pair.scan_id == 2 and one.extra) or one.pair.scan_id == 9 for one in page.listings),
    )

    failed, events, _, _, counts = await walk(ports)

    assert (failed, counts.discovered) == (set(), 8)
    assert [ids for ids, _, _ in ports.recorded] == [[1], [2], [3, 4], [5, 6], [7], [8], []]
    assert [is_last for _, _, is_last in ports.recorded] == [False] * 6 + [True]
    assert events == [ListingSkipped(Pair(120, 9), "no"), Walked(120, None, 1, 9, 8)]


async def test_a_database_that_refuses_every_listing_fails_the_walk() -> None:
    """Then the fault isn't theirs, and the watermark stays where it is."""
    failed, events, _, _, _ = await walk(ports := Refusing([page(*range(1, 41))], lambda page: bool(page.listings)))

    assert failed == {120}
    assert events[-1] == WalkFailed(120, "no")
    assert not any(is_last for _, _, is_last in ports.recorded)


async def test_a_page_without_listings_that_is_refused_fails_the_walk() -> None:
    """There is nothing to leave out."""
    failed, events, _, _, _ = await walk(Refusing([page()], lambda page: not page.listings))

    assert failed == {120}
    assert events == [WalkFailed(120, "no")]


@pytest.mark.parametrize("days", [60, -60])
async def test_a_date_that_the_scans_of_its_page_contradict_is_not_believed(days: float) -> None:
    """One wrong header would write down a gap where there is none, and stop the watermark until its time has come."""
    now = datetime.now(UTC)

    class WrongDate(MemoryPorts):
        async def search(self, deployment_id: int, since: datetime | None, cursor: str) -> SearchResponse:
            found = await super().search(deployment_id, since, cursor)
            return found._replace(at=now + days * DAY)

    scans = [entry(number, started_at=(now - number * DAY).isoformat()) for number in range(1, 30)]
    ports = WrongDate([{"scans": scans, "cursor": ""}])
    await walk(ports)

    ((_, recorded, _),) = ports.recorded
    assert now <= recorded.walked_at == recorded.ended_at < now + DAY


@pytest.mark.parametrize("years", [-1, 2])
def test_a_date_that_fits_the_scans_of_its_page_is_believed_whatever_our_clock_says(years: int) -> None:
    """It may be ours that is wrong; and a few odd scans, or none, prove nothing."""
    ours = NOW + years * 365 * DAY
    odd = [
        entry(number, started_at=at) for number, at in enumerate(("0001-01-01T00:00:00Z", "2099-01-01T00:00:00Z"), 50)
    ]

    for scans in ([], odd[:1], [*page(1, 2)["scans"], *odd], [entry(1, started_at=None)]):
        found = SearchResponse({"scans": scans}, NOW)
        assert answered_at(found, read_page(120, found.document), ours) == NOW


def test_the_overlap_is_as_long_as_it_costs_nothing() -> None:
    """Up to half a page of known scans is listed again, and where there are fewer the whole 30 days."""
    week_ago = NOW - 7 * DAY

    assert start_of_walk(previous(known=ROOM - 1, room_at=week_ago)) == week_ago
    assert start_of_walk(previous(known=10, room_at=None)) == NOW - 31.25 * DAY
    assert start_of_walk(previous(known=ROOM, room_at=week_ago)) == NOW - 1.25 * DAY


def test_no_walk_goes_back_behind_the_lookback_of_the_first() -> None:
    """Neither for room, nor to open scans or late changes that somebody has listed by `--since`."""
    bound, within, behind = NOW - 3 * DAY, unsettled(10, 2), unsettled(20, 5)

    def known(*scans: Unsettled) -> PreviousPasses:
        return previous(known=10, complete_since=bound, unsettled=scans)

    assert start_of_walk(known()) == start_of_walk(known(within, behind)) == bound
    assert start_of_walk(known()._replace(base=NOW - 4 * DAY)) == bound
    assert left_open(known(behind), bound, NOW, 0) == (behind.pair,)
    assert start_of_deeper_walk(known(behind), NOW - DAY, 1_000) is None
    assert start_of_deeper_walk(known(within, behind), NOW - DAY, 1_000) == NOW - 2 * DAY - timedelta(seconds=1)


def test_a_walk_goes_back_to_open_scans_where_that_is_cheaper() -> None:
    """One page more for two scans is as good as two looks; twenty pages for one aren't."""
    near, far = unsettled(900, 3), unsettled(10_000, 20)

    assert start_of_walk(previous(known=450, unsettled=(unsettled(499, 2),))) == NOW - 2 * DAY - timedelta(seconds=1)
    assert start_of_walk(previous(known=450, unsettled=(near, near))) == NOW - 3 * DAY - timedelta(seconds=1)
    assert start_of_walk(previous(known=450, unsettled=(far,))) == previous().base
    assert start_of_walk(previous(unsettled=(unsettled(400, 2, is_open=False),))) == previous().base


def test_late_changes_are_looked_for_with_a_part_of_the_requests() -> None:
    """On a night without news nobody walks back; on one with 100 pairs four pages are read for it at the most."""
    late = [unsettled(place, place / 100, is_open=False) for place in (400, 1_500, 3_000)]
    known = previous(unsettled=tuple(late))

    assert start_of_deeper_walk(known, known.base, 0) is None
    assert start_of_deeper_walk(known, known.base, 100) == NOW - 15 * DAY - timedelta(seconds=1)
    assert start_of_deeper_walk(known, NOW - 20 * DAY, 100) is None
    assert start_of_deeper_walk(known, None, 100) is None


@given(behind=st.lists(st.integers(1, 20_000), max_size=5), known=st.integers(0, 3_000), queued=st.integers(0, 5_000))
def test_no_walk_costs_more_than_its_share(behind: list[int], known: int, queued: int) -> None:
    """The first walk never costs more than to look at each open scan, and the second one no more than its part.

    All that is `known` after the base comes before what lies behind the base.
    """
    scans = tuple(unsettled(known + place, place / 100 + 2) for place in sorted(behind))
    facts = previous(known=known, room_at=NOW - 2 * DAY, unsettled=scans)
    start = start_of_walk(facts)
    deeper = start_of_deeper_walk(facts, start, queued)

    def pages(since: datetime) -> int:
        listed = max([known, *(one.place for one in scans if one.started_at > since)])
        return max(1, -(-listed // PAGE_SIZE))

    looks = sum(one.started_at <= start for one in scans)
    assert pages(start) + looks <= max(1, -(-known // PAGE_SIZE)) + len(scans)
    assert deeper is None or pages(deeper) <= queued * DEEPER_SHARE


def test_open_scans_that_are_not_listed_again_are_looked_at_in_their_time() -> None:
    """Not twice within the longest wait for a running scan, however often somebody syncs."""
    inside, outside = unsettled(1, 1), unsettled(2, 5)
    known = previous(unsettled=(inside, outside))

    assert left_open(known, NOW - 2 * DAY, NOW, 4_200) == (outside.pair,)
    assert left_open(known._replace(walked_at=NOW - timedelta(hours=1)), NOW - 2 * DAY, NOW, 4_200) == ()
    assert left_open(None, NOW, NOW, 4_200) == left_open(known, None, NOW, 4_200) == ()
