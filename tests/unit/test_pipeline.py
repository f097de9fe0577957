"""One run, from leases to outcomes, on ports in memory: what ends it, and what becomes of every pair."""

import asyncio
from datetime import UTC, datetime, timedelta

from drained_queue import ONE, drained, gone, pairs
from memory_ports import MemoryPorts, sound
from scan_rows import document

from etl.backoff import later_night_seconds
from etl.errors import TransientError
from etl.model import (
    RETENTION,
    Discard,
    Pair,
    Retry,
    pair_of,
)
from etl.pipeline.stop import Stop
from etl.telemetry.events import PairDied


def failed(*, spends_attempt: bool = True) -> TransientError:
    return TransientError("HTTP 500", kind="http_status", http_status=500, spends_attempt=spends_attempt)


async def test_every_pair_is_stored_once() -> None:
    """Each is asked for once and settled once, in full batches but for what is left at the end."""
    ports = MemoryPorts(pairs(103))
    ended = await drained(ports)

    assert sorted(ports.stored) == pairs(103)
    assert set(ports.asked.values()) == {1}
    assert sorted(pair_of(outcome) for batch in ports.batches for outcome in batch) == pairs(103)
    assert max(len(batch) for batch in ports.batches) <= 5
    assert (ended.counts.inserted, ended.counts.fetched, ended.counts.dead, ended.stop.exit_code) == (103, 103, 0, None)
    assert ports.queue == {}


async def test_an_empty_queue_ends_a_run_at_once() -> None:
    """Nothing is asked and nothing is written."""
    ports = MemoryPorts([])
    ended = await drained(ports)

    assert (ports.settle_calls, ended.events) == (0, [])


async def test_concurrency_and_what_is_held_are_bounded() -> None:
    """No more fetches at a time than `concurrency`, and no more pairs held than two rounds and two batches."""
    ports = MemoryPorts(pairs(200))
    await drained(ports, concurrency=3, batch_size=5)

    assert ports.most_fetching == 3
    assert 3 <= ports.most_held <= 16


async def test_a_failure_comes_back_and_spends_an_attempt() -> None:
    """An empty lease isn't the end: a pair that backs off is waited for."""

    async def answer(pair: Pair, times: int) -> object:
        if times < 3:
            raise failed()
        return document(pair)

    ports = MemoryPorts([ONE], answer)
    ended = await drained(ports)

    later = [outcome.attempts for batch in ports.batches for outcome in batch if isinstance(outcome, Retry)]
    assert later == [1, 2]
    assert list(ports.stored) == [ONE]
    assert ended.counts.retried == 2


async def test_after_its_last_attempt_a_pair_is_dead() -> None:
    """The reason is kept and told, and the others are stored."""

    async def answer(pair: Pair, _times: int) -> object:
        if pair == ONE:
            raise failed()
        return document(pair)

    ports = MemoryPorts(pairs(10), answer)
    ended = await drained(ports)

    assert ports.asked[ONE] == 3
    assert ports.dead == {ONE: Discard(ONE, 3, "http_status", "HTTP 500", 500, later_night_seconds(1))}
    assert sorted(ports.stored) == pairs(10)[1:]
    assert ended.events == [PairDied(ONE, "http_status", "HTTP 500")]
    assert (ended.counts.dead, ended.stop.exit_code) == (1, None)


async def test_what_is_not_the_pairs_fault_spends_no_attempt() -> None:
    """A pair that may be tried once only survives ten refusals."""

    async def answer(pair: Pair, times: int) -> object:
        if times <= 10:
            raise failed(spends_attempt=False)
        return document(pair)

    ports = MemoryPorts([ONE], answer)
    await drained(ports, max_attempts=1)

    assert (ports.asked[ONE], list(ports.stored), ports.dead) == (11, [ONE], {})


async def test_what_will_never_succeed_is_dead_at_once() -> None:
    """Whether the API says so, or the answer can't be flattened."""

    async def answer(pair: Pair, _times: int) -> object:
        if pair.scan_id == 1:
            raise gone()
        return [] if pair.scan_id == 2 else document(pair)

    ports = MemoryPorts(pairs(3), answer)
    await drained(ports)

    assert {pair.scan_id: (dead.error_kind, dead.attempts) for pair, dead in ports.dead.items()} == {
        1: ("not_found", 1),
        2: ("not_an_object", 1),
    }
    assert set(ports.asked.values()) == {1}


async def test_a_running_scan_is_stored_and_not_waited_for() -> None:
    """It stays queued for later, and the run ends."""
    started_at = datetime.now(UTC) - timedelta(minutes=1)

    async def answer(pair: Pair, _times: int) -> object:
        return document(pair, started_at=started_at.isoformat(), completed_at=None)

    ports = MemoryPorts([ONE], answer)
    ended = await drained(ports)

    row = ports.queue[ONE]
    assert list(ports.stored) == [ONE]
    assert row.due_at - asyncio.get_running_loop().time() > 200
    assert row.expires_at == started_at + RETENTION
    assert (row.attempts, ended.counts.waiting) == (0, 1)


async def test_what_is_fetched_is_written_while_the_rest_goes_on() -> None:
    """A batch that doesn't fill up is written after `flush_seconds`, not at the end."""

    async def answer(pair: Pair, times: int) -> object:
        if pair == ONE:
            await ports.wrote.wait()
        return await sound(pair, times)

    ports = MemoryPorts(pairs(3), answer)
    await drained(ports, batch_size=100)

    assert sorted(ports.stored) == pairs(3)
    assert ONE not in {pair_of(outcome) for outcome in ports.batches[0]}


async def test_a_worker_drains_for_ever() -> None:
    """With `forever` an empty queue is waited at, and what comes later is fetched."""
    stop = Stop()

    async def answer(pair: Pair, times: int) -> object:
        if pair.scan_id == 2:
            stop.ask(143, "SIGTERM received")
        return await sound(pair, times)

    ports = MemoryPorts([ONE], answer)
    asyncio.get_running_loop().call_later(0.1, ports.add, [Pair(120, 2)])
    ended = await drained(ports, stop=stop, forever=True)

    assert sorted(ports.stored) == pairs(2)
    assert ended.stop.exit_code == 143
