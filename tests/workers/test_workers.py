"""Many workers on one PostgreSQL, killed, stopped, cut off and restarted: what `docs/delivery.md` promises of them.

`make soak` plays the same for as long as SCAN_ETL_SOAK_SECONDS says; SCAN_ETL_SOAK_SEED repeats the choices of a run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy, Fate, cutting_proxy
from fork_server import ForkServer
from patience import PATIENCE_SECONDS
from postgres_server import StartPostgres
from sandbox_thread import finished_world, running_sandbox
from worker_processes import STOPPED_BY_SIGTERM, Worker, Workers, children_of, wait_until
from worker_scenes import (
    DISTURBED_SECONDS,
    LEASE_SECONDS,
    POISON,
    SOAK_SECONDS,
    STARTED,
    TEST_SECONDS,
    ask,
    assert_promise_kept,
    busy_workers,
    drain,
    environment,
    fetched_twice,
    is_drained,
    number,
    queue_up,
)

from etl.database.migrate import upgrade
from etl.sandbox.faults import chosen_fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]


@pytest.fixture
def moments() -> random.Random:
    """Chance, with its seed in the output of a test that fails."""
    seed = int(os.environ.get("SCAN_ETL_SOAK_SEED", random.randrange(10_000)))
    sys.stderr.write(f"SCAN_ETL_SOAK_SEED={seed}\n")
    return random.Random(seed)


@pytest.fixture
def workers(tmp_path: Path, fork_server: ForkServer) -> Iterator[Workers]:
    """Starts workers, and kills what is left of them."""
    with closing(Workers(tmp_path, fork_server)) as workers:
        yield workers


# Disturbances


def test_workers_killed_and_stopped_at_any_moment(workers: Workers, postgres_url: str, moments: random.Random) -> None:
    """Of four workers some are killed, some stopped for longer than a lease: the promise holds."""
    with busy_workers(workers, postgres_url, 4) as (sandbox, variables):
        kill_and_stop(workers, variables, moments)
        drain(workers, postgres_url)

        assert_promise_kept(postgres_url, sandbox)
        assert fetched_twice(sandbox), "nothing was disturbed"


def kill_and_stop(workers: Workers, variables: dict[str, str], moments: random.Random) -> None:
    """In turn kill a worker and start another in its place, and stop one for more than a lease."""
    asleep: list[tuple[float, Worker]] = []
    ends_at = time.monotonic() + DISTURBED_SECONDS
    for kills in cycle((True, False)):
        time.sleep(moments.uniform(0.3, 1.0))
        assert workers.all_well()
        now = time.monotonic()
        for _, worker in [each for each in asleep if each[0] <= now]:
            worker.process.send_signal(signal.SIGCONT)
        asleep = [each for each in asleep if each[0] > now]
        awake = [worker for worker in workers.alive() if worker not in [sleeper for _, sleeper in asleep]]
        if now > ends_at and not asleep:
            return
        if now > ends_at or len(awake) < 2:
            continue
        victim = moments.choice(awake)
        if kills:
            victim.kill()
            workers.start_worker(variables)
        else:
            victim.process.send_signal(signal.SIGSTOP)
            asleep.append((now + moments.uniform(1.1, 2.0) * LEASE_SECONDS, victim))


def test_the_server_killed_and_restarted(
    workers: Workers, start_postgres: StartPostgres, moments: random.Random
) -> None:
    """The workers outlive their database, say once for each outage that it fails and is back, and lose nothing."""
    server = start_postgres(durable=True)
    upgrade(server.url())
    # A worker logs so many lines of a kind at most.
    outages = 15 if SOAK_SECONDS else 3
    with busy_workers(workers, server.url(), 2) as (sandbox, _):
        for outage in range(1, outages + 1):
            time.sleep(moments.uniform(0.2, 0.2 + DISTURBED_SECONDS / outages))
            server.kill()
            time.sleep(moments.uniform(0.1, 1.5))
            server.start()
            wait_until(f"outage {outage} is over", partial(all_said, workers, "database available again", outage))
        drain(workers, server.url())

        assert_promise_kept(server.url(), sandbox)
    assert all_said(workers, "database unavailable", outages)
    assert all_said(workers, "database available again", outages)


def all_said(workers: Workers, words: str, times: int) -> bool:
    return workers.all_well() and {len(worker.said(words)) for worker in workers.all} == {times}


def test_links_cut_stalled_and_refused(workers: Workers, start_postgres: StartPostgres, moments: random.Random) -> None:
    """Links that break in the middle of a statement, hang for longer than a lease or aren't made: the promise holds."""
    url = start_postgres().url()
    upgrade(url)
    with cutting_proxy(url) as proxy:
        queue_url = proxy.url(url)
        with busy_workers(workers, url, 2, SCAN_ETL_DATABASE__URL=queue_url) as (sandbox, _):
            for words, fate in CUTS:
                proxy.trap(words, fate)
                wait_until(f"{fate} {words!r}", lambda: workers.all_well() and proxy.sprung.is_set())
            trouble(proxy, moments)
            drain(workers, url)

            assert_promise_kept(url, sandbox)


