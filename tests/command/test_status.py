"""`scan-etl status` and `failures` say what is so, and change what was chosen, on each dialect."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from command import Command
from sqlalchemy import Connection, insert, select

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, rate_budgets, watermarks
from etl.model import RUN_COUNTS, STILL_RUNNING
from etl.store import runs
from etl.store.status import DeadLetterFilter, drop_dead, list_dead, requeue_dead

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


def insert_rows(url: str, table: Any, *rows: Mapping[str, Any]) -> None:
    """Insert rows, each with columns of its own."""

    def work(connection: Connection) -> None:
        for scan_id, row in enumerate(rows, 1):
            key = {"deployment_id": 120, "scan_id": scan_id}
            connection.execute(insert(table).values({name: key[name] for name in key if name in table.c} | dict(row)))

    with closing(Database(url)) as database:
        database.run_here(work)


def scan_ids(url: str, table: Any) -> list[int]:
    with closing(Database(url)) as database:
        return database.run_here(lambda connection: list(connection.execute(select(table.c.scan_id)).scalars()))


def give_signs_of_life(url: str) -> None:
    """Of two workers, the first of which has been quick lately."""
    counts = dict.fromkeys(RUN_COUNTS, 0)
    with closing(Database(url)) as database:
        slow = runs.Throughput(slow_pace="deployment 120: the API is unavailable")
        for token, throughput in (("quick", runs.Throughput(5.0, 4.0)), ("idle", slow)):
            sign = partial(runs.sign_of_life, run_id="run", token=token, version="0.1.0", counts=counts)
            database.run_here(partial(sign, throughput=runs.Throughput()))
            database.run_here(partial(sign, throughput=throughput))


QUEUED: tuple[dict[str, Any], ...] = (
    {},
    {"due_at": NOW - 3 * HOUR},
    {"due_at": NOW - HOUR, "lease_token": "of a dead worker"},
    {"due_at": NOW + HOUR, "lease_token": "quick"},
    {"due_at": NOW + HOUR, "lease_token": "quick"},
    {"due_at": NOW + HOUR, "lease_token": "forgotten"},
    {"due_at": NOW + HOUR, "error_kind": "timeout"},
    {"due_at": NOW + HOUR, "error_kind": STILL_RUNNING},
    {"due_at": NOW + HOUR},
    {"deployment_id": 121, "enqueued_at": NOW - 5 * HOUR},
)


def test_status_says_what_is_queued_and_who_works_on_it(cli: Command, database_url: str) -> None:
    """Depths by deployment, the leases of each worker, their speed together and when the queue is empty at that."""
    insert_rows(database_url, fetch_queue, *QUEUED)
    dead = {"deployment_id": 121, "died_at": NOW, "error_kind": "timeout"}
    to_retry = {**dead, "retry_at": NOW + HOUR}
    insert_rows(database_url, dead_letters, {**dead, "error_kind": "not_found"}, to_retry, dead)
    give_signs_of_life(database_url)

    status = cli("status", "--json", "--database-url", database_url).json()
    text = cli("status", "--database-url", database_url).stdout

    states = ("due", "leased", "retrying", "waiting", "scheduled", "dead")
    assert {row["deployment_id"]: tuple(row[name] for name in states) for row in status["queue"]} == {
        120: (3, 3, 1, 1, 1, 0),
        121: (1, 0, 0, 0, 0, 3),
    }
    assert (status["dead_letters"], status["dead_letters_to_retry"]) == ({"not_found": 1, "timeout": 2}, {"timeout": 1})
    oldest = [datetime.fromisoformat(row["oldest_due_at"]) for row in status["queue"]]
    assert oldest == [NOW - 3 * HOUR, NOW - 5 * HOUR]
    assert [row["next_due_at"] for row in status["queue"]] == [(NOW + HOUR).isoformat(), None]
    assert {row["worker"]: (row["leases"], row["version"]) for row in status["workers"]} == {
        "quick": (2, "0.1.0"),
        "idle": (0, "0.1.0"),
        "forgotten": (1, None),
    }
    assert {row["worker"]: row["slow_pace"] for row in status["workers"]} == {
        "quick": None,
        "idle": "deployment 120: the API is unavailable",
        "forgotten": None,
    }
    assert "deployment 120: the API is unavailable" in text
    assert all(row["started_at"] <= row["seen_at"] for row in status["workers"][:2])
    assert (status["requests_per_second"], status["finished_per_second"]) == (5.0, 4.0)
    assert status["seconds_to_drain"] == 8 / 4
    assert "time to drain: 2 s" in text
    assert "forgotten" in text


def test_status_and_doctor_say_why_nothing_is_asked(cli: Command, sqlite_url: str) -> None:
    """A worker was refused for two minutes: until when its token's time is reserved, and for which deployment."""
    until_at = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2)
    insert_rows(sqlite_url, rate_budgets, {"token_key": "k", "next_free_at": until_at})
    marks = {"deployment_id": 120, "walked_at": NOW, "complete_since": NOW, "token_key": "k"}
    insert_rows(sqlite_url, watermarks, marks)

    status = cli("status", "--json", "--database-url", sqlite_url).json()
    shown = cli("status", "--database-url", sqlite_url).stdout
    doctor = cli("doctor", "--json", "--database-url", sqlite_url).json()

    assert status["held_paces"] == [{"deployment_id": 120, "until_at": until_at.isoformat()}]
    assert f"{until_at:%H:%M:%S}" in shown
    [found] = [finding for finding in doctor["findings"] if finding["name"] == "queue"]
    assert found["warning"]
    assert f"the token of deployment 120 until {until_at:%Y-%m-%d %H:%M:%S} UTC" in found["sentence"]


