"""The drain of a queue, when a deployment or the database refuses."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import pytest
from drained_queue import ONE, drained, given_back, gone, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_ports import OTHERS, MemoryPorts, sound
from scan_rows import document
from small_api import until

from etl.errors import FatalError, ItemError, RefusedError, TransientError
from etl.model import (
    NO_DEPLOYMENT,
    Discard,
    Lease,
    Outcome,
    Pair,
    Settled,
)
from etl.pipeline.outcomes import REFUSED_TEXT
from etl.pipeline.run_state import OpenWalks
from etl.pipeline.stop import Stop
from etl.telemetry.events import DeploymentStopped

# Fatal errors


def fatal(stop_code: int = 3) -> FatalError:
    return FatalError("refused", kind="token_refused", stop_code=stop_code)


async def test_a_fatal_error_of_a_deployment_stops_that_one_only() -> None:
    """Its pairs stay as they were, the others are stored, and it is told once."""
    error = fatal()

    async def answer(pair: Pair, times: int) -> object:
        if pair.deployment_id == 120 and pair.scan_id > 3:
            raise error
        return await sound(pair, times)

    ports = MemoryPorts(pairs(40) + pairs(40, 121), answer)
    ended = await drained(ports)

    assert sorted(ports.stored) == pairs(3) + pairs(40, 121)
    assert sorted(ports.queue) == pairs(40)[3:]
    assert given_back(ports)
    assert ended.halted == {120: error}
    assert ended.events == [DeploymentStopped(120, "refused")]
    assert ended.stop.exit_code is None


async def test_a_deployment_halted_beforehand_is_not_asked() -> None:
    """What the preflight has found out isn't tried again."""
    ports = MemoryPorts(pairs(5) + pairs(5, 121))
    await drained(ports, halted={120: fatal()})

    assert sorted(ports.asked) == pairs(5, 121)
    assert sorted(ports.queue) == pairs(5)


async def test_a_deployment_whose_check_fails_costs_no_fetcher_and_holds_no_lease() -> None:
    """Its lane is closed, and thousands of such deployments end a run as soon as each was looked at."""
    ports = MemoryPorts([Pair(number, 1) for number in range(1, 501)] + pairs(5, 900))
    ports.barred = {number: fatal() for number in range(1, 501)}
    ended = await drained(ports)

    assert sorted(ports.stored) == pairs(5, 900)
    assert sorted(ended.halted) == list(range(1, 501))
    assert (len(ports.queue), sum(ports.asked.values())) == (500, 5)
    assert given_back(ports)


async def test_a_limit_says_nothing_where_all_were_refused_before_it() -> None:
    """The token is to blame for what is left, not the limit."""
    ports = MemoryPorts(pairs(50) + pairs(5, 121))
    ports.barred = {120: fatal()}
    ended = await drained(ports, limit=10)

    assert (ended.stop.exit_code, list(ended.halted), len(ports.stored)) == (None, [120], 5)
    assert given_back(ports)


async def test_a_scan_that_died_after_it_was_stored_as_running_counts_as_such() -> None:
    """So that the counts of a run can add up."""
    open_scan = document(ONE) | {"completed_at": None, "started_at": datetime.now(UTC).isoformat()}

    async def answer(pair: Pair, times: int) -> object:
        if times == 1:
            asyncio.get_running_loop().call_later(0.05, ports.add, [pair])
            return open_scan
        raise gone()

    ports = MemoryPorts([ONE], answer)
    ports.add([Pair(120, 2)], holder=OTHERS, due_in_seconds=0.3)
    ended = await drained(ports)

    assert (ended.counts.dead, ended.counts.running, ended.counts.died_running) == (2, 0, 1)


async def test_a_worker_asks_again_for_a_deployment_that_was_refused() -> None:
    """At growing intervals; when it isn't refused any more, its pairs are fetched."""
    ports, stop = MemoryPorts(pairs(3) + pairs(3, 121)), Stop()
    ports.barred = {120: fatal()}
    ended = asyncio.create_task(drained(ports, stop=stop, forever=True, first_halt_seconds=0.01))
    await until(lambda: len(ports.stored) == 6)
    stop.ask(143, "SIGTERM received")

    assert (await ended).halted == {}
    assert ports.asked_again == [120]


