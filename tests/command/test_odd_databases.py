"""Every command on databases, roles and servers whose settings are others than ours."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from command import Command
from every_command import still_sandbox, use
from login_roles import execute
from mariadb_server import MariadbServer
from mysql_databases import MysqlDatabases
from postgres_databases import PostgresDatabases
from psycopg import sql
from sandbox_thread import RunningSandbox
from scan_rows import SCAN_TABLES
from sqlalchemy import select
from sqlalchemy.engine import make_url
from stored_rows import environment, loaded
from tables_of import ask

from etl.database.schema import dead_letters, runs, scan_listings

pytestmark = pytest.mark.slow

OF_ROLE = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "latin1",
    "datestyle": "German",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_nestloop": "off",
    "extra_float_digits": "-15",
    "intervalstyle": "sql_standard",
    "lock_timeout": "5s",
    "quote_all_identifiers": "on",
    "search_path": "public, pg_catalog",
    "standard_conforming_strings": "off",
    "statement_timeout": "30s",
    "timezone": "America/St_Johns",
    "transform_null_equals": "on",
}
OF_ENVIRONMENT = {
    "PGCLIENTENCODING": "latin1",
    "PGDATESTYLE": "SQL, DMY",
    "PGOPTIONS": "-c IntervalStyle=iso_8601 -c default_transaction_isolation=serializable",
    "PGTZ": "Asia/Kathmandu",
}


def test_whatever_role_and_environment_say(cli: Command, empty_postgres_url: str, empty_sqlite_url: str) -> None:
    """Each value is what it is where nobody has set anything."""
    with psycopg.connect(empty_postgres_url) as connection:
        names = map(sql.Identifier, (str(make_url(empty_postgres_url).username), connection.info.dbname))
        role = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(*names)
        for name, value in OF_ROLE.items():
            values = sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
            connection.execute(role + sql.SQL(" SET {} = {}").format(sql.Identifier(name), values))
    with still_sandbox() as sandbox:
        found = use(cli, sandbox, empty_postgres_url, **OF_ENVIRONMENT)

        assert found == use(cli, sandbox, empty_sqlite_url)


def test_a_database_without_an_encoding(
    cli: Command, postgres_databases: PostgresDatabases, empty_sqlite_url: str
) -> None:
    """It takes every text as it is, and gives it back."""
    with postgres_databases.database(encoding="SQL_ASCII") as url, still_sandbox() as sandbox:
        found = use(cli, sandbox, url)

        assert found == use(cli, sandbox, empty_sqlite_url)


LISTED = [column for column in scan_listings.c if column.name != "details_gone_at"]


def narrow(rows: list[dict[str, Any]]) -> set[int]:
    """The scans in whose rows all characters are of LATIN1."""
    return {row["scan_id"] for row in rows if str(row).encode("latin-1", "replace").decode("latin-1") == str(row)}


def synced(cli: Command, sandbox: RunningSandbox, url: str) -> dict[str, list[dict[str, Any]]]:
    for words in (("db", "upgrade"), ("sync",)):
        cli(*words, environment=environment(sandbox, url))
    return {**loaded(url), "listed": ask(url, select(*LISTED).order_by(scan_listings.c.scan_id))}


def test_a_database_that_lacks_characters(
    cli: Command, postgres_databases: PostgresDatabases, empty_sqlite_url: str
) -> None:
    """The scans that have them are dead letters that say so; all others are as they should be."""
    with postgres_databases.database(encoding="LATIN1") as url, still_sandbox() as sandbox:
        found, right = synced(cli, sandbox, url), synced(cli, sandbox, empty_sqlite_url)
        dead = {row.scan_id: row.error for row in ask(url, select(dead_letters)) if row.error_kind == "refused_row"}
    storable = narrow(right["scan_meta"])

    assert dead
    assert dead.keys() == {row["scan_id"] for row in right["scans"]} - storable
    assert all('has no equivalent in encoding "LATIN1"' in error for error in dead.values())
    for table in SCAN_TABLES:
        assert found[table.name] == [row for row in right[table.name] if row["scan_id"] in storable]
    assert found["listed"] == right["listed"]


def test_a_run_is_written_down_whatever_its_files_are_called(
    cli: Command, postgres_databases: PostgresDatabases
) -> None:
    """Where the database lacks a character, its number stands for it; and `doctor` warns of such a database."""
    (cli.folder / "läden📦.txt").write_text("120 2\n")
    with postgres_databases.database(encoding="LATIN1") as url, still_sandbox() as sandbox:
        variables = environment(sandbox, url)
        cli("db", "upgrade", environment=variables)
        result = cli("run", "läden📦.txt", environment=variables)
        examined = cli("doctor", "--json", environment=variables)
        [(inputs,)] = ask(url, select(runs.c.inputs))

    assert (result.exit_code, inputs) == (0, ["l\\xe4den\\U0001f4e6.txt"])
    [found] = [finding for finding in examined.json()["findings"] if finding["name"] == "database"]
    assert (examined.exit_code, found["warning"]) == (0, True)
    assert "in LATIN1" in found["sentence"]


ODD_MARIADB = (
    "--sql-mode=ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,REAL_AS_FLOAT",
    "--autocommit=0",
    "--character-set-server=ucs2",
    "--completion-type=CHAIN",
    "--default-storage-engine=Aria",
    "--div-precision-increment=0",
    "--group-concat-max-len=10",
    "--innodb-default-row-format=compact",
    "--innodb-force-primary-key=1",
    "--innodb-snapshot-isolation=1",
    "--innodb-strict-mode=0",
    "--lower-case-table-names=1",
    "--max-join-size=100",
    "--sql-safe-updates=1",
    "--transaction-isolation=SERIALIZABLE",
)


@pytest.fixture
def odd_mysql_url() -> Iterator[str]:
    server = MariadbServer(*ODD_MARIADB)
    server.start()
    try:
        execute(server.url(), "SET GLOBAL sql_select_limit = 2")
        with MysqlDatabases(server.url(), "odd").database() as url:
            yield url
    finally:
        server.stop()


@pytest.mark.mysql
def test_whatever_the_configuration_of_mariadb_says(cli: Command, odd_mysql_url: str, empty_sqlite_url: str) -> None:
    """Each value is what it is where nobody has set anything."""
    with still_sandbox() as sandbox:
        found = use(cli, sandbox, odd_mysql_url)

        assert found == use(cli, sandbox, empty_sqlite_url)
