"""The real command against a real server and a real database: what a user sees of `run`."""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from command import Command
from cutting_proxy import cutting_proxy
from patience import PATIENCE_SECONDS
from sandbox_thread import TOKEN, RunningSandbox, finished_world, running_sandbox
from scan_rows import BOOKKEEPING, SCAN_TABLES, rows_by_table
from sqlalchemy import Connection, Table, select, text, update
from tables_of import ask, change
from worker_processes import open_files, wait_until

from etl.database.connection import Database
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
from etl.sandbox.world import Deployment, Token
from etl.transform.scan import flatten

SUMMARY = (
    "run_id command requested invalid duplicate already_final discovered requests fetched inserted updated unchanged"
    " waiting retried rate_limited dead remaining duration_seconds exit_code"
).split()
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def rows(url: str, table: Table, *left_out: str) -> list[tuple[Any, ...]]:
    def work(connection: Connection) -> list[tuple[Any, ...]]:
        columns = [column for column in table.c if column.name not in left_out]
        return [tuple(row) for row in connection.execute(select(*columns).order_by(*table.primary_key))]

    with closing(Database(url)) as database:
        return database.run_here(work)


def loaded(url: str) -> dict[str, list[dict[str, Any]]]:
    """All that the tables hold of the scans, but for the bookkeeping."""
    found = {}
    for table in SCAN_TABLES:
        columns = [column for column in table.c if column.name not in BOOKKEEPING]
        found[table.name] = [row._asdict() for row in ask(url, select(*columns).order_by(*table.primary_key))]
    return found


def environment(sandbox: RunningSandbox, url: str, **additions: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url, **additions)


def test_pairs_in_rows_out(cli: Command, database_url: str) -> None:
    """Every value that the API knows of every scan is in the tables, and the summary adds up."""
    with running_sandbox(finished_world(300)) as sandbox:
        outcome = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=environment(sandbox, database_url))
        truth = [
            flatten(Pair(120, number), sandbox.sandbox.truth(number), datetime.now(UTC)) for number in range(1, 301)
        ]

    summary = outcome.json()
    assert outcome.exit_code == 0, outcome
    assert list(summary) == SUMMARY
    assert (summary["requested"], summary["fetched"], summary["inserted"], summary["remaining"]) == (300, 300, 300, 0)
    assert loaded(database_url) == rows_by_table(truth)
    assert all(loaded(database_url).values())


def test_a_second_run_fetches_nothing(cli: Command, database_url: str) -> None:
    """Final scans aren't asked for again, unless `--refresh` says so; then they are unchanged."""
    with running_sandbox(finished_world(50)) as sandbox:
        variables = environment(sandbox, database_url)
        cli("run", "-", stdin=sandbox.pairs_text(), environment=variables)
        before = loaded(database_url)
        asked = sandbox.details_requests()

        again = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=variables)
        assert (again.exit_code, sandbox.details_requests()) == (0, asked)
        assert (again.json()["already_final"], again.json()["fetched"]) == (50, 0)

        refreshed = cli("run", "-", "--json", "--refresh", stdin=sandbox.pairs_text(), environment=variables)
        assert (refreshed.json()["fetched"], refreshed.json()["unchanged"]) == (50, 50)
        assert loaded(database_url) == before


def test_run_without_files_drains_what_any_program_has_queued(cli: Command, database_url: str) -> None:
    """`enqueue` and a plain INSERT fill the same queue."""
    with running_sandbox(finished_world(10)) as sandbox:
        variables = environment(sandbox, database_url)
        queued = cli("enqueue", "-", "--json", stdin="120 1\n120/2\n120 1\nnonsense\n", environment=variables)
        with closing(Database(database_url)) as database:
            sql = text("INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 3)")
            database.run_here(lambda connection: connection.execute(sql))

        drained = cli("run", "--json", environment=variables)

    assert queued.json() == {"requested": 4, "invalid": 1, "duplicate": 1, "already_final": 0, "queued": 2}
    assert "stdin:4: 'nonsense' is not a deployment_id and a scan_id" in queued.stderr
    assert (drained.exit_code, drained.json()["fetched"]) == (0, 3)
    assert rows(database_url, fetch_queue) == []


