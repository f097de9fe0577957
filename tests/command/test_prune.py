"""`scan-etl prune` removes what is old, says what it did however it ended, and nothing of it comes back."""

import json
import os
import pty
import signal
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from command import Command
from counted_days import counted, counted_anew
from patience import PATIENCE_SECONDS
from sandbox_client import Time
from sandbox_thread import finished_world, running_sandbox
from scan_rows import SCAN_TABLES, document
from sqlalchemy import func, insert, select, text
from tables_of import ask, change, count
from worker_processes import wait_until

from etl.database.connection import Database
from etl.database.dialects import lock
from etl.database.schema import dead_letters, runs, scan_listings, scans
from etl.model import Pair
from etl.store import pruning
from etl.store.scans import load_scans
from etl.transform.scan import flatten

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
SCANS = ("prune", "--scans-older-than", "100d")


def old_scans(url: str, numbers: Sequence[int], *, days: int = 200) -> None:
    """So many scans with their listings, of two deployments."""
    began_at = NOW - days * DAY
    pairs = [Pair(120 + number % 2, number) for number in numbers]
    batch = [flatten(pair, document(pair, started_at=str(began_at)), began_at + DAY) for pair in pairs]
    start = {"started_at": began_at, "started_day": began_at.date(), "listed_at": began_at}
    listed = [{**pair._asdict(), **start} for pair in pairs]
    with closing(Database(url)) as database:
        database.run_here(partial(load_scans, batch=batch, run_id="run"))
    change(url, insert(scan_listings).values(listed))


def test_each_kind_goes_at_its_own_age(cli: Command, database_url: str) -> None:
    """What isn't named stays, whatever its age. A dry run says the same as is then done."""
    old_scans(database_url, range(1, 7))
    old_scans(database_url, range(7, 9), days=50)
    letters = [{"deployment_id": 120, "scan_id": number, "died_at": NOW - number * DAY} for number in range(1, 6)]
    rows = [
        {"run_id": f"{number}", "command": "run", "version": "0", "state": "ended", "exit_code": 0, "started_at": at}
        for number, at in ((days, NOW - days * DAY) for days in range(1, 6))
    ]
    change(database_url, insert(dead_letters).values(letters), insert(runs).values(rows))
    given = ("--json", "--database-url", database_url)
    everything = (*SCANS, "--dead-letters-older-than", "60h", "--runs-older-than", "36h")

    trial = cli(*everything, "--dry-run", *given).json()
    of_one = cli(*SCANS, "--deployment", "121", "--yes", *given).json()
    before = count(database_url, dead_letters), count(database_url, runs)
    done = cli(*everything, "--yes", *given).json()

    removed = {"dead_letters": 3, "scans": 6, "scan_listings": 6, "runs": 4}
    kept = dict.fromkeys(removed, 0)
    assert trial == {"dry_run": True, "removed": removed, "kept": kept, "finished": True}
    assert of_one["removed"] == {"scans": 3, "scan_listings": 3}
    assert before == (5, 5)
    assert done["removed"] == {**removed, "scans": 3, "scan_listings": 3}
    assert [count(database_url, table) for table in (dead_letters, scans, scan_listings, runs)] == [2, 2, 2, 1]


def test_dashboards_follow_at_once(cli: Command, database_url: str) -> None:
    """The counts are those of what is left, and no day of what is gone counts as lost."""
    old_scans(database_url, range(1, 20))
    old_scans(database_url, range(20, 26), days=50)
    cli("db", "refresh", "--all", "--database-url", database_url)

    cli(*SCANS, "--yes", "--database-url", database_url)

    views = "SELECT (SELECT SUM(scans) FROM bi_scan_daily), (SELECT SUM(scans) FROM bi_repository), "
    views += "(SELECT SUM(listed) FROM bi_coverage), (SELECT SUM(lost) FROM bi_coverage)"
    assert [int(found) for found in ask(database_url, text(views))[0]] == [6, 6, 6, 0]
    with closing(Database(database_url)) as database:
        assert database.run_here(counted) == database.run_here(counted_anew)


