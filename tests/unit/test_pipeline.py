"""One run, from leases to outcomes, on ports in memory: what ends it, and what becomes of every pair."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_ports import FAR_AWAY, OTHERS, MemoryPorts, sound
from patience import PATIENCE_SECONDS
from scan_rows import document, scan_rows
from small_api import until

from etl.backoff import LONGEST_SNOOZE
from etl.config.settings import ApiSettings, DatabaseSettings, QueueSettings, Settings
from etl.errors import DatabaseError, FatalError, ItemError, RefusedError, StoppedError, TransientError
from etl.model import (
    NO_DEPLOYMENT,
    RETENTION,
    Complete,
    Discard,
    Lease,
    Outcome,
    Pair,
    Release,
    Retry,
    Settled,
    Snooze,
    pair_of,
)
from etl.pipeline.drain import FIRST_HALT_SECONDS, GRACE_SECONDS, drain
from etl.pipeline.outcomes import REFUSED_TEXT, after_failure, after_unfinished
from etl.pipeline.run_state import OpenWalks, RunRequest, RunState
from etl.pipeline.stop import Stop
from etl.telemetry.events import DeploymentStopped, Event, LeasesLost, PairDied, RunCounts, Stopping, WorkAwaited

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ONE = Pair(120, 1)


def pairs(count: int, deployment_id: int = 120) -> list[Pair]:
    return [Pair(deployment_id, number) for number in range(1, count + 1)]


def quick(*, concurrency: int = 4, batch_size: int = 5, flush_seconds: float = 0.05, **queue: Any) -> Settings:
    """Settings that make a run quick."""
    numbers = {"max_attempts": 3, "backoff_seconds": 0.01, "backoff_max_seconds": 0.05}
    return Settings(
        api=ApiSettings(concurrency=concurrency),
        database=DatabaseSettings(batch_size=batch_size, flush_seconds=flush_seconds),
        queue=QueueSettings(**numbers | queue),
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    stop: Stop
    halted: dict[int, FatalError]
    counts: RunCounts
    events: list[Event]


async def drained(
    ports: MemoryPorts,
    *,
    stop: Stop | None = None,
    halted: dict[int, FatalError] | None = None,
    walks: OpenWalks | None = None,
    limit: int | None = None,
    max_failures: int | None = None,
    forever: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    first_halt_seconds: float = FIRST_HALT_SECONDS,
    **changes: Any,
) -> Ended:
    events = list[Event]()
    ended = Ended(stop or Stop(events.append), halted if halted is not None else {}, RunCounts(), events)
    request = RunRequest("run", limit=limit, max_failures=max_failures, forever=forever)
    state = RunState(ended.counts, events.append, ended.stop, ended.halted, walks=walks or OpenWalks())
    grace = {"grace_seconds": grace_seconds, "first_halt_seconds": first_halt_seconds}
    async with asyncio.timeout(PATIENCE_SECONDS):
        await drain(ports, quick(**changes), request, state, **grace)
    return ended


def given_back(ports: MemoryPorts) -> bool:
    """Whether all that is left in the queue is free, as it was, and due."""
    now = asyncio.get_running_loop().time()
    return all(row.holder is None and row.attempts == 0 and row.due_at <= now for row in ports.queue.values())


def gone() -> ItemError:
    return ItemError("no such scan", kind="not_found", http_status=404)


def failed(*, spends_attempt: bool = True) -> TransientError:
    return TransientError("HTTP 500", kind="http_status", http_status=500, spends_attempt=spends_attempt)


# What becomes of a pair


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
    assert ports.dead == {ONE: Discard(ONE, 3, "http_status", "HTTP 500", 500)}
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
    assert (ended.counts.fetched, ended.events) == (3, [])


async def test_an_outcome_for_a_lost_lease_is_not_written() -> None:
    """The other worker's word counts; how many were lost is told."""

    async def answer(pair: Pair, times: int) -> object:
        if pair == ONE:
            ports.pass_to_others(pair, 0.2)
        return await sound(pair, times)

    ports = MemoryPorts(pairs(10), answer)
    ended = await drained(ports)

    assert sorted(ports.stored) == pairs(10)[1:]
    assert [event.count for event in ended.events if isinstance(event, LeasesLost)] == [1]
    assert (ended.counts.fetched, ended.stop.exit_code) == (9, None)


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
    assert ports.stopped_sending.is_set()
    assert sorted(ports.stored) == sorted(ports.asked)
    assert 9 <= len(ports.stored) <= 20
    assert len(ports.stored) + len(ports.queue) == 100
    assert given_back(ports)
    assert ports.asked_after_stop == 0


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
        await ports.stopped_sending.wait()
        raise StoppedError("no more requests")

    ports = MemoryPorts(pairs(10), answer)
    ended = await drained(ports, stop=stop)

    assert list(ports.stored) == [ONE]
    assert len(ports.queue) == 9
    assert given_back(ports)
    assert (ended.counts.retried, ended.counts.dead) == (0, 0)


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
    assert (ended.stop.exit_code, ended.counts.dead) == (4, len(ports.dead))
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


