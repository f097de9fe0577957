"""`db grant`: a writer may run and no more, a reader may read and no more, and `doctor` says what is lacking."""

import re
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from command import Command, CommandResult
from login_roles import LoginRole, execute, login_role, may
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import Connection, text

from etl.database.connection import Database
from etl.database.migrate import dictionary
from etl.database.schema import metadata

PASSWORD = "role-secret"
VIEWS = tuple(dictionary().views)
ENTRY = {
    "postgresql": (),
    "mysql": ("CREATE TABLE {database}.lobby (a INT)", "GRANT SELECT ON {database}.lobby TO {role}"),
}
"""On MariaDB only who has a right in a database may enter it."""


@pytest.fixture
def role(server_url: str) -> Iterator[LoginRole]:
    """One that may log in, beside the tables of a database at head, and no more."""
    with login_role(server_url, "app", PASSWORD, *ENTRY[server_url.partition(":")[0]]) as made:
        yield made


def name_for_grant(role: LoginRole) -> str:
    return role.name if role.owner_url.startswith("postgresql") else f"{role.name}@127.0.0.1"


def grant(cli: Command, role: LoginRole, kind: str, *options: str) -> CommandResult:
    outcome = cli(
        *("db", "grant", kind, name_for_grant(role), *options), environment={"SCAN_ETL_DATABASE__URL": role.owner_url}
    )
    assert outcome.exit_code == 0, outcome
    return outcome


READING = [f"SELECT * FROM {name}" for name in (*metadata.tables, *VIEWS)]  # noqa: S608 - names from schema.py
WRITING = [
    sql.format(name=name, columns=", ".join(given), column=given[0])
    for name, table in metadata.tables.items()
    for given in [[column.name for column in table.columns]]
    for sql in (
        "INSERT INTO {name} ({columns}) SELECT {columns} FROM {name}",
        "UPDATE {name} SET {column} = {column}",
        "DELETE FROM {name}",
    )
]
DEFINITIONS = (
    "ALTER TABLE runs ADD COLUMN more INT",
    "DROP TABLE schema_drift",
    "DROP VIEW bi_scan",
    "CREATE INDEX ix_more ON runs (state)",
    "CREATE TABLE more (a INT)",
    "DELETE FROM scan_etl_version",
    "UPDATE scan_etl_version SET version_num = '0001'",
)


def test_a_writer_runs_and_cannot_alter(cli: Command, role: LoginRole) -> None:
    """Every command of the night works, `doctor` is content, and every change of a definition is refused."""
    grant(cli, role, "writer")
    with running_sandbox(finished_world(30)) as sandbox:
        given = sandbox.environment(SCAN_ETL_DATABASE__URL=role.url(PASSWORD))
        words = [("doctor",), ("sync",), ("run", "--limit", "5"), ("enqueue", "-"), ("queue", "drop", "--all", "--yes")]
        words += [
            ("failures", "requeue", "--all"),
            ("forget", "--username", "ann", "--yes"),
            ("prune", "--runs-older-than", "1s", "--scans-older-than", "31d", "--yes"),
            ("db", "check"),
            ("status",),
        ]
        outcomes = [cli(*each, stdin="120 1\n", environment=given) for each in words]

    assert [outcome.exit_code for outcome in outcomes] == [0] * len(words), outcomes[1].stderr
    assert [sql for sql in DEFINITIONS if may(role.url(PASSWORD), sql)] == []
    assert cli("db", "downgrade", "base", "--yes", environment=given).exit_code == 5


def test_a_reader_reads_all_and_cannot_write(cli: Command, role: LoginRole) -> None:
    """The views for dashboards among it; what only reads works, and what writes says what is lacking."""
    grant(cli, role, "reader")
    variables = {"SCAN_ETL_DATABASE__URL": role.url(PASSWORD), "SEMGREP_APP_TOKEN": "t"}
    words = [("status",), ("failures", "list"), ("runs",), ("plan",), ("plan", "-"), ("drift",), ("db", "current")]
    words += [("db", "check"), ("report",), ("export", "bi_scan"), ("forget", "--username", "ann", "--dry-run")]
    words += [("prune", "--scans-older-than", "31d", "--dry-run")]
    outcomes = [cli(*each, stdin="120 1\n", environment=variables) for each in words]

    assert [outcome.exit_code for outcome in outcomes] == [0] * len(outcomes), outcomes
    assert all(may(role.url(PASSWORD), sql) for sql in READING)
    assert [sql for sql in DEFINITIONS if may(role.url(PASSWORD), sql)] == []
    assert [sql for sql in WRITING if may(role.url(PASSWORD), sql)] == []
    assert cli("enqueue", "-", stdin="120 1", environment=variables).exit_code == 5