CUTS: tuple[tuple[bytes, Fate], ...] = (
    (b"COPY scans ", "cut before"),
    (b"COPY scan_stat_items ", "cut after"),
    (b"UPDATE fetch_queue", "cut before"),
    (b"DELETE FROM fetch_queue", "cut after"),
    (b"rate_budgets", "cut after"),
    (b"COMMIT", "cut before"),
    *((b"COMMIT", "cut after"),) * 6,
)


def trouble(proxy: CuttingProxy, moments: random.Random) -> None:
    """Cut, stall and refuse in turn."""
    ends_at = time.monotonic() + DISTURBED_SECONDS
    while time.monotonic() < ends_at:
        time.sleep(moments.uniform(0.2, 1.0))
        proxy.cut()
        time.sleep(moments.uniform(0.2, 1.0))
        proxy.stall()
        time.sleep(moments.uniform(1.1, 2.0) * LEASE_SECONDS)
        proxy.resume()
        time.sleep(moments.uniform(0.2, 1.0))
        proxy.refuse()
        time.sleep(moments.uniform(0.2, 2.0))
        proxy.accept()


def test_workers_frozen_in_a_transaction_hold_nobody_up(workers: Workers, start_postgres: StartPostgres) -> None:
    """Their locks end with their transactions, which end when they stay silent; later they go on like the others."""
    url = start_postgres().url()
    upgrade(url)
    with (
        cutting_proxy(url) as proxy,
        busy_workers(workers, url, 0, seconds=3, SCAN_ETL_DATABASE__URL=proxy.url(url)) as (sandbox, variables),
    ):
        for words in (b"DELETE FROM fetch_queue", b"UPDATE rate_budgets"):
            proxy.trap(words, "stall after")
            workers.start_worker(variables)
            wait_until(f"frozen after {words!r}", lambda: workers.all_well() and proxy.sprung.is_set())
        workers.start_worker(variables | {"SCAN_ETL_DATABASE__URL": url})
        wait_until("the third has drained the queue", lambda: workers.all_well() and is_drained(url))
        proxy.resume()
        workers.stop()

        assert_promise_kept(url, sandbox)


def test_a_row_that_the_database_refuses_is_the_only_one_that_dies(workers: Workers, postgres_url: str) -> None:
    """The rest of its batch is stored."""
    ask(postgres_url, "ALTER TABLE scan_meta ADD CHECK (scan_id <> 7)")
    with running_sandbox(finished_world(60)) as sandbox:
        queue_up(postgres_url, 1, 60)
        workers.start_worker(environment(sandbox, postgres_url))
        drain(workers, postgres_url)

    assert ask(postgres_url, "SELECT scan_id, error_kind, attempts FROM dead_letters") == [(7, "refused_row", 1)]
    assert number(postgres_url, "SELECT count(*) FROM scans") == 59


CLOCK = """
import os, datetime, time_machine
shift = datetime.timedelta(seconds=float(os.environ["CLOCK_IS_FAST_SECONDS"]))
time_machine.travel(datetime.datetime.now(datetime.timezone.utc) + shift, tick=True).start()
"""
"""What a worker runs before all else, as its `sitecustomize`: all that Python reads of the time of day is shifted, in
this process alone. The monotonic clock stays as it is, as it does where a machine's clock is wrong."""