async def test_expired_pairs_of_a_deployment_that_no_token_may_ask_for_are_dead() -> None:
    """Nobody could fetch them; others wait for a token, or for an outage to end."""
    ports = MemoryPorts(pairs(4) + pairs(2, 121) + pairs(2, 122))
    ports.barred, ports.expired = {120: fatal(), 122: fatal(stop_code=4)}, {*pairs(2), *pairs(2, 122)}
    ended = await drained(ports)

    assert sorted(ports.dead) == pairs(2)
    assert sorted(ports.queue) == pairs(4)[2:] + pairs(2, 122)
    assert ended.counts.dead == 2


async def test_a_run_that_queues_work_itself_ends_after_that() -> None:
    """An empty queue is no end while lists are walked."""
    ports, walks = MemoryPorts([]), OpenWalks()
    walks.of.add(NO_DEPLOYMENT)

    async def walk() -> None:
        for number in range(1, 4):
            ports.add([Pair(120, number)])
            await asyncio.sleep(0.05)
        walks.end()

    walking = asyncio.create_task(walk())
    await drained(ports, walks=walks)
    await walking

    assert sorted(ports.stored) == pairs(3)


async def test_a_ready_row_that_somebody_else_has_locked_is_looked_at_with_pauses() -> None:
    """It is due and can't be leased: that is no reason to ask hundreds of times a second."""

    class Locked(MemoryPorts):
        looks, is_free = 0, False

        async def lease(self, limit: int, without: Collection[int]) -> list[Lease]:
            self.looks += not self.is_free
            return await super().lease(limit, without) if self.is_free else []

    ports = Locked([ONE])
    asyncio.get_running_loop().call_later(0.5, setattr, ports, "is_free", True)
    await drained(ports)

    assert list(ports.stored) == [ONE]
    assert ports.looks <= 8


# What a database refuses


@given(st.sets(st.integers(1, 20)))
@settings(max_examples=30)
async def test_a_refused_batch_is_halved_until_the_bad_rows_are_alone(bad: set[int]) -> None:
    """They die with the reason, and all others are stored."""
    refused = {Pair(120, number) for number in bad}
    ports = MemoryPorts(pairs(20), refused=refused)
    ended = await drained(ports, batch_size=20)

    assert set(ports.dead) == refused
    assert set(ports.stored) == set(pairs(20)) - refused
    assert {(dead.error_kind, dead.attempts) for dead in ports.dead.values()} <= {("refused_row", 1)}
    assert (ended.counts.dead, ports.queue) == (len(bad), {})


async def test_one_bad_row_costs_few_transactions() -> None:
    """Halving finds it among 64 with two a level, not with one for each row."""
    ports = MemoryPorts(pairs(64), refused={Pair(120, 37)})
    await drained(ports, batch_size=64, concurrency=64, flush_seconds=10.0)

    assert (len(ports.stored), len(ports.dead)) == (63, 1)
    assert ports.settle_calls <= 2 * 6 + 2


async def test_a_dead_letter_that_is_refused_too_is_no_endless_loop() -> None:
    """Then the fault isn't the row's, and the run ends with it."""

    class RefusesAll(MemoryPorts):
        async def settle(self, outcomes: Sequence[Outcome]) -> Settled:
            raise RefusedError(f"the database refuses {len(outcomes)}")

    with pytest.raises(RefusedError, match="refuses 1"):
        await drained(RefusesAll(pairs(10)))


async def test_a_dead_letter_whose_text_is_refused_has_another_one() -> None:
    """The pair dies all the same, and the others are stored."""

    async def answer(pair: Pair, _times: int) -> object:
        if pair == ONE:
            raise ItemError("odd", kind="not_found", http_status=404)
        return document(pair)

    ports = MemoryPorts(pairs(10), answer, refused_errors={"odd"})
    await drained(ports)

    assert ports.dead == {ONE: Discard(ONE, 1, "not_found", REFUSED_TEXT, 404)}
    assert len(ports.stored) == 9


async def test_a_refused_row_whose_reason_is_refused_too_is_a_dead_letter() -> None:
    """With a sentence of ours instead of the database's."""
    ports = MemoryPorts([ONE], refused={ONE}, refused_errors={"the database refuses a row"})
    await drained(ports)

    assert ports.dead == {ONE: Discard(ONE, 1, "refused_row", REFUSED_TEXT, None)}


async def test_a_failure_whose_text_is_refused_is_tried_again_all_the_same() -> None:
    """What may pass passes, whatever was said of it."""

    async def answer(pair: Pair, times: int) -> object:
        if times == 1:
            raise TransientError("odd", kind="http_status", http_status=500)
        return document(pair)

    ports = MemoryPorts([ONE], answer, refused_errors={"odd"})
    await drained(ports)

    assert (list(ports.stored), ports.dead) == ([ONE], {})
