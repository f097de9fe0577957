"""`[database] url_file`: a password that changes needs no restart, and one that is wrong for a moment no new start."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command import Command
from fork_server import ForkServer
from login_roles import LoginRole, execute, login_role
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import insert, select
from tables_of import ask, change, count
from worker_processes import Workers, wait_until

from etl.config.urls import Address
from etl.database.connection import Database
from etl.database.schema import fetch_queue, scans, workers
from etl.errors import DatabaseAwayError

ALL_RIGHTS = {
    "postgresql": "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
    "mysql": "GRANT ALL ON {database}.* TO {role}",
}
PG_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"


@pytest.fixture
def role(server_url: str) -> Iterator[LoginRole]:
    """One that may do all with the tables of a database at head. Its first password is `first-secret`."""
    with login_role(server_url, "app", "first-secret", ALL_RIGHTS[server_url.partition(":")[0]]) as made:
        yield made


def write(file: Path, text: str) -> Path:
    """In one go, as those who rotate passwords do."""
    beside = file.with_suffix(".new")
    beside.write_text(text + "\n")
    return beside.replace(file)


def end_sessions(role: LoginRole) -> None:
    """As a server does that is restarted."""
    if role.owner_url.startswith("postgresql"):
        execute(role.owner_url, PG_END.format(role=role.name))
    else:
        execute(role.owner_url, f"KILL USER {role.in_sql}")


def pair_of(line: str) -> dict[str, int]:
    deployment_id, scan_id = map(int, line.split())
    return {"deployment_id": deployment_id, "scan_id": scan_id}


def works(database: Database) -> bool:
    return bool(database.run_here(lambda connection: connection.execute(select(1)).scalar_one()))


def test_each_new_connection_reads_the_file_anew(role: LoginRole, tmp_path: Path) -> None:
    """A password that the file doesn't have yet is waited for; no error quotes one."""
    file = write(tmp_path / "url", role.url("first-secret"))
    with closing(Database(Address(role.url("first-secret"), url_file=str(file)))) as database:
        assert works(database)
        role.change_password("second-secret")
        assert works(database)
        database.engine.dispose()
        with pytest.raises(DatabaseAwayError) as refused:
            works(database)
        write(file, role.url("second-secret"))
        assert works(database)

    assert "-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "database.url_file: the file can't be read (No such file or directory)"),
        ("", "database.url_file: the file is empty"),
        ("postgresql://u:hunter2@ho@st/db", "database.url_file: what the file holds is no usable URL; an @ in a user"),
        ("sqlite:///hunter2.db", "database.url_file: the file names another kind of database than at the start"),
    ],
)
def test_a_file_that_is_wrong_for_a_moment_is_waited_for(
    role: LoginRole, tmp_path: Path, text: str | None, said: str
) -> None:
    """As one is that is just being written. It isn't quoted."""
    file = write(tmp_path / "url", role.url("first-secret"))
    with closing(Database(Address(role.url("first-secret"), url_file=str(file)))) as database:
        file.unlink() if text is None else write(file, text)
        with pytest.raises(DatabaseAwayError, match=f"^{re.escape(said)}") as refused:
            works(database)
        write(file, role.url("first-secret"))
        assert works(database)

    assert "hunter2" not in str(refused.value)


def test_commands_find_the_database_by_the_file(cli: Command, server_url: str) -> None:
    """All of them, and an upgrade; what they print has no password."""
    password = server_url.split(":")[2].partition("@")[0]
    file = write(cli.folder / "database-url", server_url)
    variables = {"SCAN_ETL_DATABASE__URL_FILE": str(file)}

    outcomes = [
        cli(*words, environment=variables)
        for words in (("db", "upgrade"), ("db", "check"), ("status", "--json"), ("config", "show"), ("doctor",))
    ]

    assert [outcome.exit_code for outcome in outcomes[:4]] == [0, 0, 0, 0]
    assert "database.url_file" in outcomes[3].stdout
    for outcome in outcomes:
        assert password not in outcome.stdout + outcome.stderr


def test_a_wrong_password_in_the_file_ends_a_command(cli: Command, role: LoginRole) -> None:
    """With exit code 5, at once, and without the password."""
    file = write(cli.folder / "database-url", role.url("wrong-secret"))

    outcome = cli("status", environment={"SCAN_ETL_DATABASE__URL_FILE": str(file)})

    assert outcome.exit_code == 5
    assert "wrong-secret" not in outcome.stderr


def test_a_worker_outlives_its_password(role: LoginRole, tmp_path: Path, fork_server: ForkServer) -> None:
    """The server ends its connection while the file still has the old one; it goes on when the file has the new one."""
    file = write(tmp_path / "database-url", role.url("first-secret"))
    farm = Workers(tmp_path, fork_server)
    with running_sandbox(finished_world(20)) as sandbox:
        try:
            worker = farm.start_worker(sandbox.environment(SCAN_ETL_DATABASE__URL_FILE=str(file)))
            wait_until("a worker at work", lambda: farm.all_well() and count(role.owner_url, workers))
            role.change_password("second-secret")
            end_sessions(role)
            wait_until("it says so", lambda: farm.all_well() and worker.said("database unavailable"))
            write(file, role.url("second-secret"))
            change(
                role.owner_url,
                insert(fetch_queue).values([pair_of(line) for line in sandbox.pairs_text().splitlines()]),
            )
            wait_until("all fetched", lambda: farm.all_well() and count(role.owner_url, scans) == 20)
        finally:
            farm.close()

    assert ask(role.owner_url, select(fetch_queue.c.scan_id)) == []
    assert "-secret" not in worker.log()
