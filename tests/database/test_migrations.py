"""Migrations are code: up, down, and equal to the declared tables, on each dialect."""

import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from command import Command
from patience import PATIENCE_SECONDS
from sqlalchemy import Connection, inspect, text

from etl.database import migrate as db
from etl.database.connection import Database
from etl.database.schema import HEAD, metadata
from etl.database.version import VERSION_TABLE
from etl.errors import DatabaseError


def names(url: str) -> set[str]:
    """Tables and views."""
    with closing(Database(url)) as opened:
        inspector = inspect(opened.engine)
        return {*inspector.get_table_names(), *inspector.get_view_names()} - {VERSION_TABLE}


def test_head_is_the_newest_revision() -> None:
    """The constant that runs compare with is what `migrations/` ends with."""
    assert ScriptDirectory(str(db.migrations_folder())).get_current_head() == HEAD


def test_up_and_down_and_up_again(empty_database_url: str) -> None:
    """Every migration can be taken back, and the tables at head are those of `schema.py`."""
    db.upgrade(empty_database_url)
    db.check(empty_database_url)
    full = names(empty_database_url)
    assert full == {*metadata.tables, *db.dictionary().views}

    db.downgrade(empty_database_url, "base")
    assert names(empty_database_url) == set()
    assert db.current(empty_database_url) is None

    db.upgrade(empty_database_url)
    assert names(empty_database_url) == full


def run_script(url: str) -> None:
    """As a DBA does by hand."""
    script = db.upgrade_sql(url)
    statements = [part for part in script.split(";\n") if part.strip().strip("-") not in ("", "BEGIN", "COMMIT")]
    with closing(Database(url)) as opened:

        def work(connection: object) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement)  # type: ignore[attr-defined]  # a Connection

        opened.run_here(work)


def test_the_offline_sql_makes_the_same_tables(empty_database_url: str) -> None:
    """`db sql` is what a DBA may run by hand instead of `db upgrade`."""
    run_script(empty_database_url)

    db.check(empty_database_url)


COMMENTS = {
    "postgresql": "SELECT table_name, column_name, col_description(table_name::regclass, ordinal_position),"
    " obj_description(table_name::regclass) FROM information_schema.columns WHERE table_schema = 'public'",
    "mysql": "SELECT table_name, column_name, column_comment, table_comment FROM information_schema.columns"
    " JOIN information_schema.tables USING (table_schema, table_name)"
    " WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'",
}


def comments(url: str) -> set[tuple[str, ...]]:
    """A table or view, a column of it, and what the server's catalogue says of the two."""
    with closing(Database(url)) as opened:
        rows = opened.run_here(
            lambda connection: connection.exec_driver_sql(COMMENTS[opened.engine.dialect.name]).all()
        )
    return {tuple(row) for row in rows if row[0] != VERSION_TABLE}


def expected_comments(url: str) -> set[tuple[str, ...]]:
    """On MariaDB views have none."""
    found = db.dictionary()
    entries = {**found.tables, **(found.views if url.startswith("postgresql") else {})}
    return {
        (name, column, said.sentence(), entry.meaning)
        for name, entry in entries.items()
        for column, said in entry.columns.items()
    }


@pytest.mark.parametrize("make", [db.upgrade, run_script])
def test_the_catalogue_holds_the_dictionary(empty_server_url: str, make: Callable[[str], None]) -> None:
    """Whoever looks at a table with the tools of the database reads what its columns mean."""
    make(empty_server_url)

    assert comments(empty_server_url) == expected_comments(empty_server_url)


def test_an_upgrade_mends_comments_and_a_check_does_not_mind_them(server_url: str) -> None:
    """A new version may say in other words what a column means, without a migration."""
    sql = (
        "COMMENT ON COLUMN runs.command IS NULL"
        if server_url.startswith("postgresql")
        else "ALTER TABLE runs COMMENT ''"
    )
    with closing(Database(server_url)) as opened:
        opened.run_here(partial(Connection.exec_driver_sql, statement=sql))

    db.check(server_url)
    assert comments(server_url) != expected_comments(server_url)
    db.upgrade(server_url)
    assert comments(server_url) == expected_comments(server_url)


def test_four_upgrades_at_once_are_one(cli: Command, empty_server_url: str) -> None:
    """Whoever comes second waits, and finds it done."""
    with ExitStack() as stack:
        upgrade = ("db", "upgrade", "--database-url", empty_server_url)
        for process in [stack.enter_context(cli.start(*upgrade)) for _ in range(4)]:
            assert process.wait(PATIENCE_SECONDS) == 0

    db.check(empty_server_url)


def test_mysql_says_that_a_migration_stays_half_done(empty_mysql_url: str) -> None:
    """It can't take back a CREATE. The upgrade that fails and those after it say so, and what to do."""
    version = f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
    with closing(Database(empty_mysql_url)) as opened:
        for statement in (version, "CREATE TABLE scan_meta (a INT)"):
            opened.run_here(partial(Connection.exec_driver_sql, statement=statement))

    for obstacle in ("scan_meta", "scans"):
        with pytest.raises(DatabaseError, match=f"'{obstacle}' already exists.*can't take back"):
            db.upgrade(empty_mysql_url)

    assert db.current(empty_mysql_url) is None


