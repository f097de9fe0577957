"""`scan-etl queue drop` and `failures drop` take out what was chosen, once somebody has said so."""

import os
import pty
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sqlalchemy import Connection, insert, select

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
QUEUED: tuple[dict[str, Any], ...] = (
    {"error_kind": "timeout", "enqueued_at": NOW - 10 * HOUR},
    {"error_kind": "timeout"},
    {"lease_token": "of a worker", "due_at": NOW + HOUR, "enqueued_at": NOW - 10 * HOUR},
    {"lease_token": "of a dead worker", "due_at": NOW - HOUR},
    {"deployment_id": 121, "enqueued_at": NOW - 10 * HOUR},
)


def fill(url: str, table: Any, *rows: Mapping[str, Any]) -> None:
    def work(connection: Connection) -> None:
        for scan_id, row in enumerate(rows, 1):
            connection.execute(insert(table).values(**{"deployment_id": 120, "scan_id": scan_id, **row}))

    with closing(Database(url)) as database:
        database.run_here(work)


def scan_ids(url: str, table: Any) -> set[int]:
    with closing(Database(url)) as database:
        return database.run_here(lambda connection: set(connection.execute(select(table.c.scan_id)).scalars()))


@pytest.mark.parametrize(
    ("options", "dropped", "in_work"),
    [
        (("--all",), {1, 2, 4, 5}, 1),
        (("--deployment", "121"), {5}, 0),
        (("--kind", "timeout"), {1, 2}, 0),
        (("--older-than", "5h"), {1, 5}, 1),
        (("--kind", "timeout", "--older-than", "5h"), {1}, 0),
        (("pairs.txt",), {1, 4}, 1),
        (("pairs.txt", "--kind", "timeout"), {1}, 0),
    ],
)
def test_what_is_chosen_leaves_the_queue(
    cli: Command, sqlite_url: str, options: tuple[str, ...], dropped: set[int], in_work: int
) -> None:
    """What a worker is just working on stays, and is counted."""
    fill(sqlite_url, fetch_queue, *QUEUED)
    (cli.folder / "pairs.txt").write_text("120 1\n120 3\n120 4\n120 99\n")

    outcome = cli("queue", "drop", *options, "--yes", "--json", "--database-url", sqlite_url)

    assert outcome.json() == {"dropped": len(dropped), "in_work": in_work}
    assert scan_ids(sqlite_url, fetch_queue) == {1, 2, 3, 4, 5} - dropped


def test_each_database_drops_the_same(cli: Command, server_url: str) -> None:
    """By a choice, and by the pairs of a file."""
    fill(server_url, fetch_queue, *QUEUED)
    given = ("--yes", "--json", "--database-url", server_url)

    of_file = cli("queue", "drop", "-", *given, stdin="120 1\n120 3\n")
    of_age = cli("queue", "drop", "--older-than", "5h", *given)

    assert of_file.json() == {"dropped": 1, "in_work": 1}
    assert of_age.json() == {"dropped": 1, "in_work": 1}
    assert scan_ids(server_url, fetch_queue) == {2, 3, 4}


@pytest.mark.parametrize("of", ["queue", "failures"])
def test_nothing_is_dropped_that_nobody_has_confirmed(cli: Command, sqlite_url: str, of: str) -> None:
    """Where there is no terminal to ask on, the command line has to say so."""
    table = {"queue": fetch_queue, "failures": dead_letters}[of]
    fill(sqlite_url, table, {"error_kind": "timeout", **({"died_at": NOW} if of == "failures" else {})})

    outcome = cli(of, "drop", "--all", "--database-url", sqlite_url)

    assert outcome.exit_code == 2
    assert "there is no terminal to ask on: add --yes" in outcome.stderr
    assert scan_ids(sqlite_url, table) == {1}


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("n", 130, {1}), ("y", 0, set[int]())])
def test_a_terminal_is_asked(cli: Command, sqlite_url: str, answer: str, exit_code: int, left: set[int]) -> None:
    """Only a yes drops what was chosen."""
    fill(sqlite_url, fetch_queue, {})
    ours, theirs = pty.openpty()
    with cli.start("queue", "drop", "--all", "--database-url", sqlite_url, stdin=theirs) as process:
        os.write(ours, f"{answer}\n".encode())
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    os.close(ours)
    os.close(theirs)

    assert process.returncode == exit_code
    assert "out of the queue" in stderr
    assert scan_ids(sqlite_url, fetch_queue) == left


def test_a_drop_of_nothing_in_particular_names_the_choices(cli: Command, sqlite_url: str) -> None:
    """It is a wrong call, and drops nothing."""
    fill(sqlite_url, fetch_queue, {})

    outcome = cli("queue", "drop", "--yes", "--database-url", sqlite_url)

    assert outcome.exit_code == 2
    assert "FILE, --deployment, --kind, --older-than" in outcome.stderr
    assert scan_ids(sqlite_url, fetch_queue) == {1}