@pytest.mark.slow
def test_no_later_night_brings_a_pruned_scan_back(cli: Command, database_url: str) -> None:
    """Nights go on as before: they neither list nor fetch it, and find no gap."""
    world = finished_world(800, scans_per_day=20.0)
    assert world.opened_at
    at = Time(world.opened_at - 25 * DAY)
    with running_sandbox(world, None, at) as sandbox:
        given = sandbox.environment(SCAN_ETL_DATABASE__URL=database_url)
        first = cli("sync", "--json", environment=given).json()
        at.now = world.opened_at
        second = cli("sync", "--json", environment=given).json()
        pruned = cli("prune", "--scans-older-than", "31d", "--yes", "--json", environment=given).json()
        asked = sandbox.details_requests()
        third = cli("sync", "--json", environment=given).json()
        status = cli("status", "--json", environment=given).json()
        fetched_again = sandbox.details_requests() - asked

    gone, (covered,) = pruned["removed"]["scans"], status["coverage"]
    assert 0 < gone < first["fetched"] < first["fetched"] + second["fetched"] == count(database_url, scans) + gone
    assert (third["exit_code"], third["discovered"], fetched_again) == (0, 0, 0)
    assert covered["listed"] - covered["waiting"] == covered["stored"] == count(database_url, scans)
    assert covered["waiting"] <= 1  # the newest may still run, by the time of day
    assert status["gaps"] == []


@pytest.mark.slow
def test_a_prune_that_is_killed_goes_on_where_it_was(cli: Command, database_url: str) -> None:
    """No scan is half there, whenever it was killed; beside it scans come. In the end all counts are right."""
    numbers = 8 * pruning.PIECE
    old_scans(database_url, range(1, numbers + 1))
    given = {"SCAN_ETL_DATABASE__URL": database_url}
    with cli.start(*SCANS, "--yes", "--json", environment=given) as process:
        wait_until("some are gone", lambda: count(database_url, scans) < numbers)
        process.kill()
        process.wait()
    left = count(database_url, scans)
    halves = [ask(database_url, select(func.count(func.distinct(table.c.scan_id)))) for table in SCAN_TABLES]
    listed = count(database_url, scan_listings)
    with ThreadPoolExecutor() as pool:
        again = pool.submit(cli, *SCANS, "--yes", "--json", environment=given)
        old_scans(database_url, range(numbers + 1, numbers + 101), days=50)
        done = again.result(PATIENCE_SECONDS).json()

    assert 0 < left < numbers
    assert [found[0][0] for found in halves] == [left] * len(SCAN_TABLES)
    assert listed == left
    assert done["removed"] == {"scans": left, "scan_listings": left}
    assert count(database_url, scans) == count(database_url, scan_listings) == 100
    cli("db", "refresh", environment=given)
    with closing(Database(database_url)) as database:
        assert database.run_here(counted) == database.run_here(counted_anew)


@pytest.mark.parametrize(
    ("number", "exit_code", "database_url"),
    [
        (signal.SIGINT, 130, "sqlite"),
        (signal.SIGTERM, 143, "postgresql"),
        (signal.SIGTERM, 143, "mysql"),
    ],
    indirect=["database_url"],
)
def test_a_signal_ends_it_with_what_it_did(cli: Command, database_url: str, number: int, exit_code: int) -> None:
    """What it says is gone is gone, and no more; the same command goes on from there."""
    numbers = 8 * pruning.PIECE
    old_scans(database_url, range(1, numbers + 1))
    given = {"SCAN_ETL_DATABASE__URL": database_url}
    with cli.start(*SCANS, "--yes", "--json", environment=given) as process:
        wait_until("some are gone", lambda: count(database_url, scans) < numbers)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    left = count(database_url, scans)

    assert process.returncode == exit_code, stderr
    found = json.loads(stdout)
    assert (found["removed"]["scans"], found["finished"]) == (numbers - left, False)
    assert cli(*SCANS, "--yes", "--json", environment=given).json()["removed"]["scans"] == left > 0


