"""Walks through the list of a deployment, on ports in memory: where they begin, what ends them, what they survive."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from walked_lists import DAY, NOW, Answer, MemoryPorts, page, walk

from etl.errors import DatabaseError, FatalError, ItemError, RefusedError, StoppedError, TransientError
from etl.model import SearchResponse, WatermarkMove
from etl.pipeline.stop import Stop
from etl.telemetry.events import NothingNew, OutOfReach, Walked, WalkFailed


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
        async def search(
            self, deployment_id: int, since: datetime | None, cursor: str, repository_id: int | None = None
        ) -> SearchResponse:
            assert (deployment_id, repository_id) == (120, None)
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
