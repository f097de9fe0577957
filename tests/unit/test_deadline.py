"""One end for many tasks: who is late gets TimeoutError, and nobody else is touched."""

import asyncio
from contextlib import closing

import pytest

from etl.semgrep.deadline import Deadline


async def test_who_is_late_is_ended() -> None:
    """With TimeoutError, each of many, and the task goes on from there."""
    with closing(Deadline(0.01)) as deadline:

        async def hang() -> str:
            try:
                with deadline:
                    await asyncio.Event().wait()
            except TimeoutError:
                await asyncio.sleep(0)
            return "ended"

        ended = await asyncio.gather(*(hang() for _ in range(5)))

    assert ended == ["ended"] * 5


async def test_each_has_its_own_time() -> None:
    """Who came first is ended first, and one that comes while nobody else is there is ended too."""
    order = []
    with closing(Deadline(0.05)) as deadline:

        async def hang(name: str, wait_seconds: float) -> None:
            await asyncio.sleep(wait_seconds)
            with pytest.raises(TimeoutError), deadline:
                await asyncio.Event().wait()
            order.append(name)

        await asyncio.gather(hang("second", 0.02), hang("first", 0.0))
        await hang("third", 0.0)

    assert order == ["first", "second", "third"]


async def test_who_is_done_in_time_is_left_alone() -> None:
    """Neither while in it nor afterwards, however often a task enters."""
    with closing(Deadline(0.05)) as deadline:
        for _ in range(10):
            with deadline:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_errors_come_out_as_they_are() -> None:
    """Also where the time is over by then."""
    with closing(Deadline(0.01)) as deadline:

        async def fail() -> None:
            with deadline:
                try:
                    await asyncio.Event().wait()
                finally:
                    raise LookupError("something else")

        with pytest.raises(LookupError):
            await fail()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("is_late", [False, True])
async def test_who_is_cancelled_by_others_stays_cancelled(is_late: bool) -> None:
    """Whether the time is over too or not: a stop isn't taken for a timeout."""
    with closing(Deadline(0.01 if is_late else 60.0)) as deadline:

        async def hang() -> None:
            with deadline:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not is_late:
                        raise
                    await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    assert task.cancelled()


async def test_only_tasks_have_an_end() -> None:
    """A callback can't be cancelled."""
    loop, deadline = asyncio.get_running_loop(), Deadline(60.0)
    entered: asyncio.Future[None] = loop.create_future()

    def enter() -> None:
        try:
            with deadline:
                entered.set_result(None)
        except RuntimeError as error:
            entered.set_exception(error)

    loop.call_soon(enter)
    with pytest.raises(RuntimeError):
        await entered