def test_a_file_run_leaves_the_rest_of_the_queue_alone(cli: Command, database_url: str) -> None:
    """`run FILE` drains exactly the file's pairs."""
    with running_sandbox(finished_world(10)) as sandbox:
        variables = environment(sandbox, database_url)
        cli("enqueue", "-", stdin="120 1\n120 2\n", environment=variables)

        outcome = cli("run", "-", "--json", stdin="120 2\n120 3\n", environment=variables)

    assert outcome.json()["fetched"] == 2
    assert [row[:2] for row in rows(database_url, fetch_queue)] == [(120, 1)]


def test_a_pair_that_names_no_scan_is_dead_and_stops_no_other(cli: Command, database_url: str) -> None:
    """Any program may queue one. Nothing is asked for it, of no deployment."""
    with running_sandbox(finished_world(1)) as sandbox:
        variables = environment(sandbox, database_url)
        statement = "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (0, 1), (-1, 1), (120, 0), (120, 1)"
        with closing(Database(database_url)) as database:
            database.run_here(lambda connection: connection.execute(text(statement)).close())
        outcome = cli("run", "--json", environment=variables)
        asked = sandbox.details_requests()

    assert outcome.exit_code == 1, outcome
    assert (outcome.json()["fetched"], outcome.json()["dead"], asked) == (1, 3, 1)
    assert {row[:2] for row in rows(database_url, dead_letters)} == {(-1, 1), (0, 1), (120, 0)}
    assert rows(database_url, fetch_queue) == []


def test_dead_letters_end_a_run_with_exit_1_and_can_go_round_again(cli: Command, database_url: str) -> None:
    """What the API doesn't have becomes a dead letter with its reason; `failures` lists, requeues and drops it."""
    with running_sandbox(finished_world(10)) as sandbox:
        variables = environment(sandbox, database_url)
        outcome = cli("run", "-", "--json", stdin="120 1\n120 9999999\n120 9999998\n", environment=variables)
        listed = cli("failures", "list", "--json", environment=variables).json()["dead_letters"]
        status = cli("status", "--json", environment=variables).json()
        again = cli("failures", "requeue", "--all", "--json", environment=variables)
        queued = len(rows(database_url, fetch_queue))
        cli("run", environment=variables)
        dropped = cli("failures", "drop", "--kind", "not_found", "--json", environment=variables)

    assert (outcome.exit_code, outcome.json()["dead"], outcome.json()["fetched"]) == (1, 2, 1)
    assert {(letter["scan_id"], letter["error_kind"], letter["http_status"]) for letter in listed} == {
        (9999998, "not_found", 404),
        (9999999, "not_found", 404),
    }
    assert status["dead_letters"] == {"not_found": 2}
    assert (again.json(), queued) == ({"requeued": 2}, 2)
    assert dropped.json() == {"dropped": 2}
    assert rows(database_url, dead_letters) == []


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (None, "no token: set SEMGREP_APP_TOKEN"),
        ("wrong-token", "the token is refused"),
        ("no-scope", "lacks the Web API scope"),
        ("other-deployment", "belongs to deployment 121"),
    ],
)
def test_a_token_that_will_not_do_is_exit_3_with_the_queue_as_it_was(
    cli: Command, sqlite_url: str, token: str | None, sentence: str
) -> None:
    """Each fault of a token has its own sentence, and nothing is fetched or buried."""
    deployments = (
        Deployment(120, tokens=(Token(), Token("no-scope", web_api=False))),
        Deployment(121, tokens=(Token("other-deployment"),)),
    )
    with running_sandbox(finished_world(10, deployments=deployments)) as sandbox:
        variables = environment(sandbox, sqlite_url)
        cli("enqueue", "-", stdin="120 1\n120 3\n", environment=variables)
        before = rows(sqlite_url, fetch_queue)
        del variables["SEMGREP_APP_TOKEN"]
        outcome = cli("run", environment=variables | ({"SEMGREP_APP_TOKEN": token} if token else {}))

        assert outcome.exit_code == 3, outcome
        assert sentence in outcome.stderr
        assert sandbox.details_requests() == 0
    assert rows(sqlite_url, fetch_queue) == before
    assert token is None or token not in outcome.stderr + outcome.stdout


