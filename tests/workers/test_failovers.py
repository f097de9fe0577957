"""Servers that may not be written to for a while, and others that take over: workers and runs wait, and go on."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from fork_server import ForkServer
from postgres_server import PostgresServer, StartPostgres
from sqlalchemy.engine import make_url
from worker_processes import Workers, wait_until
from worker_scenes import assert_promise_kept, busy_workers, drain

from etl.database.migrate import upgrade

pytestmark = pytest.mark.slow

READ_ONLY_SECONDS = 6
FILE = "all.txt"


@pytest.fixture
def workers(tmp_path: Path, fork_server: ForkServer) -> Iterator[Workers]:
    with closing(Workers(tmp_path, fork_server)) as workers:
        yield workers


def alter(server: PostgresServer, statement: LiteralString) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(statement)
        connection.execute("SELECT pg_reload_conf()")


def test_a_server_that_may_not_be_written_to_ends_nobody(workers: Workers, start_postgres: StartPostgres) -> None:
    """Workers wait for as long as it takes, and runs for as long as they are patient: also while they read a file."""
    server = start_postgres()
    upgrade(server.url())
    with busy_workers(workers, server.url(), 2) as (sandbox, variables):
        (workers.folder / FILE).write_text(sandbox.pairs_text() * 300)
        with workers.start("run", FILE, "--json", environment=variables) as run:
            wait_until("the file is being read", lambda: is_staging(server))
            alter(server, "ALTER SYSTEM SET default_transaction_read_only = on")
            time.sleep(READ_ONLY_SECONDS)
            assert workers.all_well()
            alter(server, "ALTER SYSTEM RESET default_transaction_read_only")
            output, log = run.communicate()
        drain(workers, server.url())

        assert run.returncode in (0, 1), log
        assert "database unavailable" in log
        assert json.loads(output)["remaining"] == 0
        assert_promise_kept(server.url(), sandbox)


def is_staging(server: PostgresServer) -> bool:
    with psycopg.connect(server.url()) as connection:
        return connection.execute("SELECT 1 FROM staged_pairs LIMIT 1").fetchone() is not None


def test_a_standby_takes_over(workers: Workers, start_postgres: StartPostgres) -> None:
    """Whoever names both servers goes on with the one that is written to."""
    primary, standby = start_postgres(), start_postgres()
    upgrade(primary.url())
    standby.follow(primary)
    first, second = make_url(primary.url()), make_url(standby.url())
    url = (
        f"postgresql://{first.username}:{first.password}@127.0.0.1:{first.port},127.0.0.1:{second.port}/postgres"
        "?target_session_attrs=read-write"
    )
    with busy_workers(workers, url, 2) as (sandbox, _):
        primary.kill()
        wait_until("the workers miss it", lambda: all(one.said("database unavailable") for one in workers.alive()))
        standby.promote()
        drain(workers, url)

        assert_promise_kept(url, sandbox)
