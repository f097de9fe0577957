"""The version table is ours alone: neighbours in the same database are neither read nor touched, nor met."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import psycopg
import pytest
from command import Command
from sqlalchemy import Connection, inspect
from sqlalchemy.engine import make_url
from tables_of import ask

from etl.config.urls import Address
from etl.database import migrate as db
from etl.database.connection import Database, check_schema
from etl.database.schema import HEAD, fetch_queue
from etl.database.version import VERSION_TABLE
from etl.errors import DatabaseError, SchemaBehindError

THEIR_VERSION = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"
INSERT = "INSERT INTO alembic_version VALUES ('{}')"


def execute(url: str, *statements: str) -> None:
    with closing(Database(url)) as database:
        for statement in statements:
            database.run_here(partial(Connection.exec_driver_sql, statement=statement))


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(Database(url)) as database:
        return [tuple(row) for row in database.run_here(lambda connection: connection.exec_driver_sql(sql).all())]


def tables(url: str) -> set[str]:
    with closing(Database(url)) as database:
        return set(inspect(database.engine).get_table_names())


@pytest.mark.parametrize("revisions", [["3f2a9c1d77be"], ["0001"], ["0002", "3f2a9c1d77be"]])
def test_another_programs_version_is_neither_read_nor_touched(empty_database_url: str, revisions: list[str]) -> None:
    """Even where its revision has the name of one of ours."""
    execute(empty_database_url, THEIR_VERSION, *(INSERT.format(one) for one in revisions))

    assert db.current(empty_database_url) is None
    db.upgrade(empty_database_url)
    db.check(empty_database_url)
    assert db.current(empty_database_url) == HEAD
    db.downgrade(empty_database_url, "base")
    assert db.current(empty_database_url) is None
    assert sorted(rows(empty_database_url, "SELECT version_num FROM alembic_version")) == [(one,) for one in revisions]


def test_a_database_of_before_is_taken_over(cli: Command, database_url: str) -> None:
    """Commands work as they did; the next upgrade renames the table, and leaves the old name to others."""
    execute(database_url, f"ALTER TABLE {VERSION_TABLE} RENAME TO alembic_version")
    variables = {"SCAN_ETL_DATABASE__URL": database_url}

    assert cli("enqueue", "-", stdin="120 1", environment=variables).exit_code == 0
    assert cli("status", environment=variables).exit_code == 0
    assert cli("db", "check", environment=variables).exit_code == 0
    assert "alembic_version" in tables(database_url)
    assert cli("db", "upgrade", environment=variables).exit_code == 0
    assert tables(database_url) & {"alembic_version", VERSION_TABLE} == {VERSION_TABLE}
    assert db.current(database_url) == HEAD
    assert [row.scan_id for row in ask(database_url, fetch_queue.select())] == [1]


def test_a_database_of_before_goes_on_from_its_revision(empty_database_url: str) -> None:
    """Its tables stay as they are, and get what came after."""
    db.upgrade(empty_database_url, "0001")
    execute(
        empty_database_url,
        f"ALTER TABLE {VERSION_TABLE} RENAME TO alembic_version",
        "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1)",
    )

    assert db.current(empty_database_url) == "0001"
    db.upgrade(empty_database_url)
    db.check(empty_database_url)
    assert rows(empty_database_url, "SELECT scan_id FROM fetch_queue") == [(1,)]


@pytest.mark.parametrize("beside", [[], [THEIR_VERSION, INSERT.format("0001")]])
def test_foreign_tables_of_our_names_are_refused_by_name(
    cli: Command, empty_database_url: str, beside: list[str]
) -> None:
    """Before anything is made, by all commands that make tables; those of other names don't matter."""
    theirs = ["CREATE TABLE scans (a INTEGER)", "CREATE TABLE runs (a INTEGER)", "CREATE VIEW bi_scan AS SELECT 1 AS a"]
    execute(empty_database_url, *theirs, "CREATE TABLE team (a INTEGER)", *beside)
    before = tables(empty_database_url)

    for words in (("db", "upgrade"), ("run",), ("db", "downgrade", "base", "--yes")):
        variables = {"SCAN_ETL_DATABASE__URL": empty_database_url, "SEMGREP_APP_TOKEN": "t"}
        outcome = cli(*words, environment=variables)
        assert outcome.exit_code == 5, outcome
        if words[0] == "db" or empty_database_url.startswith("sqlite"):
            assert "tables have the names of ours: bi_scan, runs, scans (there is no scan_etl_version" in outcome.stderr
    assert tables(empty_database_url) == before