def test_the_token_is_nowhere_but_in_the_header(cli: Command, database_url: str) -> None:
    """Not in the log, the output or any column, even if the server sends it back in an error."""
    secret = "4f1c9e0a7b2d" * 4
    deployments = (Deployment(120, tokens=(Token(secret),)),)
    faults = (Fault("status-500", 0.3, times=0),)
    with running_sandbox(finished_world(30, deployments=deployments), Behaviour(faults=faults)) as sandbox:
        variables = environment(sandbox, database_url, SEMGREP_APP_TOKEN=secret, SCAN_ETL_QUEUE__MAX_ATTEMPTS="1")
        outcome = cli("run", "-", "--log-level", "debug", stdin=sandbox.pairs_text(), environment=variables)

    everything = [rows(database_url, table) for table in (*SCAN_TABLES, dead_letters, runs)]
    assert outcome.exit_code == 1
    assert secret not in outcome.stdout + outcome.stderr + repr(everything)


@pytest.mark.parametrize(
    ("arguments", "remaining"),
    [(("--limit", "10"), 40), (("--deadline", "1"), None), (("--max-failures", "3"), None)],
)
def test_a_budget_ends_a_run_with_exit_4_and_the_rest_queued(
    cli: Command, sqlite_url: str, arguments: tuple[str, ...], remaining: int | None
) -> None:
    """`--limit`, `--deadline` and `--max-failures` stop cleanly; a run after it does the rest."""
    behaviour = Behaviour(latency_seconds=0.1, faults=(Fault("status-404", 0.2, times=0),))
    with running_sandbox(finished_world(50), behaviour) as sandbox:
        variables = environment(sandbox, sqlite_url, SCAN_ETL_API__CONCURRENCY="2", SCAN_ETL_DATABASE__BATCH_SIZE="5")
        outcome = cli("run", "-", "--json", *arguments, stdin=sandbox.pairs_text(), environment=variables)

    summary = outcome.json()
    assert outcome.exit_code == 4, outcome
    assert summary["remaining"] > 0
    assert remaining in (None, summary["remaining"])
    assert summary["remaining"] == len(rows(sqlite_url, fetch_queue))
    assert all(row[5] is None for row in rows(sqlite_url, fetch_queue))


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
                time.sleep(moments.uniform(0.3, 2.5))
                process.kill()
        # What is killed counts as at work for another minute, which the last run would wait for.
        change(database_url, update(workers).values(seen_at=LONG_AGO))
        last = cli("run", pairs, "--json", environment=variables)
        stored = rows(database_url, scans)
        dead = set(range(1, 601)) - {row[1] for row in stored}
        truth = [
            flatten(Pair(120, number), sandbox.sandbox.truth(number), datetime.now(UTC))
            for number in sorted(set(range(1, 601)) - dead)
        ]

    assert last.exit_code == (1 if dead else 0), (seed, last)
    assert rows(database_url, fetch_queue) == []
    assert {row[1] for row in rows(database_url, dead_letters)} == dead
    assert 0 < len(dead) < 40
    assert loaded(database_url) == rows_by_table(truth)


def test_a_schema_that_is_not_at_head_is_exit_5_and_says_the_fix(cli: Command, empty_server_url: str) -> None:
    """A server's database is never migrated by a run; `db upgrade` does it, and `db check` agrees."""
    variables = {"SCAN_ETL_DATABASE__URL": empty_server_url, "SEMGREP_APP_TOKEN": TOKEN}

    refused = cli("run", "-", stdin="120 1", environment=variables)

    assert refused.exit_code == 5
    assert "run `scan-etl db upgrade`" in refused.stderr
    assert cli("db", "check", environment=variables).exit_code == 5
    assert cli("db", "upgrade", environment=variables).exit_code == 0
    assert cli("db", "check", environment=variables).exit_code == 0


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_database_that_is_away_is_exit_5(cli: Command, scheme: str) -> None:
    """One sentence, without the password, and no traceback."""
    url = f"{scheme}://someone:hunter2@127.0.0.1:1/nothing"

    outcome = cli("run", "-", stdin="120 1", environment={"SEMGREP_APP_TOKEN": TOKEN, "SCAN_ETL_DATABASE__URL": url})

    assert outcome.exit_code == 5
    assert outcome.stderr.startswith(f"Error: database {scheme}://someone:***@127.0.0.1:1/nothing")
    assert "hunter2" not in outcome.stderr
    assert "Traceback" not in outcome.stderr


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