def test_doctor_says_which_rights_are_lacking(cli: Command, role: LoginRole) -> None:
    """Exactly those that a run needs, and who gives them."""
    place = "" if role.owner_url.startswith("postgresql") else f"{role.owner_url.rpartition('/')[2]}."

    def written() -> str:
        with running_sandbox(finished_world(5)) as sandbox:
            given = sandbox.environment(SCAN_ETL_DATABASE__URL=role.url(PASSWORD))
            outcome = cli("doctor", "--json", environment=given)
        assert outcome.exit_code == 5, outcome
        return next(str(found["sentence"]) for found in outcome.json()["findings"] if found["name"] == "write")

    grant(cli, role, "reader")
    said = written()
    assert "the role lacks INSERT on all tables; UPDATE on all tables; DELETE on all tables" in said
    assert ("; USAGE on " in said) is role.owner_url.startswith("postgresql")
    grant(cli, role, "writer")
    for right, table in (("DELETE", "dead_letters"), ("INSERT", "runs"), ("INSERT", "workers")):
        execute(role.owner_url, f"REVOKE {right} ON {place}{table} FROM {role.in_sql}")
    said = written()
    assert sorted(re.findall(r"(?:lacks|;) (\w+ on [\w, ]+)", said)) == [
        "DELETE on dead_letters",
        "INSERT on runs, workers",
    ]
    assert said.endswith(": have the owner of the tables run `scan-etl db grant writer ROLE`")


def test_the_sql_of_a_grant_is_the_grant(cli: Command, role: LoginRole) -> None:
    """Printed it changes nothing; by hand it gives the same rights."""
    statements = grant(cli, role, "reader", "--sql").stdout.splitlines()

    assert not may(role.url(PASSWORD), "SELECT * FROM bi_scan")
    for statement in statements:
        execute(role.owner_url, statement)
    assert all(may(role.url(PASSWORD), sql) for sql in READING)
    assert grant(cli, role, "reader", "--json").json()["sql"] == [one.removesuffix(";") for one in statements]


def test_a_role_that_is_not_there_is_exit_5(cli: Command, server_url: str) -> None:
    """And is named."""
    outcome = cli("db", "grant", "reader", "no'bo\\dy", environment={"SCAN_ETL_DATABASE__URL": server_url})

    assert outcome.exit_code == 5, outcome
    assert "does not exist" in outcome.stderr or "matching row in the user table" in outcome.stderr


@pytest.mark.parametrize("kind", ["reader", "writer"])
def test_only_who_may_pass_rights_on_grants_them(cli: Command, role: LoginRole, kind: str) -> None:
    """PostgreSQL would only warn those who have a right and may not give it."""
    grant(cli, role, kind)
    with login_role(role.owner_url, "other", PASSWORD, *ENTRY[role.owner_url.partition(":")[0]][-1:]) as other:
        outcome = cli(
            *("db", "grant", "reader", name_for_grant(other)),
            environment={"SCAN_ETL_DATABASE__URL": role.url(PASSWORD)},
        )

        assert outcome.exit_code == 5, outcome
        assert not may(other.url(PASSWORD), "SELECT * FROM bi_scan")


def test_a_file_has_no_roles(cli: Command, sqlite_url: str) -> None:
    """Exit 2, with what it has instead."""
    outcome = cli("db", "grant", "reader", "etl", environment={"SCAN_ETL_DATABASE__URL": sqlite_url})

    assert outcome.exit_code == 2
    assert "an SQLite file has no roles" in outcome.stderr


def test_a_grant_is_for_the_schema_of_the_setting(cli: Command, empty_postgres_url: str) -> None:
    """The role may use it; without a grant the sentence says so."""
    variables = {"SCAN_ETL_DATABASE__URL": empty_postgres_url, "SCAN_ETL_DATABASE__SCHEMA": "team"}
    assert cli("db", "upgrade", environment=variables).exit_code == 0
    with login_role(empty_postgres_url, "app", PASSWORD) as role:
        reading = {**variables, "SCAN_ETL_DATABASE__URL": role.url(PASSWORD)}
        refused = cli("status", environment=reading)
        assert cli("db", "grant", "reader", role.name, environment=variables).exit_code == 0
        allowed = cli("status", environment=reading)

    assert (refused.exit_code, allowed.exit_code) == (5, 0)
    assert "or `scan-etl db grant` for the role" in refused.stderr


def test_rights_can_be_given_again(cli: Command, role: LoginRole) -> None:
    """As after an upgrade: a reader may become a writer."""
    for kind in ("reader", "reader", "writer", "writer"):
        assert f"is a {kind} of" in grant(cli, role, kind).stdout
    with closing(Database(role.url(PASSWORD))) as database:
        database.run_here(partial(Connection.execute, statement=text("DELETE FROM schema_drift")))


def test_a_password_may_have_any_characters(server_url: str) -> None:
    """It is sent in UTF-8, as it was when it was set."""
    password = "pä€ss:w/@ör d%"
    with login_role(server_url, "app", password, *ENTRY[server_url.partition(":")[0]]) as made:
        assert may(made.url(password), "SELECT 1")
