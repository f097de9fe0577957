"""How closely many workers keep the pace of one token together, measured where their requests arrive.

    make bench-pace
    .venv/bin/python benchmarks/pace_bench.py [--rate N] [--seconds N] [--workers N ...]

All numbers are shares of the rate. The machine should be quiet: a process that is held up between its turn and its
request sends late and in a heap. How long the server itself is held up is measured beside it.
"""

import argparse
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from bench_databases import NewDatabase, postgresql_databases

# From the folder of the tests' support, which bench_databases has made known.
from sandbox_thread import finished_world, noting, running_sandbox
from worker_processes import Workers, wait_until
from worker_scenes import STARTED, environment, number, queue_up

SETTLED_SECONDS = 2
"""How long all workers have been at work when the count begins."""
TICK_SECONDS = 0.005
TOO_FAST, TOO_SLOW = 1.05, 0.97


class Stalls:
    """How long this process is held up at a time, by a stopwatch that should tick every `TICK_SECONDS`."""

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
        """End the stopwatch."""
        self._ends.set()
        self._thread.join()

    def total_seconds(self, first: float, last: float) -> float:
        """Seconds lost, in a stretch of time, to stalls that are longer than a tick."""
        return sum(stalled for at, stalled in self._seen if first <= at <= last and stalled > TICK_SECONDS)


def requests_at(new_database: NewDatabase, workers_count: int, rate: int, seconds: int) -> tuple[list[float], float]:
    """When the requests arrived in so many seconds of full work, and how long the server was held up meanwhile."""
    count, asked_at = rate * seconds, list[float]()
    queued = 2 * count + 10 * rate
    with (
        new_database() as url,
        tempfile.TemporaryDirectory() as folder,
        running_sandbox(finished_world(queued), None, noting(asked_at)) as sandbox,
        closing(Workers(Path(folder))) as workers,
        closing(Stalls()) as stalls,
    ):
        queue_up(url, 1, queued)
        for _ in range(workers_count):
            workers.start_worker(environment(sandbox, url, SCAN_ETL_API__RATE=str(rate)))
        wait_until("all work", lambda: workers.all_well() and number(url, STARTED) == workers_count)
        before = len(asked_at) + SETTLED_SECONDS * rate
        wait_until("enough is asked", lambda: len(asked_at) > before + count, seconds=60 + 5 * seconds)
        counted = asked_at[before : before + count]
        workers.stop()
    return counted, stalls.total_seconds(counted[0], counted[-1])


def show(workers_count: int, rate: int, asked_at: Sequence[float], stalled_seconds: float) -> None:
    """Print the shares."""
    in_a_second = [bisect_left(asked_at, at + 1) - place for place, at in enumerate(asked_at)]
    too_fast = sum(asked > TOO_FAST * rate for asked in in_a_second) / len(in_a_second)
    seconds = asked_at[-1] - asked_at[0]
    average = (len(asked_at) - 1) / seconds / rate
    without_stalls = (len(asked_at) - 1) / (seconds - stalled_seconds) / rate
    print(
        f"{workers_count:2} workers at {rate} a second: {average:.3f} of the rate on average"
        f" ({without_stalls:.3f} without the server's stalls; at least {TOO_SLOW} is meant),"
        f" {max(in_a_second) / rate:.2f} in the fullest second, above {TOO_FAST} in {too_fast:.1%} of all seconds",
        flush=True,
    )


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the pace of many workers.")
    parser.add_argument("--rate", type=int, default=90, help="requests a second; 90 fill no window evenly")
    parser.add_argument("--seconds", type=int, default=20, help="how long to count")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="how many at a time")
    options = parser.parse_args()
    with postgresql_databases() as new_database:
        for count in options.workers:
            show(count, options.rate, *requests_at(new_database, count, options.rate, options.seconds))


if __name__ == "__main__":
    main()