def test_a_full_disk_behind_its_output_is_no_bug(cli: Command, sqlite_url: str) -> None:
    """What can't be printed is told on the other stream, and has an exit code of its own."""
    outcome = cli.in_shell("> /dev/full", "status", environment={"SCAN_ETL_DATABASE__URL": sqlite_url})

    assert outcome.exit_code == 74
    assert outcome.stderr.startswith("Error: the output can't be written (No space left on device)")
    assert "Traceback" not in outcome.stderr


def test_a_full_disk_behind_its_errors_changes_no_exit_code(cli: Command) -> None:
    """What reads the code, such as cron, still learns how it ended."""
    outcome = cli.in_shell("2> /dev/full", "run", "nowhere.csv", "--json")

    assert outcome.exit_code == outcome.json()["exit_code"] == 3


def test_a_full_disk_behind_its_log_stops_no_run(cli: Command, sqlite_url: str) -> None:
    """A line of the log is lost, and no more."""
    pairs = cli.folder / "pairs.txt"
    with running_sandbox(finished_world(5)) as sandbox:
        pairs.write_text(f"not a pair\n{sandbox.pairs_text()}")
        variables = environment(sandbox, sqlite_url)
        outcome = cli.in_shell("2> /dev/full", "run", str(pairs), "--json", environment=variables)

    assert outcome.exit_code == 0
    assert {name: outcome.json()[name] for name in ("invalid", "fetched")} == {"invalid": 1, "fetched": 5}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "nowhere.csv"), "nowhere.csv can't be read"),
        (("run", "--no-such-option"), "No such option"),
        (("run", "--deadline", "soon"), "is not a duration such as 90s"),
        (("run", "--rate", "-1"), "api.rate"),
        (("--config", "nowhere.toml", "run"), "nowhere.toml"),
        (("run", "--database-url", "oracle://x/y"), "database.url"),
        (("run", "--database-url", "nonsense"), "database.url"),
        (("run", "--database-url", "sqlite:///x.db?mode=ro"), "an SQLite URL has no parameters"),
        (("run", "--database-url", "mysql://u@127.0.0.1:1/x?colour=red"), "unexpected keyword argument 'colour'"),
        (("failures", "drop"), "say which dead letters"),
        (("frobnicate",), "No such command"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_sentence(cli: Command, arguments: tuple[str, ...], sentence: str) -> None:
    """What is wrong is named, and there is no traceback."""
    outcome = cli(*arguments, environment={"SEMGREP_APP_TOKEN": TOKEN})

    assert outcome.exit_code == 2, outcome
    assert sentence in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_strict_refuses_a_file_with_a_bad_line_before_anything_is_queued(cli: Command, sqlite_url: str) -> None:
    """The line is named, and the queue stays empty."""
    variables = {"SEMGREP_APP_TOKEN": TOKEN, "SCAN_ETL_DATABASE__URL": sqlite_url}
    (cli.folder / "pairs.csv").write_text("deployment_id,scan_id\n120,1\n120,abc\n120,0\n")

    outcome = cli("run", "--strict", "pairs.csv", environment=variables)

    assert outcome.exit_code == 2
    assert "pairs.csv:3: scan_id 'abc' is not a positive integer" in outcome.stderr
    assert rows(sqlite_url, fetch_queue) == []


def test_a_running_scan_waits_and_is_not_waited_for(cli: Command, database_url: str) -> None:
    """A scan without `completed_at` is stored as seen, counted as waiting, and fetched again when it is due."""
    with running_sandbox(finished_world(5, never_finished_share=1.0)) as sandbox:
        variables = environment(sandbox, database_url)
        outcome = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=variables)
        again = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=variables)

    assert (outcome.exit_code, outcome.json()["waiting"], outcome.json()["fetched"]) == (0, 5, 5)
    assert (again.json()["waiting"], again.json()["fetched"]) == (5, 0)
    assert {row[4] for row in rows(database_url, fetch_queue)} == {0}


