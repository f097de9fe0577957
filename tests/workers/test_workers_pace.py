"""The pace of a token, as the server sees it where the requests of many workers arrive."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fork_server import ForkServer
from patience import PATIENCE_SECONDS
from sandbox_thread import finished_world, noting, running_sandbox
from worker_processes import Workers, wait_until
from worker_scenes import SOAK_SECONDS, STARTED, TEST_SECONDS, ask, environment, number, queue_up

from etl.sandbox import Behaviour
from etl.sandbox.world import Deployment, Token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]


@pytest.fixture
def workers(tmp_path: Path, fork_server: ForkServer) -> Iterator[Workers]:
    """Starts workers, and kills what is left of them."""
    with closing(Workers(tmp_path, fork_server)) as workers:
        yield workers


RATE = 90


def test_four_workers_keep_one_pace(workers: Workers, postgres_url: str) -> None:
    """All of them ask, and together not much faster than one may. `benchmarks/pace_bench.py` measures it closely."""
    count, asked_at = RATE * max(5, round(SOAK_SECONDS)), list[float]()
    with running_sandbox(finished_world(3 * count), None, noting(asked_at)) as sandbox:
        queue_up(postgres_url, 1, 3 * count)
        for _ in range(4):
            workers.start_worker(environment(sandbox, postgres_url, SCAN_ETL_API__RATE=str(RATE)))
        wait_until("all work", lambda: workers.all_well() and number(postgres_url, STARTED) == 4)
        before = len(asked_at)
        wait_until(
            "enough is asked", lambda: len(asked_at) > before + count, seconds=PATIENCE_SECONDS + 5 * count / RATE
        )
        counted = asked_at[before : before + count]
        summaries = workers.stop()

    assert (count - 1) / (counted[-1] - counted[0]) <= 1.5 * RATE
    assert all(summary["fetched"] for summary in summaries)


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
        wait_until("the first is refused", lambda: workers.all_well() and worker.said("rate limited"))
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
