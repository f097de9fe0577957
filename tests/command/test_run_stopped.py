"""Signals at any moment: what a command leaves behind, and how it says so."""

import json
import random
import signal
import socket
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest
from command import Command
from cutting_proxy import cutting_proxy
from patience import PATIENCE_SECONDS
from sandbox_thread import TOKEN, finished_world, running_sandbox
from scan_rows import rows_by_table
from sqlalchemy import select, update
from stored_rows import environment, loaded, rows
from tables_of import ask, change
from worker_processes import open_files, wait_until

from etl.database.schema import (
    dead_letters,
    fetch_queue,
    runs,
    scans,
    workers,
)
from etl.model import Pair
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault
from etl.transform.scan import flatten

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


CTRL_C_AT_THE_IMPORT_OF_CONFIG = """
import os, signal, sys
class Person:
    def find_spec(self, name, path=None, target=None):
        if name == "etl.config.settings":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Person())
"""


def test_ctrl_c_while_a_command_starts_ends_it_quietly(cli: Command) -> None:
    """Half a second of a start is imports, and whoever sees a slip of the finger is quick: exit 130, no traceback."""
    (cli.folder / "sitecustomize.py").write_text(CTRL_C_AT_THE_IMPORT_OF_CONFIG)

    outcome = cli("status", environment={"PYTHONPATH": str(cli.folder)})

    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("number", "exit_code", "database_url"),
    [
        (signal.SIGINT, 130, "sqlite"),
        (signal.SIGTERM, 143, "sqlite"),
        (signal.SIGTERM, 143, "postgresql"),
        (signal.SIGTERM, 143, "mysql"),
    ],
    indirect=["database_url"],
)
def test_a_signal_stops_a_run_cleanly(cli: Command, database_url: str, number: int, exit_code: int) -> None:
    """What is in flight finishes, leases are given back, the summary is printed; another run does the rest."""
    with running_sandbox(finished_world(400), Behaviour(latency_seconds=0.05)) as sandbox:
        variables = environment(sandbox, database_url)
        pairs = cli.folder / "pairs.txt"
        pairs.write_text(sandbox.pairs_text())
        with cli.start("run", pairs, "--json", environment=variables) as process:
            while sandbox.details_requests() < 40:
                time.sleep(0.01)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        left = rows(database_url, fetch_queue)
        rest = cli("run", "--json", environment=variables)

    summary = json.loads(stdout)
    assert (process.returncode, summary["exit_code"]) == (exit_code, exit_code), stderr
    assert 40 <= summary["fetched"] < 400
    assert summary["remaining"] == len(left) == 400 - summary["fetched"]
    assert {row[5] for row in left} == {None}
    assert {row[4] for row in left} == {0}
    assert rest.json()["fetched"] == len(left)


def test_kill_9_at_any_moment_and_the_same_command_again_loses_and_doubles_nothing(
    cli: Command, database_url: str
) -> None:
    """Killed at random moments and started again, a run ends with the rows of an undisturbed one."""
    seed = random.randrange(10_000)
    moments = random.Random(seed)
    behaviour = Behaviour(latency_seconds=0.01, faults=(Fault("status-500", 0.05), Fault("status-404", 0.02, times=0)))
    with running_sandbox(finished_world(600), behaviour) as sandbox:
        pairs = cli.folder / "pairs.txt"
        pairs.write_text(sandbox.pairs_text())
        variables = environment(
            sandbox, database_url, SCAN_ETL_QUEUE__LEASE_SECONDS="1", SCAN_ETL_DATABASE__BATCH_SIZE="20"
        )
        for _ in range(8):
            with cli.start("run", pairs, environment=variables) as process:
                time.sleep(moments.uniform(0.1, 1.5))
                process.kill()
        # What is killed counts as at work for another minute, which the last run would wait for.
        change(database_url, update(workers).values(seen_at=LONG_AGO), update(runs).values(started_at=LONG_AGO))
        last = cli("run", pairs, "--json", environment=variables)
        stored = rows(database_url, scans)
        dead = set(range(1, 601)) - {row[1] for row in stored}
        truth = [
            flatten(Pair(120, number), sandbox.sandbox.truth(number), datetime.now(UTC))
            for number in sorted(set(range(1, 601)) - dead)
        ]

    assert last.exit_code == (1 if dead else 0), (seed, last)
    assert {row[0] for row in ask(database_url, select(runs.c.state).where(runs.c.exit_code.is_(None)))} <= {"lost"}
    assert rows(database_url, fetch_queue) == []
    assert {row[1] for row in rows(database_url, dead_letters)} == dead
    assert 0 < len(dead) < 40
    assert loaded(database_url) == rows_by_table(truth)


@pytest.mark.slow  # it waits for as long as a connection may take
def test_a_port_that_never_says_hello_is_exit_5_and_a_second_ctrl_c_ends_the_wait(cli: Command) -> None:
    """Somebody else's server may wait for us to speak first, which MySQL's doesn't."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mysql://someone@127.0.0.1:{silent.getsockname()[1]}/x"
        variables = {"SEMGREP_APP_TOKEN": TOKEN, "SCAN_ETL_DATABASE__URL": url}
        outcome = cli("db", "current", environment=variables)
        with cli.start("run", environment=variables) as process:
            opened = silent.accept(), silent.accept()  # the first is that of the other command
            while process.poll() is None:  # two that come at once are one for the system
                process.send_signal(signal.SIGINT)
                time.sleep(0.01)
        for connection, _ in opened:
            connection.close()

    assert outcome.exit_code == 5
    assert "timed out" in outcome.stderr
    assert process.returncode == 130


@pytest.mark.parametrize("arguments", [("run", "-"), ("sync",)])
def test_a_stop_while_the_database_swallows_everything_takes_ten_seconds(
    cli: Command, postgres_url: str, arguments: tuple[str, ...]
) -> None:
    """It is told at once, and the summary comes with what is known: a server behind a dead link never says no."""
    with (
        running_sandbox(finished_world(4_000), Behaviour(latency_seconds=0.01)) as sandbox,
        cutting_proxy(postgres_url) as proxy,
    ):
        variables = environment(sandbox, proxy.url(postgres_url))
        pairs = cli.folder / "pairs.txt"
        pairs.write_text(sandbox.pairs_text())
        words = [pairs if word == "-" else word for word in arguments]
        with cli.start(*words, "--json", environment=variables) as process:
            while sandbox.details_requests() < 100:
                time.sleep(0.01)
            proxy.stall()
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while "stopping" not in process.stderr.readline():
                assert process.poll() is None
            stdout, stderr = process.communicate(timeout=30)

    summary = json.loads(stdout)
    assert (process.returncode, summary["exit_code"]) == (143, 143), stderr
    assert summary["requests"] >= 100


def test_ctrl_c_ends_a_command_that_waits_for_sqlite(cli: Command, sqlite_url: str) -> None:
    """Another program holds the write lock, and the person at the terminal doesn't want to wait for it."""
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        (cli.folder / "pairs.txt").write_text("120 1\n")
        with cli.start("enqueue", "pairs.txt", "--json", "--database-url", sqlite_url) as process:
            wait_until("it has the file open", lambda: path in open_files(process.pid))
            while process.poll() is None:
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, json.loads(stdout)) == (130, {"error": "interrupted", "exit_code": 130})
