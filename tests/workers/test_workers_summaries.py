"""What is counted for dashboards stays right while many write and many count, and some are killed."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from threading import Event

import pytest
from command import Command
from counted_days import count_all, counted, counted_anew
from scan_rows import BEGAN_AT, scan_rows

from etl.database.connection import Database
from etl.store.forget import forget
from etl.store.scans import load_scans
from etl.transform.person import Person

WRITERS, BATCHES, KILLS = 3, 40, 6
MINUTES = 60 * 24 * 30
"""Fetched so long after the first scan began, so that each start is believed."""


def write(url: str, writer: int, stop: Event) -> int:
    """Load scans of ten days again and again, each time with other ends, names and findings. Returns how often. Each
    writer has scans of its own, as by a lease."""
    chance, count = random.Random(writer), 0
    with closing(Database(url)) as database:
        while count < BATCHES or not stop.is_set():
            batch = [
                scan_rows(
                    chance.randrange(1, 70) * WRITERS + writer,
                    minutes=MINUTES + count,
                    repository_id=chance.choice([7, 8, None]),
                    started_at=str(BEGAN_AT + timedelta(hours=chance.randrange(240))),
                    exit_code=chance.randrange(3),
                    meta={"repository": f"acme/{chance.randrange(3)}", "commit_author_username": "ann"},
                    stats={"findings": chance.randrange(9)},
                )
                for _ in range(20)
            ]
            database.run_here(partial(load_scans, batch=batch, run_id="run"))
            count += 1
    return count


@pytest.mark.slow
def test_counts_are_exact_after_kills_and_races(cli: Command, database_url: str) -> None:
    """Writers go on, some count, others are killed in the middle of it, then a person is forgotten: in the end every
    count is the one that counting everything gives."""
    stop = Event()
    variables = {"SCAN_ETL_DATABASE__URL": database_url}
    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, database_url, number, stop) for number in range(WRITERS)]
        try:
            for delay in range(KILLS):
                with cli.start("db", "refresh", "--all", environment=variables) as process:
                    stop.wait(delay * 0.1)  # it is at work by then, or has ended
                    process.kill()
                assert cli("db", "refresh", environment=variables).exit_code == 0
        finally:
            stop.set()
        assert all(each.result() >= BATCHES for each in writing)
    with closing(Database(database_url)) as database:
        forget(database, Person("ann", ""), dry_run=False)
        database.run_here(count_all)
        by_marks, anew = database.run_here(counted), database.run_here(counted_anew)

    assert by_marks == anew
    assert by_marks["scan_days"]
