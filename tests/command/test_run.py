"""The real command against a real server and a real database: what a user sees of `run`."""

from contextlib import closing
from datetime import UTC, datetime

import pytest
from command import Command
from sandbox_thread import TOKEN, finished_world, running_sandbox
from scan_rows import SCAN_TABLES, rows_by_table
from sqlalchemy import text
from stored_rows import SUMMARY, environment, loaded, rows
from tables_of import ask

from etl.database.connection import Database
from etl.database.schema import (
    dead_letters,
    fetch_queue,
    runs,
)
from etl.model import Pair
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault
from etl.sandbox.world import Deployment, Token
from etl.transform.scan import flatten


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
    """`--limit`, `--deadline` and `--max-failures` stop cleanly; what was stored is counted for dashboards; a run after
    it does the rest."""
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
    assert [row[0] for row in ask(sqlite_url, text("SELECT SUM(scans) FROM bi_deployment"))] == [summary["fetched"]]
    assert [row[0] for row in ask(sqlite_url, text("SELECT summaries_behind_since FROM bi_freshness"))] == [None]


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


def test_wrong_usage_is_told_as_json_too(cli: Command) -> None:
    """One object on stdout, as for every other error; people read the rest on stderr."""
    outcome = cli("run", "--json", "--limit", "0", "pairs.csv")

    assert outcome.exit_code == outcome.json()["exit_code"] == 2
    assert "--limit" in outcome.json()["error"]
    assert "Usage: " in outcome.stderr