# What no pair is to blame for


@pytest.mark.parametrize("error", [KeyError("a bug"), ZeroDivisionError(), DatabaseError("database unavailable")])
@pytest.mark.parametrize("port", ["fetch", "flatten", "lease", "settle", "renew", "next_due_seconds"])
async def test_bugs_and_a_database_that_is_away_come_out_as_they_are(port: str, error: Exception) -> None:
    """Wherever they happen, nothing swallows them, and no group hides them."""

    class Faulty(MemoryPorts):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != port:
                return found

            def call(*_: object) -> Any:
                raise error

            return call

    ports = Faulty([ONE], (lambda _pair, _times: asyncio.Event().wait()) if port == "renew" else sound)

    with pytest.raises(type(error)) as caught:
        await drained(ports, lease_seconds=0.1)
    assert caught.value is error
    assert ONE not in ports.dead


# Outcomes, pure


@given(
    attempts=st.integers(0, 200),
    most=st.integers(1, 100),
    spends=st.booleans(),
    asked_for=st.one_of(st.none(), st.floats(0.001, 1e6)),
)
def test_a_failure_is_later_or_dead(attempts: int, most: int, spends: bool, asked_for: float | None) -> None:
    """Dead from the last attempt on; else later, not before the server wants it, and within the longest wait."""
    error = TransientError("m", kind="k", http_status=500, retry_after_seconds=asked_for, spends_attempt=spends)
    numbers = QueueSettings(max_attempts=most, backoff_seconds=1.0, backoff_max_seconds=60.0)
    outcome = after_failure(Lease(ONE, attempts, FAR_AWAY), error, numbers)

    assert isinstance(outcome, Discard if attempts + spends >= most else Retry)
    assert outcome.attempts == attempts + spends
    if isinstance(outcome, Retry):
        assert min(asked_for or 0.5, 60.0) <= outcome.delay_seconds <= 60.0


@pytest.mark.parametrize(
    ("age", "snoozes"),
    [
        (timedelta(0), 1),
        (timedelta(minutes=-5), 1),
        (timedelta(minutes=10), 1),
        (timedelta(minutes=40), 4),
        (timedelta(hours=5), LONGEST_SNOOZE),
        (timedelta(days=29), LONGEST_SNOOZE),
    ],
)
def test_a_running_scan_is_looked_at_again_after_half_its_age(age: timedelta, snoozes: float) -> None:
    """Within bounds: from one snooze to fourteen."""
    rows = scan_rows(1, started_at=(NOW - age).isoformat(), completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, FAR_AWAY), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0 * snoozes, NOW - age + RETENTION)


@pytest.mark.parametrize(
    ("started_at", "expires_at"),
    [
        (NOW - RETENTION, NOW + timedelta(days=20)),
        (NOW - timedelta(days=1), NOW),
        (None, NOW - timedelta(days=1)),
    ],
)
def test_a_scan_that_has_expired_is_left_as_it_is(started_at: datetime | None, expires_at: datetime) -> None:
    """The API doesn't show it any longer, so there is nothing to wait for."""
    rows = scan_rows(1, started_at=started_at and started_at.isoformat(), completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, expires_at), rows, QueueSettings(), NOW)

    assert outcome == Complete(rows)


def test_a_running_scan_at_the_end_of_all_time_has_no_beginning() -> None:
    """Such a start can't be true: it is as if there were none."""
    rows = scan_rows(1, started_at="9999-12-31T00:00:00Z", completed_at=None)
    outcome = after_unfinished(Lease(ONE, 0, FAR_AWAY), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0, FAR_AWAY)


def test_a_running_scan_without_a_beginning_expires_too() -> None:
    """The time counts from when it was queued."""
    rows = scan_rows(1, started_at=None, completed_at=None)
    expires_at = NOW - timedelta(days=1) + RETENTION
    outcome = after_unfinished(Lease(ONE, 0, expires_at), rows, QueueSettings(), NOW)

    assert outcome == Snooze(rows, 300.0, expires_at)


def test_pair_of_every_outcome() -> None:
    """Each kind of outcome is about one pair."""
    rows = scan_rows(1)
    outcomes: list[Outcome] = [
        Complete(rows),
        Snooze(rows, 1.0, NOW),
        Retry(ONE, 1.0, 1, None, None),
        Discard(ONE, 1, "k", "m", None),
        Release(ONE),
    ]

    assert {pair_of(outcome) for outcome in outcomes} == {ONE}
