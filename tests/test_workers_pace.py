"""The pace of one token, measured where the requests of many workers arrive."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sandbox_thread import finished_world, running_sandbox
from worker_processes import Workers, wait_until
from worker_scenes import SOAK_SECONDS, STARTED, TEST_SECONDS, ask, environment, number, queue_up

from etl.sandbox import Behaviour
from etl.sandbox.world import Deployment, Token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Starts workers, and kills what is left of them."""
    with closing(Workers(tmp_path)) as workers:
        yield workers


RATE = 90
"""A window of the pace holds no whole number of requests at this rate."""
TICK_SECONDS = 0.005


def test_four_workers_keep_one_pace(workers: Workers, postgres_url: str) -> None:
    """Together they ask no faster than one may, and hardly slower."""
    count, asked_at = RATE * max(8, round(SOAK_SECONDS)), list[float]()
    with running_sandbox(finished_world(3 * count), None, noting(asked_at)) as sandbox, closing(Stalls()) as stalls:
        queue_up(postgres_url, 1, 3 * count)
        for _ in range(4):
            workers.start_worker(environment(sandbox, postgres_url, SCAN_ETL_API__RATE=str(RATE)))
        wait_until("all work", lambda: workers.all_well() and number(postgres_url, STARTED) == 4)
        before = len(asked_at) + 2 * RATE
        wait_until("enough is asked", lambda: len(asked_at) > before + count, seconds=60 + 5 * count / RATE)
        counted = asked_at[before : before + count]
        workers.stop()
    in_a_second = [bisect_left(counted, at + 1) - place for place, at in enumerate(counted)]
    too_many = [asked for asked in in_a_second if asked > 1.05 * RATE]
    seconds = counted[-1] - counted[0]

    # A busy machine holds a process back now and then, between its turn and its request. That averages out.
    assert len(too_many) <= 0.05 * count
    assert max(in_a_second) <= (1.2 + stalls.longest(counted[0], counted[-1])) * RATE
    assert (count - 1) / seconds <= 1.01 * RATE
    assert (count - 1) / (seconds - stalls.total(counted[0], counted[-1])) >= 0.97 * RATE


class Stalls:
    """How long this process is held up at a time, by a stopwatch that should tick every `TICK_SECONDS`.

    Requests that come meanwhile are seen late and in a heap, and that isn't the workers' doing.
    """

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._seen: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ends.wait(TICK_SECONDS):
            now = time.monotonic()
            self._seen.append((now, now - before - TICK_SECONDS))
            before = now

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def longest(self, first: float, last: float) -> float:
        """The longest stall, in seconds, that reaches into a stretch of time."""
        return max(self._between(first, last))

    def total(self, first: float, last: float) -> float:
        """Seconds lost to stalls that are longer than a tick."""
        return sum(stalled for stalled in self._between(first, last) if stalled > TICK_SECONDS)

    def _between(self, first: float, last: float) -> list[float]:
        return [stalled for ended_at, stalled in self._seen if first <= ended_at and ended_at - stalled <= last]


def noting(instants: list[float]) -> Callable[[], datetime]:
    """A clock for the sandbox, which looks at it once a request: so `instants` says when each came."""

    def now() -> datetime:
        instants.append(time.monotonic())
        return datetime.now(UTC)

    return now


def test_the_refusal_of_one_holds_all_back(workers: Workers, postgres_url: str) -> None:
    """A 429 with Retry-After silences all workers within a second, and spends nobody's attempt.

    Each worker has asked once about its token.
    """
    burst, asked_at = 200, list[float]()
    behaviour = Behaviour(rate_limit=0.01, burst=burst)
    with running_sandbox(finished_world(500), behaviour, noting(asked_at)) as sandbox:
        for _ in range(3):
            workers.start_worker(environment(sandbox, postgres_url, SCAN_ETL_API__RATE=str(RATE)))
        wait_until("all wait", lambda: workers.all_well() and number(postgres_url, STARTED) == 3)
        queue_up(postgres_url, 1, 500)
        wait_until("somebody is refused", lambda: len(asked_at) > burst)
        refused_at = asked_at[burst]
        wait_until("silence has been long enough", lambda: time.monotonic() > refused_at + 4)
        summaries = workers.stop()

    assert [at - refused_at for at in asked_at if at > refused_at + 1] == []
    assert sum(summary["rate_limited"] for summary in summaries) == len(asked_at) - burst
    assert sorted(summary["fetched"] > 0 for summary in summaries) == [True] * 3
    assert ask(postgres_url, "SELECT count(*), sum(attempts), count(lease_token) FROM fetch_queue") == [(303, 0, 0)]


def test_one_deployment_held_back_holds_no_other(workers: Workers, postgres_url: str) -> None:
    """While the API has one token wait for minutes, all that is queued for the other one is fetched."""
    deployments = (Deployment(120, tokens=(Token("a"),)), Deployment(121, slug="other", tokens=(Token("b"),)))
    refusing = Behaviour(rate_limit=0.001, burst=100)
    with running_sandbox(finished_world(400, deployments=deployments), refusing) as sandbox:
        tokens = {"SEMGREP_APP_TOKEN__120": "a", "SEMGREP_APP_TOKEN__121": "b"}
        worker = workers.start_worker(environment(sandbox, postgres_url, SCAN_ETL_API__RATE="1000", **tokens))
        queue_of(postgres_url, 120, 200)
        wait_until("the first is refused", lambda: workers.all_well() and worker.said("the API refuses"))
        queue_of(postgres_url, 121, 80)
        wait_until("the second is done", lambda: workers.all_well() and not queued(postgres_url, 121))
        workers.stop()

    assert [queued(postgres_url, 120), number(postgres_url, LOADED_OF_SECOND)] == [200 - 99, 80]
    assert ask(postgres_url, "SELECT sum(attempts), count(lease_token) FROM fetch_queue") == [(0, 0)]


LOADED_OF_SECOND = "SELECT count(*) FROM scans WHERE deployment_id = 121"


def queue_of(url: str, deployment_id: int, count: int) -> None:
    """Queue scans of one of two deployments, which have every other number."""
    ask(url, EVERY_OTHER, deployment_id, 1 + deployment_id % 2, 2 * count)


EVERY_OTHER = "INSERT INTO fetch_queue (deployment_id, scan_id) SELECT %s, generate_series(%s::bigint, %s, 2)"


def queued(url: str, deployment_id: int) -> int:
    [(count,)] = ask(url, "SELECT count(*) FROM fetch_queue WHERE deployment_id = %s", deployment_id)
    return int(count)