def test_the_time_to_drain_is_unknown_while_nobody_works(cli: Command, database_url: str) -> None:
    """And none for an empty queue."""
    empty = cli("status", "--json", "--database-url", database_url).json()
    insert_rows(database_url, fetch_queue, {})

    status = cli("status", "--json", "--database-url", database_url).json()

    assert (empty["seconds_to_drain"], empty["workers"]) == (0, [])
    assert status["seconds_to_drain"] is None
    assert "time to drain: unknown" in cli("status", "--database-url", database_url).stdout


LETTERS: tuple[dict[str, Any], ...] = (
    {"scan_id": 1, "died_at": NOW - 10 * HOUR, "error_kind": "timeout"},
    {"scan_id": 2, "died_at": NOW - HOUR, "error_kind": "timeout", "attempts": 5},
    {"scan_id": 3, "died_at": NOW - HOUR, "error_kind": "not_found"},
    {"scan_id": 4, "died_at": NOW, "error_kind": "timeout", "deployment_id": 121, "priority": -3},
)


@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        (DeadLetterFilter(deployment_id=120, older_than_seconds=5 * 3600), {1}),
        (DeadLetterFilter(kind="timeout", newer_than_seconds=5 * 3600), {2, 4}),
        (DeadLetterFilter(kind="refused_row"), set()),
        (DeadLetterFilter(), {1, 2, 3, 4}),
    ],
)
def test_dead_letters_are_chosen_by_kind_deployment_and_age(
    database_url: str, which: DeadLetterFilter, chosen: set[int]
) -> None:
    """What is listed is what goes back into the queue, and what is forgotten."""
    insert_rows(database_url, dead_letters, *LETTERS)
    with closing(Database(database_url)) as database:
        listed = database.run_here(partial(list_dead, which=which, limit=9))
        requeued = database.run_here(partial(requeue_dead, which=which))
        queued, left = scan_ids(database_url, fetch_queue), scan_ids(database_url, dead_letters)
        insert_rows(database_url, dead_letters, *(letter for letter in LETTERS if letter["scan_id"] in chosen))
        dropped = database.run_here(partial(drop_dead, which=which))

    assert {letter["scan_id"] for letter in listed} == set(queued) == chosen
    assert set(left) == set(scan_ids(database_url, dead_letters)) == {1, 2, 3, 4} - chosen
    assert requeued == dropped == len(chosen)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("--deployment", "120", "--older-than", "5h"), {1}),
        (("--kind", "timeout", "--newer-than", "5h"), {2, 4}),
    ],
)
def test_failures_takes_the_choice_from_its_options(
    cli: Command, sqlite_url: str, options: tuple[str, ...], chosen: set[int]
) -> None:
    """`list`, `requeue` and `drop` have the same."""
    insert_rows(sqlite_url, dead_letters, *LETTERS)
    given = ("--json", "--database-url", sqlite_url)

    listed = cli("failures", "list", *options, *given).json()["dead_letters"]
    requeued = cli("failures", "requeue", *options, *given).json()
    queued, left = scan_ids(sqlite_url, fetch_queue), scan_ids(sqlite_url, dead_letters)
    insert_rows(sqlite_url, dead_letters, *(letter for letter in LETTERS if letter["scan_id"] in chosen))
    dropped = cli("failures", "drop", *options, *given).json()

    assert {letter["scan_id"] for letter in listed} == set(queued) == chosen
    assert set(left) == set(scan_ids(sqlite_url, dead_letters)) == {1, 2, 3, 4} - chosen
    assert (requeued, dropped) == ({"requeued": len(chosen)}, {"dropped": len(chosen)})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_output_cannot_hold_is_escaped(cli: Command, sqlite_url: str, encoding: str) -> None:
    """An error text may hold anything, and a pipe or a terminal take ASCII alone."""
    insert_rows(sqlite_url, dead_letters, {"died_at": NOW, "error_kind": "http_status", "error": "\U0001f680"})
    environment = {"PYTHONIOENCODING": encoding, "SCAN_ETL_DATABASE__URL": sqlite_url}
    outcome = cli("failures", "list", environment=environment)

    assert outcome.exit_code == 0, outcome
    assert r"\U0001f680" in outcome.stdout