def test_workers_whose_clocks_differ(workers: Workers, postgres_url: str) -> None:
    """Leases go by the database's clock: nobody takes what is another's, and no scan is asked for twice."""
    (workers.folder / "sitecustomize.py").write_text(CLOCK)
    with busy_workers(
        workers,
        postgres_url,
        1,
        faults=POISON[:1],
        CLOCK_IS_FAST_SECONDS="-60",
        PYTHONPATH=str(workers.folder),
        SCAN_ETL_QUEUE__LEASE_SECONDS="20",
    ) as (sandbox, variables):
        workers.start_worker(variables | {"CLOCK_IS_FAST_SECONDS": "60"})
        summaries = drain(workers, postgres_url)

        assert_promise_kept(postgres_url, sandbox)
        assert fetched_twice(sandbox) == []
    assert all(summary["fetched"] for summary in summaries)
    [(spread,)] = ask(postgres_url, "SELECT max(started_at) - min(started_at) FROM runs")
    assert spread > timedelta(seconds=100), "the clocks did not differ"


# Coming and going


HAVE_STORED = "SELECT count(DISTINCT run_id) FROM scans"


def test_processes_are_a_worker_each_and_started_again(workers: Workers, start_postgres: StartPostgres) -> None:
    """With `--processes 3` three work; one that dies is replaced, with its database away too; SIGTERM ends all."""
    server = start_postgres()
    url = server.url()
    upgrade(url)
    with busy_workers(workers, url, 0, seconds=60) as (_, variables):
        supervisor = workers.start_worker(variables, "--processes", "3")
        wait_until("three work", lambda: workers.all_well() and number(url, HAVE_STORED) == 3)
        server.kill()
        os.kill(children_of(supervisor.process.pid)[0], signal.SIGKILL)
        wait_until("all wait, the new one too", lambda: workers.all_well() and len(supervisor.said(DATABASE_AWAY)) == 3)
        server.start()
        wait_until("a fourth works", lambda: workers.all_well() and number(url, HAVE_STORED) == 4)
        children = children_of(supervisor.process.pid)
        summaries = [answer for answer in workers.stop() if "run_id" in answer]

    assert len(children) == 3
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []
    assert [summary["exit_code"] for summary in summaries] == [STOPPED_BY_SIGTERM] * 3
    assert all(summary["fetched"] for summary in summaries)


DATABASE_AWAY = "database unavailable"


def test_processes_end_when_one_has_nothing_left_to_do() -> None:
    """An exit code of 0 lasts, as that of wrong settings does; here the workers only show their help."""
    code = "from etl.app.supervisor import run_processes; raise SystemExit(run_processes(2, ['worker', '--help']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "Drain the queue" in done.stdout


def test_processes_end_with_the_one_that_started_them(workers: Workers, postgres_url: str) -> None:
    """However it ends, none of them is left behind; they stop as if they had been asked to."""
    with busy_workers(workers, postgres_url, 0, seconds=30) as (_, variables):
        supervisor = workers.start_worker(variables, "--processes", "2")
        wait_until("both work", lambda: workers.all_well() and number(postgres_url, HAVE_STORED) == 2)
        children = children_of(supervisor.process.pid)
        supervisor.kill()
        wait_until("they have ended", lambda: [one for one in children if Path(f"/proc/{one}").exists()] == [])

    assert ask(postgres_url, HELD) == []
    assert ask(postgres_url, "SELECT exit_code FROM runs") == [(STOPPED_BY_SIGTERM,)] * 2


def test_a_worker_waits_for_a_database_and_an_api_that_come_later(
    workers: Workers, start_postgres: StartPostgres
) -> None:
    """It says so once of each, and then works. At its end, too, it waits a while for its database."""
    server = start_postgres()
    upgrade(server.url())
    queue_up(server.url(), 1, 20)
    server.kill()
    with running_sandbox(finished_world(20)) as sandbox:
        variables = environment(sandbox, server.url())
    port = int(sandbox.base_url.rpartition(":")[2])

    worker = workers.start_worker(variables)
    wait_until("it waits for the database", lambda: workers.all_well() and worker.said(DATABASE_AWAY))
    server.start()
    wait_until("it waits for the API", lambda: workers.all_well() and worker.said("API unavailable"))
    with running_sandbox(finished_world(20), port=port):
        wait_until("the queue is drained", lambda: workers.all_well() and is_drained(server.url()))
        server.kill()
        worker.process.terminate()
        wait_until("it waits again", lambda: len(worker.said(DATABASE_AWAY)) == 2)
        server.start()
        output, _ = worker.process.communicate(timeout=PATIENCE_SECONDS)

    assert json.loads(output)["fetched"] == 20
    assert worker.process.returncode == STOPPED_BY_SIGTERM
    told = ("database available again", "API unavailable", "API available again")
    assert [len(worker.said(words)) for words in told] == [2, 1, 1]
    assert ask(server.url(), "SELECT exit_code, fetched FROM runs") == [(STOPPED_BY_SIGTERM, 20)]


