"""The fixtures that give tests their PostgreSQL, tested on the server itself."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from own_server import ServerUnavailableError
from patience import PATIENCE_SECONDS
from postgres_databases import PostgresDatabases
from postgres_server import WHEEL, PostgresServer, StartPostgres, accepts_connections, find_binaries

SUPPORT = Path(__file__).parents[1] / "support"


def make_table(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (number bigint)")
        connection.execute("INSERT INTO kept VALUES (7)")


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return [name for (name,) in found]


def databases(server: PostgresServer) -> set[str]:
    with psycopg.connect(server.url()) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}


def test_databases_are_isolated(postgres_databases: PostgresDatabases) -> None:
    """A table of one test's database isn't in another's."""
    with postgres_databases.database() as first, postgres_databases.database() as second:
        make_table(first)

        assert tables(first) == ["kept"]
        assert tables(second) == []


def test_database_goes_with_its_clients(postgres_databases: PostgresDatabases) -> None:
    """A database is dropped even while a connection to it is open."""
    with postgres_databases.database() as url:
        connection = psycopg.connect(url)

    assert not accepts_connections(url)
    connection.close()


def test_template_is_filled_once(start_postgres: StartPostgres) -> None:
    """Databases from the template have its tables, and asking for it again fills nothing again."""
    of_run = PostgresDatabases(start_postgres().url(), "run")
    filled = []

    def fill(url: str) -> None:
        filled.append(url)
        make_table(url)

    names = {of_run.template(fill), of_run.template(fill)}
    with of_run.database(template=names.pop()) as url:
        found = tables(url)

    assert found == ["kept"]
    assert len(filled) == 1
    assert not names


def test_failed_template_is_made_anew(start_postgres: StartPostgres) -> None:
    """A template whose filling failed halfway is not used: the next caller starts from nothing."""
    of_run = PostgresDatabases(start_postgres().url(), "run")

    def fail_halfway(url: str) -> None:
        make_table(url)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        of_run.template(fail_halfway)
    with of_run.database(template=of_run.template(make_table)) as url:
        found = tables(url)

    assert found == ["kept"]


def test_drop_all_takes_only_ours(start_postgres: StartPostgres) -> None:
    """What a dead run left on a borrowed server goes, and nothing else does."""
    server = start_postgres()
    ours, theirs = PostgresDatabases(server.url(), "ours"), PostgresDatabases(server.url(), "theirs")
    before = databases(server)
    ours.template(make_table)
    theirs.template(make_table)
    ours.drop_all()

    assert databases(server) == before | {"theirs_template"}


@pytest.mark.parametrize("durable", [True, False])
def test_committed_rows_survive_kill(start_postgres: StartPostgres, durable: bool) -> None:
    """After kill -9 and a restart on the same port, committed rows are there and open ones are not."""
    server = start_postgres(durable=durable)
    make_table(server.url())
    with psycopg.connect(server.url()) as uncommitted:
        uncommitted.execute("INSERT INTO kept VALUES (8)")
        server.kill()

        assert not accepts_connections(server.url())
        with pytest.raises(psycopg.OperationalError):
            uncommitted.commit()
    server.start()
    with psycopg.connect(server.url()) as connection:
        rows = connection.execute("SELECT number FROM kept").fetchall()

    assert rows == [(7,)]


def test_server_dies_with_the_tests() -> None:
    """When the process that started a server is killed, the server ends and its data goes."""
    code = (
        "import postgres_server, sys\n"
        "server = postgres_server.PostgresServer(postgres_server.find_binaries())\n"
        "server.start()\n"
        "print(server.url(), server.data, flush=True)\n"
        "sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=SUPPORT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    url, data = owner.stdout.readline().split()
    answered = accepts_connections(url)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (accepts_connections(url) or Path(data).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert answered
    assert not accepts_connections(url)
    assert not Path(data).exists()


def test_private_binaries_are_copied(tmp_path: Path) -> None:
    """A server runs from a wheel that its user can't read, and the wheel's folder stays as private."""
    package = find_binaries().parents[1]
    for folder in package, package.with_name(f"{WHEEL}.libs"):
        shutil.copytree(folder, tmp_path / folder.name)
    tmp_path.chmod(0o700)
    server = PostgresServer(tmp_path / WHEEL / "pginstall" / "bin")
    server.start()
    answered = accepts_connections(server.url())
    server.stop()

    assert answered
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_chosen_folder_without_server(tmp_path: Path) -> None:
    """A chosen folder without the two programs is refused, not replaced by another."""
    with pytest.raises(ServerUnavailableError, match="holds no initdb and postgres"):
        find_binaries(tmp_path)