def test_a_kind_that_there_is_not_is_answered_with_those_that_there_are(cli: Command, sqlite_url: str) -> None:
    """On stderr: what reads the list or the count goes on as it was."""
    none = cli("failures", "list", "--kind", "not-found", "--json", "--database-url", sqlite_url)
    insert_rows(sqlite_url, dead_letters, *LETTERS)
    found = [
        cli("failures", *words, "--kind", kind, "--json", "--database-url", sqlite_url)
        for words in (("list",), ("requeue",), ("drop",))
        for kind in ("not-found", "not_found")
    ]

    assert none.stderr == "No dead letter is of the kind 'not-found'; there are none at all.\n"
    said = "No dead letter is of the kind 'not-found'; there are not_found, timeout.\n"
    assert [outcome.stderr for outcome in found[:4]] == [said, "", said, ""]
    assert found[4].stderr == "No dead letter is of the kind 'not-found'; there are timeout.\n"
    assert [outcome.json() for outcome in found[2:]] == [
        {"requeued": 0},
        {"requeued": 1},
        {"dropped": 0},
        {"dropped": 0},
    ]
    assert {outcome.exit_code for outcome in (none, *found)} == {0}


def test_a_dead_letter_is_shown_whole(cli: Command, database_url: str) -> None:
    """By its deployment and scan; of a pair that is none, where to look."""
    letter = {"died_at": NOW, "error_kind": "timeout", "error": "why", "attempts": 5, "retry_at": NOW + HOUR}
    insert_rows(database_url, dead_letters, letter)
    shown = cli("failures", "show", "120/1", "--json", "--database-url", database_url).json()
    text = cli("failures", "show", "120/1", "--database-url", database_url).stdout
    other = cli("failures", "show", "120/2", "--database-url", database_url)

    assert shown.keys() == {column.name for column in dead_letters.c}
    assert (shown["scan_id"], shown["error"], shown["retry_at"]) == (1, "why", (NOW + HOUR).isoformat())
    assert "error kind: timeout\n" in text
    assert other.exit_code == 2
    assert "120/2 is no dead letter: `scan-etl failures list`" in other.stderr


@pytest.mark.parametrize("pair", ["120", "120/", "0/1", "120/99999999999999999999", "120/-1", "1/1/1"])
def test_what_is_no_pair_is_a_usage_error(cli: Command, pair: str) -> None:
    """With an example of what is one."""
    outcome = cli("failures", "show", "--", pair)

    assert outcome.exit_code == 2
    assert "is not a deployment and a scan, such as 120/70" in outcome.stderr


@pytest.mark.parametrize("command", [("status",), ("failures", "list"), ("runs",)])
def test_where_no_database_is_the_place_is_in_question(cli: Command, command: tuple[str, ...]) -> None:
    """The whole path is named: somebody may stand in another folder than the job does. None is made there."""
    outcome = cli(*command)

    assert outcome.exit_code == 5
    assert f"there is no database {cli.folder}/scans.db: is this the place?" in outcome.stderr
    assert not (cli.folder / "scans.db").exists()
