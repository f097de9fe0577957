"""Migrations are code: up, down, and equal to the declared tables, on each dialect."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
from etl.errors import DatabaseError


def names(url: str) -> set[str]:
    """Tables and views."""
    with closing(Database(url)) as opened:
        inspector = inspect(opened.engine)
        return {*inspector.get_table_names(), *inspector.get_view_names()} - {"alembic_version"}


def test_head_is_the_newest_revision() -> None:
    """The constant that runs compare with is what `migrations/` ends with."""
    assert ScriptDirectory(str(db.migrations_folder())).get_current_head() == HEAD


def test_up_and_down_and_up_again(empty_database_url: str) -> None:
    """Every migration can be taken back, and the tables at head are those of `schema.py`."""
    db.upgrade(empty_database_url)
    db.check(empty_database_url)
    full = names(empty_database_url)
    assert full == {*metadata.tables, "bi_scan", "bi_scan_daily", "bi_coverage"}

    db.downgrade(empty_database_url, "base")
    assert names(empty_database_url) == set()
    assert db.current(empty_database_url) is None

    db.upgrade(empty_database_url)
    assert names(empty_database_url) == full


def test_the_offline_sql_makes_the_same_tables(empty_database_url: str) -> None:
    """`db sql` is what a DBA may run by hand instead of `db upgrade`."""
    script = db.upgrade_sql(empty_database_url)
    statements = [part for part in script.split(";\n") if part.strip().strip("-") not in ("", "BEGIN", "COMMIT")]
    with closing(Database(empty_database_url)) as opened:

        def work(connection: object) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement)  # type: ignore[attr-defined]  # a Connection

        opened.run_here(work)

    db.check(empty_database_url)


def test_four_upgrades_at_once_are_one(empty_server_url: str) -> None:
    """Whoever comes second waits, and finds it done."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(db.upgrade, empty_server_url) for _ in range(4)]:
            done.result(PATIENCE_SECONDS)

    db.check(empty_server_url)


def test_mysql_says_that_a_migration_stays_half_done(empty_mysql_url: str) -> None:
    """It can't take back a CREATE. The upgrade that fails and those after it say so, and what to do."""
    with closing(Database(empty_mysql_url)) as opened:
        opened.run_here(partial(Connection.exec_driver_sql, statement="CREATE TABLE scan_meta (a INT)"))

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


def test_a_newer_schema_is_left_alone(cli: Command, database_url: str) -> None:
    """An old scan-etl refuses a database that a newer one has upgraded, and says so."""
    with closing(Database(database_url)) as opened:
        opened.run_here(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))

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
        opened.run_here(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
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
    assert "scan-etl db upgrade" in cli("db", "check", environment=token).stderr
    assert cli("db", "current", environment=token).stdout == "none\n"
    assert not (cli.folder / "scans.db").exists()
    assert cli("enqueue", "-", stdin="120 1", environment=token).exit_code == 0
    assert cli("db", "check", environment=token).exit_code == 0
    assert cli("db", "current", environment=token).stdout == f"{HEAD}\n"
    assert "CREATE TABLE scans" in cli("db", "sql", environment=token).stdout
    assert cli("db", "downgrade", "base", "--yes", environment=token).exit_code == 0
    assert cli("db", "check", environment=token).exit_code == 5