@pytest.fixture
def two_schemas(empty_postgres_url: str) -> Iterator[tuple[str, str]]:
    """URLs of two roles of one database, each with a schema of its own, before that of the other, in search_path."""
    names = [f"{make_url(empty_postgres_url).database}_{letter}" for letter in "ab"]
    with psycopg.connect(empty_postgres_url, autocommit=True) as server:
        for name, other in zip(names, reversed(names), strict=True):
            server.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'pw'")
            server.execute(f"CREATE SCHEMA {name}")
            server.execute(f"ALTER ROLE {name} SET search_path = {name}, {other}, public")
        urls = [
            make_url(empty_postgres_url).set(username=name, password="pw").render_as_string(hide_password=False)
            for name in names
        ]
        yield urls[0], urls[1]
        server.execute(f"DROP OWNED BY {', '.join(names)} CASCADE")
        server.execute(f"DROP ROLE {', '.join(names)}")


def test_two_roles_with_a_search_path_do_not_meet(two_schemas: tuple[str, str]) -> None:
    """The first schema of the path has the tables, whatever the next one has."""
    first, second = two_schemas
    db.upgrade(first)

    assert db.current(second) is None
    db.upgrade(second)
    execute(first, "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1)")
    for url, scans in ((first, [(1,)]), (second, [])):
        db.check(url)
        assert rows(url, "SELECT scan_id FROM fetch_queue") == scans
    db.downgrade(second, "base")
    db.check(first)


def test_two_schemas_by_the_setting_do_not_meet(cli: Command, empty_postgres_url: str) -> None:
    """The same role and the same URL; `db upgrade` makes the schema. Neither writes into `public`."""
    of = {
        schema: {"SCAN_ETL_DATABASE__URL": empty_postgres_url, "SCAN_ETL_DATABASE__SCHEMA": schema}
        for schema in ("team_a", "Team-B")
    }
    for schema, variables in of.items():
        assert cli("run", environment={**variables, "SEMGREP_APP_TOKEN": "t"}).exit_code == 5
        assert cli("db", "upgrade", environment=variables).exit_code == 0, schema
        assert cli("db", "check", environment=variables).exit_code == 0
    assert cli("enqueue", "-", stdin="120 1\n120 2", environment=of["team_a"]).exit_code == 0
    queues = [cli("status", "--json", environment=variables).json()["queue"] for variables in of.values()]

    assert [[row["due"] for row in queue] for queue in queues] == [[2], []]
    assert tables(empty_postgres_url) == set()
    assert cli("db", "downgrade", "base", "--yes", environment=of["team_a"]).exit_code == 0
    assert cli("db", "current", environment=of["team_a"]).stdout == "none\n"
    assert cli("db", "check", environment=of["Team-B"]).exit_code == 0


def test_a_schema_is_the_transactions_alone(empty_postgres_url: str) -> None:
    """The next client of a pooled session finds its search_path as it was."""
    address = Address(empty_postgres_url, "scan_etl")
    db.upgrade(address)
    with closing(Database(address)) as database:
        inside = database.run_here(lambda connection: connection.exec_driver_sql("SHOW search_path").scalar())
        driver: Any = database.engine.raw_connection()
        with closing(driver), closing(driver.cursor()) as cursor:
            outside = cursor.execute("SHOW search_path").fetchone()

    assert (inside, outside) == ("scan_etl", ('"$user", public',))


def test_the_sql_names_the_schema(empty_postgres_url: str) -> None:
    """For those who run it by hand; what it makes is what a check wants."""
    address = Address(empty_postgres_url, "by_hand")
    with psycopg.connect(empty_postgres_url, autocommit=True) as server:
        server.execute(db.upgrade_sql(address))

    db.check(address)
    assert tables(empty_postgres_url) == set()


def test_a_schema_that_is_not_there_is_behind(empty_postgres_url: str) -> None:
    """And is made by the upgrade alone."""
    opened = closing(Database(Address(empty_postgres_url, "nowhere")))
    with opened as database, pytest.raises(SchemaBehindError):
        database.run_here(check_schema)


def test_a_version_beside_some_of_our_names_is_not_ours(empty_sqlite_url: str) -> None:
    """It takes all those that a database of before has."""
    execute(empty_sqlite_url, THEIR_VERSION, INSERT.format("0002"))
    execute(empty_sqlite_url, "CREATE TABLE fetch_queue (a INTEGER)")

    assert db.current(empty_sqlite_url) is None
    with pytest.raises(DatabaseError, match="names of ours: fetch_queue"):
        db.upgrade(empty_sqlite_url)
