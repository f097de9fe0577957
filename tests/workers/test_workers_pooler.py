"""Many processes behind a pooler of PostgreSQL, which lends a session for one transaction at a time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import psycopg
import pytest
from command import Command
from fork_server import ForkServer
from pgbouncer_server import pooled
from sandbox_thread import TOKEN
from worker_processes import Workers, wait_until
from worker_scenes import ask, assert_promise_kept, busy_workers, number

pytestmark = [pytest.mark.slow, pytest.mark.pgbouncer]

PAIRS, SHARED = 100_000, 40_000
OTHER = 150
"""A deployment whose token is refused: its pairs stay in the queue."""
LEFT_IN_THE_SESSION = """
SELECT name FROM pg_settings WHERE source = 'session'
  AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'standard_conforming_strings', 'TimeZone')
UNION ALL SELECT name FROM pg_prepared_statements
UNION ALL SELECT name FROM pg_cursors WHERE is_holdable
UNION ALL SELECT relname FROM pg_class WHERE relpersistence = 't'
UNION ALL SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT channel FROM pg_listening_channels() AS of(channel)
"""
"""But for the five that PgBouncer itself sets to what each client wants."""


@pytest.fixture
def workers(tmp_path: Path, fork_server: ForkServer) -> Iterator[Workers]:
    with closing(Workers(tmp_path, fork_server)) as workers:
        yield workers


def pairs_file(folder: Path, first: int) -> Path:
    path = folder / f"from-{first}.txt"
    path.write_text("".join(f"{OTHER} {number}\n" for number in range(first, first + PAIRS)))
    return path


def found_by_a_stranger(url: str, over: Event) -> set[str]:
    """What others have left in the sessions that a client of the same pool is lent, one after the other."""
    found: set[str] = set()
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as stranger:
        while not over.wait(0.01):
            found |= {name for (name,) in stranger.execute(LEFT_IN_THE_SESSION)}
    return found


@pytest.mark.parametrize("pool_size", [1, 2])
def test_files_workers_and_a_stranger_share_a_pool(workers: Workers, postgres_url: str, pool_size: int) -> None:
    """Each pair is queued once and loaded once, and who comes next finds nothing of ours in a session."""
    enqueue = Command(workers.folder)
    over = Event()
    files = [pairs_file(workers.folder, first) for first in (1, 1 + PAIRS - SHARED)]
    with (
        pooled(postgres_url, pool_size) as url,
        busy_workers(workers, url, 4, SEMGREP_APP_TOKEN="refused", SEMGREP_APP_TOKEN__120=TOKEN) as (
            sandbox,
            variables,
        ),
        ThreadPoolExecutor() as pool,
    ):
        strange = pool.submit(found_by_a_stranger, url, over)
        results = list(pool.map(lambda file: enqueue.started("enqueue", file, environment=variables), files))
        wait_until("the rest is done", lambda: workers.all_well() and not left_of_120(url))
        over.set()

        assert [result.exit_code for result in results] == [0, 0], results
        assert strange.result() == set()
        assert number(url, "SELECT count(*) FROM fetch_queue") == 2 * PAIRS - SHARED
        assert ask(url, "SELECT 1 FROM staged_pairs") + ask(url, "SELECT 1 FROM staged_pieces") == []
        workers.stop()
        ask(url, "DELETE FROM fetch_queue")
        assert_promise_kept(url, sandbox)


def left_of_120(url: str) -> int:
    return number(url, "SELECT count(*) FROM fetch_queue WHERE deployment_id = 120")
