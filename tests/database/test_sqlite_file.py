"""SQLite's file: read without its write lock, made for its owner alone, and missed when it is gone."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from command import BARE_ENVIRONMENT, Command
from fork_server import ForkServer
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import Connection, text
from worker_processes import wait_until

from etl.database.connection import Database
from etl.database.migrate import upgrade
from etl.database.schema import HEAD
from etl.errors import DatabaseError

READING = [
    ("status", "--json"),
    ("status", "--by-repository"),
    ("failures", "list"),
    ("runs",),
    ("drift",),
    ("plan",),
    ("plan", "pairs.txt"),
    ("db", "current"),
    ("db", "check"),
    ("forget", "--username", "ann", "--dry-run"),
    ("prune", "--scans-older-than", "31d", "--dry-run"),
    ("export", "bi_scan"),
]
TRIED = text("SELECT count(*) FROM fetch_queue")
QUEUED = text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Another program holds the write lock, with a row that it hasn't committed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute(QUEUED.text)
        yield


@pytest.fixture
def path(cli: Command, sqlite_url: str) -> Path:
    """The file of a database at head, where commands look for it."""
    (cli.folder / "pairs.txt").write_text("120 1\n120 2\n")
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_waits_for_no_writer(cli: Command, path: Path, words: tuple[str, ...]) -> None:
    """What the writer hasn't committed isn't seen."""
    with writing(path):
        outcome = cli(*words)

    assert outcome.exit_code == 0, outcome
    if words == ("status", "--json"):
        assert outcome.json()["queue"] == []


@pytest.fixture(scope="module")
def bound_fork_server() -> Iterator[ForkServer]:
    """Its commands are bound by the permissions of files, as root isn't."""
    powers = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--") if os.geteuid() == 0 else ()
    with closing(ForkServer(BARE_ENVIRONMENT, powers)) as server:
        yield server


@pytest.mark.parametrize("is_open", [False, True])
def test_reading_works_where_nothing_can_be_written(
    bound_fork_server: ForkServer, tmp_path: Path, path: Path, is_open: bool
) -> None:
    """In a folder and a file without the right to write, whether a writer has it open or not."""
    bound = Command(tmp_path, bound_fork_server)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(QUEUED.text)
        if not is_open:
            other.close()
        for file in path.parent.glob("scans.db*"):
            file.chmod(0o444)
        path.parent.chmod(0o555)
        try:
            outcomes = [bound(*words) for words in READING]
            shown = bound("failures", "show", "120/1")
            enqueued = bound("enqueue", "-", stdin="120 5")
        finally:
            path.parent.chmod(0o755)

    assert [outcome.exit_code for outcome in outcomes] == [0] * len(READING), outcomes
    assert [row["due"] for row in outcomes[0].json()["queue"]] == [1]
    assert outcomes[7].stdout == f"{HEAD}\n"
    assert (shown.exit_code, enqueued.exit_code) == (2, 5)
    assert "120/1 is no dead letter" in shown.stderr


def test_a_reader_writes_nothing(sqlite_url: str) -> None:
    """Also where it might."""
    with closing(Database(sqlite_url, reads_only=True)) as database:
        database.run_here(partial(Connection.execute, statement=TRIED))
        with pytest.raises(DatabaseError, match="readonly"):
            database.run_here(partial(Connection.execute, statement=QUEUED))

    assert [file.name for file in Path(sqlite_url.removeprefix("sqlite:///")).parent.glob("*.db*")] == ["scans.db"]


def delete(path: Path) -> None:
    for file in path.parent.glob("scans.db*"):
        file.unlink()


def replace(path: Path) -> None:
    """By an older copy of it, say."""
    upgrade(f"sqlite:///{path.with_name('other.db')}")
    delete(path)
    shutil.move(path.with_name("other.db"), path)


@pytest.mark.parametrize("change", [delete, replace])
def test_nothing_is_written_into_a_file_that_is_gone(sqlite_url: str, change: partial[None]) -> None:
    """Neither by the next transaction, nor by one that had begun."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(Database(sqlite_url)) as database:
        database.run_here(partial(Connection.execute, statement=QUEUED))

        def work(connection: Connection) -> None:
            connection.execute(text("DELETE FROM fetch_queue"))
            change(path)

        for each in (work, partial(Connection.execute, statement=TRIED)):
            with pytest.raises(DatabaseError, match="was deleted or replaced while it was open"):
                database.run_here(each)


@pytest.mark.parametrize("change", [delete, replace])
def test_a_run_whose_file_is_gone_is_exit_5(cli: Command, path: Path, change: partial[None]) -> None:
    """It claims no more rows: the error is its summary."""
    with running_sandbox(finished_world(400)) as sandbox:
        given = sandbox.environment(SCAN_ETL_API__RATE="100", SCAN_ETL_DATABASE__FLUSH_SECONDS="0.1")
        (cli.folder / "pairs.txt").write_text(sandbox.pairs_text())
        with cli.start("run", "pairs.txt", "--json", environment=given) as run:
            wait_until("some are fetched", lambda: sandbox.details_requests() > 50)
            change(path)
            output, log = run.communicate(timeout=100)

    assert run.returncode == 5, log
    assert json.loads(output)["exit_code"] == 5
    assert set(json.loads(output)) == {"error", "exit_code"}
    assert "was deleted or replaced while it was open" in log


def test_a_new_file_is_for_its_owner_alone(cli: Command) -> None:
    """It holds names and mail addresses; so does what SQLite puts beside it."""
    mask = os.umask(0o022)
    try:
        with closing(Database(f"sqlite:///{cli.folder / 'scans.db'}")) as database:
            database.run_here(lambda connection: connection.execute(text("CREATE TABLE made (a INTEGER)")))
            modes = {file.name: file.stat().st_mode & 0o777 for file in cli.folder.glob("scans.db*")}
        assert cli("enqueue", "-", "--database-url", "sqlite:///second.db", stdin="120 1").exit_code == 0
    finally:
        os.umask(mask)

    assert modes == {"scans.db": 0o600, "scans.db-wal": 0o600, "scans.db-shm": 0o600}
    assert (cli.folder / "second.db").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_told_with_the_file_and_what_to_do(sqlite_url: str, path: Path) -> None:
    """SQLite itself keeps the file from growing, as a full disk does."""

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.exec_driver_sql("CREATE TABLE filling AS SELECT zeroblob(10000000)")

    with closing(Database(sqlite_url)) as database, pytest.raises(DatabaseError) as caught:
        database.run_here(fill)

    assert str(caught.value) == (
        f"database {path}: database or disk is full: make room and start it again, what was stored is safe"
    )