@pytest.mark.slow
def test_a_stop_that_hangs_in_the_database_ends_all_the_same(cli: Command, postgres_url: str) -> None:
    """Somebody holds a row that is to go: nothing is removed then, and it says so."""
    old_scans(postgres_url, range(1, 6))
    given = {"SCAN_ETL_DATABASE__URL": postgres_url}
    is_waiting = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    with closing(Database(postgres_url)) as database, database.engine.connect() as holding:
        lock(holding, scans, [Pair(120, 2)])
        with cli.start(*SCANS, "--yes", environment=given) as process:
            wait_until("it waits", lambda: ask(postgres_url, is_waiting))
            process.send_signal(signal.SIGTERM)
            # The server ends who is silent in the midst of a transaction.
            wait_until("it ends", lambda: (holding.execute(select(1)), process.poll())[1] is not None)
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 143, stderr
    assert "the same command goes on from there" in stderr
    assert stdout.split()[-6:] == ["scans", "0", "0", "scan_listings", "0", "0"]
    assert count(postgres_url, scans) == 5


def test_who_writes_beside_it_gets_a_turn(cli: Command, sqlite_url: str) -> None:
    """On SQLite, too, where there is one writer at a time: many write while one prune goes on."""
    numbers = 6 * pruning.PIECE
    old_scans(sqlite_url, range(1, numbers + 1))
    written = 0
    with (
        closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=PATIENCE_SECONDS)) as writer,
        cli.start(*SCANS, "--yes", "--json", "--database-url", sqlite_url) as process,
    ):
        wait_until("some are gone", lambda: count(sqlite_url, scans) < numbers)
        while process.poll() is None:
            with writer:
                writer.execute("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (130, ?)", [written + 1])
            written += 1
        stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert json.loads(stdout)["removed"]["scans"] == numbers
    assert written > 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--runs-older-than TIME, --dead-letters-older-than TIME, --scans-older-than TIME"),
        (("--deployment", "120"), "--runs-older-than TIME, --dead-letters-older-than TIME, --scans-older-than TIME"),
        (("--runs-older-than", "9d", "--deployment", "120"), "a run is of no one deployment"),
        (("--scans-older-than", "30d"), "it must be 31d at least: the API still lists younger scans"),
        (("--scans-older-than", "3 years"), "is not a duration"),
        (("--runs-older-than", "400", "--yes"), "'400' has no unit: say 400d for days, or 400h for hours"),
        (("--scans-older-than", "100d"), "there is no terminal to ask on: add --yes"),
    ],
)
def test_a_call_that_is_not_clear_removes_nothing(
    cli: Command, sqlite_url: str, options: tuple[str, ...], sentence: str
) -> None:
    """It is exit 2, and the sentence says what is missing."""
    old_scans(sqlite_url, range(1, 3))

    outcome = cli("prune", *options, "--database-url", sqlite_url)

    assert (outcome.exit_code, count(sqlite_url, scans)) == (2, 2)
    assert sentence in " ".join(outcome.stderr.split())


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("n", 130, 2), ("y", 0, 0)])
def test_a_terminal_is_asked(cli: Command, sqlite_url: str, answer: str, exit_code: int, left: int) -> None:
    """It says what would go, and from where; only a yes removes it."""
    old_scans(sqlite_url, range(1, 3))
    ours, theirs = pty.openpty()
    with cli.start(*SCANS, "--database-url", sqlite_url, stdin=theirs) as process:
        os.write(ours, f"{answer}\n".encode())
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    os.close(ours)
    os.close(theirs)

    assert process.returncode == exit_code
    assert "Remove scans older than 100 d from" in stderr
    assert count(sqlite_url, scans) == left


def test_numbers_for_people(cli: Command, sqlite_url: str) -> None:
    """A table of what would go, and of what is as old and stays."""
    old_scans(sqlite_url, range(1, 4))
    change(sqlite_url, text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (121, 3)"))

    shown = cli(*SCANS, "--dry-run", "--database-url", sqlite_url).stdout

    assert [line.split() for line in shown.splitlines()] == [
        ["Would", "go"],
        ["table", "rows", "kept"],
        ["scans", "2", "1"],
        ["scan_listings", "2", "1"],
    ]