def test_a_worker_that_waits_for_its_database_stops_when_asked(workers: Workers, start_postgres: StartPostgres) -> None:
    """Nothing has begun that would have to be finished."""
    server = start_postgres()
    server.kill()
    with running_sandbox(finished_world(1)) as sandbox:
        worker = workers.start_worker(environment(sandbox, server.url()))
        wait_until("it waits", lambda: workers.all_well() and worker.said(DATABASE_AWAY))
        [answer] = workers.stop()

    assert answer["exit_code"] == STOPPED_BY_SIGTERM


def test_an_idle_worker_takes_what_a_plain_insert_adds(workers: Workers, postgres_url: str) -> None:
    """Within two seconds, though nobody has told it; and a stop doesn't find it asleep."""
    with running_sandbox(finished_world(5)) as sandbox:
        worker = workers.start_worker(environment(sandbox, postgres_url))
        wait_until("it is there", lambda: workers.all_well() and number(postgres_url, STARTED))
        taken_after = []
        for scan_id in range(1, 6):
            [(added_at,)] = ask(postgres_url, ADD, scan_id)
            wait_until("it is stored", lambda: is_drained(postgres_url))
            [(fetched_at,)] = ask(postgres_url, "SELECT fetched_at FROM scans WHERE scan_id = %s", scan_id)
            taken_after.append(fetched_at - added_at)
        [summary] = workers.stop()

    # The machine may be busy for one of them; a worker that looks less often is late more often than not.
    assert sorted(taken_after)[3] < timedelta(seconds=2), taken_after
    assert (summary["fetched"], summary["remaining"]) == (5, 0)
    assert worker.said("stopping")


ADD = "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, %s) RETURNING enqueued_at"


def test_a_stop_in_the_middle_of_work_gives_all_leases_back(workers: Workers, postgres_url: str) -> None:
    """Whatever is left is due at once, or after the wait that its own failure has earned it."""
    with busy_workers(workers, postgres_url, 2, seconds=30) as (sandbox, _):
        wait_until("all have stored something", lambda: workers.all_well() and number(postgres_url, HAVE_STORED) == 2)
        summaries = workers.stop()
        left = ask(postgres_url, "SELECT scan_id, attempts FROM fetch_queue")
        held = ask(postgres_url, HELD)
        blameless = {
            scan_id for scan_id, attempts in left if attempts and chosen_fault(0, POISON, "details", scan_id, 1) is None
        }

        assert held == []
        assert blameless == set()
        assert len(left) + sum(one["fetched"] + one["dead"] for one in summaries) == sandbox.sandbox.world.scans


HELD = "SELECT * FROM fetch_queue WHERE lease_token IS NOT NULL OR (due_at > now() AND attempts = 0)"


def test_a_run_of_a_file_beside_workers_on_the_same_queue(workers: Workers, postgres_url: str) -> None:
    """`run FILE` ends when its own pairs are done, by itself or by the workers that had them, and leaves the rest."""
    with busy_workers(workers, postgres_url, 2, seconds=4) as (sandbox, variables):
        mine = list(range(1, sandbox.sandbox.world.scans, 4))
        pairs = "".join(f"120 {scan_id}\n" for scan_id in mine)
        outcome = workers("run", "-", "--json", stdin=pairs, environment=variables)
        left = ask(postgres_url, "SELECT scan_id FROM fetch_queue WHERE scan_id = ANY(%s)", mine)
        drain(workers, postgres_url)

        assert_promise_kept(postgres_url, sandbox)
    assert outcome.exit_code in (0, 1), outcome
    assert outcome.json()["remaining"] == len(left) == 0
