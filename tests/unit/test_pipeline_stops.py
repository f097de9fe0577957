"""The drain of a queue that others share, and every way in which it stops."""

import asyncio

from drained_queue import ONE, drained, given_back, gone, pairs
from memory_ports import OTHERS, MemoryPorts, sound
from scan_rows import document

from etl.errors import StoppedError
from etl.model import Pair
from etl.pipeline.stop import Stop
from etl.telemetry.events import Event, LeasesLost, Stopping, WorkAwaited

# Leases


async def test_what_others_hold_is_waited_for_and_taken_over_when_their_lease_ends() -> None:
    """A worker that died doesn't keep its pairs."""
    ports = MemoryPorts([])
    ports.add([ONE], holder=OTHERS, due_in_seconds=0.3)
    await drained(ports)

    assert list(ports.stored) == [ONE]


async def test_a_wait_for_others_is_told_once_with_its_reason() -> None:
    """A run after a kill is silent for up to a lease otherwise, and nobody knows why."""
    ports = MemoryPorts([])
    ports.add(pairs(2), holder=OTHERS, due_in_seconds=2.5)
    ended = await drained(ports)

    [told] = [event for event in ended.events if isinstance(event, WorkAwaited)]
    assert (told.retrying, told.leased) == (0, 2)
    assert 0 < told.seconds <= 1.5
    assert sorted(ports.stored) == pairs(2)


async def test_a_pair_that_is_leased_again_while_it_is_in_work_is_fetched_once() -> None:
    """Its lease had ended unseen, as while the machine slept."""

    async def answer(pair: Pair, _times: int) -> object:
        await asyncio.sleep(0.05)
        return document(pair)

    ports = MemoryPorts(pairs(3), answer, lease_seconds=0.0)
    ended = await drained(ports)

    assert set(ports.asked.values()) == {1}
    assert (ended.tally.fetched, ended.events) == (3, [])


async def test_a_verdict_for_a_lost_lease_is_not_written() -> None:
    """The other worker's word counts; how many were lost is told."""

    async def answer(pair: Pair, times: int) -> object:
        if pair == ONE:
            ports.pass_to_others(pair, 0.2)
        return await sound(pair, times)

    ports = MemoryPorts(pairs(10), answer)
    ended = await drained(ports)

    assert sorted(ports.stored) == pairs(10)[1:]
    assert [event.count for event in ended.events if isinstance(event, LeasesLost)] == [1]
    assert (ended.tally.fetched, ended.stop.exit_code) == (9, None)


async def test_leases_are_renewed_while_the_work_lasts() -> None:
    """A fetch longer than the lease keeps its pair, which is asked for once."""

    async def answer(pair: Pair, times: int) -> object:
        await ports.was_renewed.wait()
        return await sound(pair, times)

    ports = MemoryPorts(pairs(3), answer, lease_seconds=2.0)
    await drained(ports, lease_seconds=2.0)

    assert sorted(ports.stored) == pairs(3)
    assert set(ports.asked.values()) == {1}
    assert all(ports.renewed[pair] >= 1 for pair in pairs(3))


# Stops


async def test_a_stop_lets_what_is_in_flight_finish_and_gives_the_rest_back() -> None:
    """Nothing begins after it, spends an attempt, or stays leased; the first reason is told at once."""
    told = list[Event]()
    stop = Stop(told.append)

    async def answer(pair: Pair, times: int) -> object:
        if pair.scan_id == 9:
            stop.ask(130, "SIGINT received")
            stop.ask(4, "a later reason")
        await asyncio.sleep(0.01)
        return await sound(pair, times)

    ports = MemoryPorts(pairs(100), answer)
    ended = await drained(ports, stop=stop)

    assert (ended.stop.exit_code, ended.stop.reason) == (130, "SIGINT received")
    assert told == [Stopping("SIGINT received")]
    assert ports.hushed.is_set()
    assert sorted(ports.stored) == sorted(ports.asked)
    assert 9 <= len(ports.stored) <= 20
    assert len(ports.stored) + len(ports.queue) == 100
    assert given_back(ports)
    assert ports.asked_after_hush == 0


async def test_what_does_not_finish_within_the_grace_period_is_cut_off_and_given_back() -> None:
    """A hanging request doesn't keep a run from ending."""
    stop, hangs = Stop(), asyncio.Event()

    async def answer(pair: Pair, times: int) -> object:
        if pair == ONE:
            stop.ask(143, "SIGTERM received")
            await hangs.wait()
        return await sound(pair, times)

    ports = MemoryPorts(pairs(10), answer)
    await drained(ports, stop=stop, grace_seconds=0.2)

    assert ONE in ports.queue
    assert given_back(ports)
    assert ports.fetching == 0


async def test_a_fetch_that_waits_for_its_turn_is_given_back_at_a_stop() -> None:
    """StoppedError isn't a failure."""
    stop = Stop()

    async def answer(pair: Pair, times: int) -> object:
        if pair == ONE:
            stop.ask(130, "SIGINT received")
            return await sound(pair, times)
        await ports.hushed.wait()
        raise StoppedError("no more requests")

    ports = MemoryPorts(pairs(10), answer)
    ended = await drained(ports, stop=stop)

    assert list(ports.stored) == [ONE]
    assert len(ports.queue) == 9
    assert given_back(ports)
    assert (ended.tally.retried, ended.tally.dead) == (0, 0)


async def test_a_limit_is_kept_exactly() -> None:
    """No pair more is asked for, whatever the batch size and the concurrency."""
    ports = MemoryPorts(pairs(50))
    ended = await drained(ports, limit=13)

    assert (len(ports.asked), len(ports.stored), len(ports.queue)) == (13, 13, 37)
    assert (ended.stop.exit_code, ended.stop.reason) == (4, "limit of 13 reached")
    assert given_back(ports)


async def test_a_limit_that_is_not_reached_stops_nothing() -> None:
    """A run with less to do ends as ever."""
    ports = MemoryPorts(pairs(5))
    ended = await drained(ports, limit=6)

    assert (len(ports.stored), ended.stop.exit_code) == (5, None)


async def test_so_many_dead_letters_end_a_run() -> None:
    """With --max-failures a run doesn't bury a whole queue."""

    async def answer(_pair: Pair, _times: int) -> object:
        await asyncio.sleep(0)
        raise gone()

    ports = MemoryPorts(pairs(200), answer)
    ended = await drained(ports, max_failures=3, batch_size=2)

    assert 3 <= len(ports.dead) < 100
    assert len(ports.dead) + len(ports.queue) == 200
    assert (ended.stop.exit_code, ended.tally.dead) == (4, len(ports.dead))
    assert given_back(ports)


async def test_a_deadline_ends_a_run() -> None:
    """What isn't done by then stays queued."""

    async def answer(pair: Pair, times: int) -> object:
        await asyncio.sleep(0.02)
        return await sound(pair, times)

    ports, stop = MemoryPorts(pairs(2_000), answer), Stop()
    asyncio.get_running_loop().call_later(0.3, stop.ask, 4, "deadline of 0.3 s")
    ended = await drained(ports, stop=stop)

    assert (ended.stop.exit_code, ended.stop.reason) == (4, "deadline of 0.3 s")
    assert len(ports.stored) + len(ports.queue) == 2_000
    assert ports.queue
    assert given_back(ports)