def test_check_finds_a_missing_column(database_url: str) -> None:
    """A table that somebody has changed by hand is named."""
    with closing(Database(database_url)) as opened:
        opened.run_here(
            lambda connection: connection.execute(text("ALTER TABLE schema_drift DROP COLUMN sample_scan_id"))
        )

    with pytest.raises(DatabaseError, match="sample_scan_id"):
        db.check(database_url)


def test_check_leaves_alone_what_somebody_else_has_made(database_url: str) -> None:
    """Tables of a dashboard's own may stand in the same database, and it may want an index on ours."""
    with closing(Database(database_url)) as opened, opened.engine.begin() as connection:
        connection.execute(text("CREATE TABLE team (name INTEGER)"))
        connection.execute(text("CREATE INDEX ix_theirs ON scans (repository_id)"))

    db.check(database_url)

    assert "team" in names(database_url)


def test_what_db_says_can_be_read_by_machines(cli: Command, empty_sqlite_url: str) -> None:
    """One JSON object each."""
    variables = {"SCAN_ETL_DATABASE__URL": empty_sqlite_url}

    said = [
        cli("db", name, "--json", environment=variables).json() for name in ("current", "upgrade", "check", "current")
    ]

    assert [one["revision"] for one in said] == [None, HEAD, HEAD, HEAD]
    assert {one["database"] for one in said} == {empty_sqlite_url.removeprefix("sqlite:///")}


def test_the_dictionary_can_be_read_by_people_and_machines(cli: Command) -> None:
    """It needs no database."""
    shown = cli("db", "dictionary")

    assert cli("db", "dictionary", "--json").json() == asdict(db.dictionary())
    assert "scan_meta: one row a scan, from meta" in shown.stdout
    assert re.search(r"trigger_event +text +what started the scan.* meta\.on +yes", shown.stdout)


def test_a_newer_schema_is_left_alone(cli: Command, database_url: str) -> None:
    """An old scan-etl refuses a database that a newer one has upgraded, and says so."""
    with closing(Database(database_url)) as opened:
        opened.run_here(lambda connection: connection.execute(text("UPDATE scan_etl_version SET version_num = '9999'")))

    outcome = cli("run", environment={"SCAN_ETL_DATABASE__URL": database_url, "SEMGREP_APP_TOKEN": "t"})

    assert outcome.exit_code == 5
    assert "newer than this version knows" in outcome.stderr


def test_a_revision_that_is_not_there_is_said_so(cli: Command, database_url: str) -> None:
    """One to go down to is a wrong argument; one that the database is at comes from another version."""
    variables = {"SCAN_ETL_DATABASE__URL": database_url}

    for target in ("9999", "no such"):
        outcome = cli("db", "downgrade", target, "--yes", environment=variables)
        assert outcome.exit_code == 2
        assert f"can't be taken back to '{target}': Can't locate" in outcome.stderr
        assert "Traceback" not in outcome.stderr
    with closing(Database(database_url)) as opened:
        opened.run_here(lambda connection: connection.execute(text("UPDATE scan_etl_version SET version_num = '9999'")))
    outcome = cli("db", "upgrade", environment=variables)

    assert outcome.exit_code == 5
    assert "can't be upgraded: Can't locate revision identified by '9999'" in outcome.stderr


def test_a_folder_that_is_not_there_is_named_without_secrets(tmp_path: Path) -> None:
    """The query of a URL may hold one."""
    with pytest.raises(DatabaseError, match="there is no folder") as caught:
        db.upgrade(f"sqlite:///{tmp_path}/no/scans.db?password=hunter2")

    assert "hunter2" not in str(caught.value)


def test_sqlite_makes_itself_and_its_commands_say_what_is_missing(cli: Command) -> None:
    """A run creates the file; `status` and `db check` don't, and name the command that does."""
    token = {"SEMGREP_APP_TOKEN": "t"}

    assert cli("status", environment=token).exit_code == 5
    checked = cli("db", "check", environment=token).stderr
    assert f"{cli.folder}/scans.db: is this the place? If it is, run `scan-etl db upgrade`" in checked
    assert cli("db", "current", environment=token).stdout == "none\n"
    assert not (cli.folder / "scans.db").exists()
    assert cli("enqueue", "-", stdin="120 1", environment=token).exit_code == 0
    assert cli("db", "check", environment=token).exit_code == 0
    assert cli("db", "current", environment=token).stdout == f"{HEAD}\n"
    assert "CREATE TABLE scans" in cli("db", "sql", environment=token).stdout
    assert cli("db", "downgrade", "base", "--yes", environment=token).exit_code == 0
    assert cli("db", "check", environment=token).exit_code == 5