def test_a_person_at_a_terminal_sees_how_far_it_is(cli: Command, sqlite_url: str) -> None:
    """A line on the terminal has what is done of how much, the speed, retries and dead letters; at the end it goes."""
    faults = (Fault("status-404", 0.05, times=0), Fault("status-500", 0.05))
    terminal, its_end = os.openpty()
    with running_sandbox(finished_world(200), Behaviour(latency_seconds=0.1, faults=faults)) as sandbox:
        variables = environment(
            sandbox, sqlite_url, SCAN_ETL_API__CONCURRENCY="10", SCAN_ETL_DATABASE__FLUSH_SECONDS="0.2", TERM="xterm"
        )
        cli("enqueue", "-", stdin=sandbox.pairs_text(), environment=variables)
        with cli.start("run", environment=variables, stderr=its_end) as process:
            os.close(its_end)
            seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(_shown(terminal)))
            stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1, seen
    assert re.search(r"fetching .* [1-9]\d*/200 .*[1-9]\d*/s · \d+ retried · [1-9]\d* dead", seen), seen
    assert "fetched" in stdout


@pytest.mark.parametrize("command", ["run", "enqueue", "plan"])
def test_a_person_at_a_terminal_sees_how_much_is_read(cli: Command, sqlite_url: str, command: str) -> None:
    """A file of millions takes minutes until the first request: the line counts what it has read."""
    pairs = cli.folder / "pairs.txt"
    os.mkfifo(pairs)
    terminal, its_end = os.openpty()
    variables = {"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": TOKEN, "TERM": "xterm"}
    with cli.start(command, pairs, environment=variables, stderr=its_end) as process, pairs.open("w") as file:
        os.close(its_end)
        file.write("x\n" * 10_001)  # a chunk and a line, which the pipe holds
        file.flush()
        seen = ""
        for piece in _shown(terminal):
            seen += piece
            if not file.closed and "reading, 10,000 lines" in seen:
                file.close()
        process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 2, seen
    assert "reading, 10,000 lines" in seen


def _shown(terminal: int) -> Iterator[str]:
    """All that comes on a terminal until nobody has its other end."""
    with open(terminal, "rb", buffering=0) as screen, suppress(OSError):
        while data := screen.read(65_536):
            yield data.decode(errors="replace")


def test_every_run_leaves_its_summary_in_the_database(cli: Command, sqlite_url: str) -> None:
    """`runs` has a row for each run, with the counts that the command printed."""
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=environment(sandbox, sqlite_url))

    with closing(Database(sqlite_url)) as database:
        row = database.run_here(lambda connection: dict(connection.execute(select(runs)).mappings().one()))
    assert {name: row[name] for name in SUMMARY} == outcome.json()
    assert row["finished_at"] >= row["started_at"]


def test_a_run_that_can_not_be_done_is_closed_in_the_record(cli: Command, sqlite_url: str) -> None:
    """With its exit code: it isn't going on, and its worker is gone."""
    outcome = cli("run", "nowhere.csv", environment={"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": "a"})
    status = cli("status", "--json", environment={"SCAN_ETL_DATABASE__URL": sqlite_url})

    assert outcome.exit_code == 2
    assert [run["exit_code"] for run in status.json()["runs"]] == [2]
    assert status.json()["runs"][0]["finished_at"]
    assert status.json()["workers"] == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_changes_nothing_else(cli: Command, sqlite_url: str, closed: str) -> None:
    """Its number goes to no other file, and the work is done."""
    (cli.folder / "pairs.txt").write_text("120 1\n", encoding="utf-8")
    with running_sandbox(finished_world(5)) as sandbox:
        ended = cli.in_shell(closed, "run", "pairs.txt", "--json", environment=environment(sandbox, sqlite_url))

    assert ended.exit_code == 0, ended
    assert len(rows(sqlite_url, scans)) == 1
    assert ">" in closed or ended.json()["fetched"] == 1


def test_wrong_usage_is_told_as_json_too(cli: Command) -> None:
    """One object on stdout, as for every other error; people read the rest on stderr."""
    outcome = cli("run", "--json", "--limit", "0", "pairs.csv")

    assert outcome.exit_code == outcome.json()["exit_code"] == 2
    assert "--limit" in outcome.json()["error"]
    assert "Usage: " in outcome.stderr


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
