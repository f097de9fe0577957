"""How far back a walk goes, and which dates and pages it believes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings_of import entry
from walked_lists import DAY, NOW, Answer, MemoryPorts, page, previous, walk

from etl.errors import RefusedError
from etl.model import PAGE_SIZE, ListingPass, Pair, PreviousPasses, SearchResponse, Unsettled, WatermarkMove
from etl.pipeline.discovery import DEEPER_SHARE, start_of_deeper_walk, start_of_walk
from etl.pipeline.repositories import ROOM
from etl.pipeline.walk import answered_at, left_open
from etl.telemetry.events import ListingSkipped, Walked, WalkFailed
from etl.transform.search_page import Page, read_page


def unsettled(place: int, days: float, *, is_open: bool = True) -> Unsettled:
    return Unsettled(Pair(120, place), NOW - days * DAY, place, is_open)


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
        async def search(
            self, deployment_id: int, since: datetime | None, cursor: str, repository_id: int | None = None
        ) -> SearchResponse:
            found = await super().search(deployment_id, since, cursor, repository_id)
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
