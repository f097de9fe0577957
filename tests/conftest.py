"""Fixtures that every test file may use: databases of one test each, a server to crash, the command."""

import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from command import Command
from postgres_databases import PostgresDatabases, plain_url
from postgres_server import (
    PostgresServer,
    PostgresUnavailableError,
    StartPostgres,
    accepts_connections,
    find_binaries,
)

from etl.database import upgrade

# No time limit for one example, nor for making one: the machine is shared, and the tests run side by side.
hypothesis.settings.register_profile("scan-etl", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("scan-etl")

_DATABASES = pytest.StashKey[PostgresDatabases]()
_SERVER = pytest.StashKey[PostgresServer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres-bin",
        type=Path,
        metavar="DIR",
        help="the folder with the initdb and postgres to test with, instead of the wheel's",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called in the main process for each xdist worker: all of them share its server."""
    databases = _databases(node.config)
    node.workerinput["postgres"] = (databases.server_url, databases.prefix)


def pytest_unconfigure(config: pytest.Config) -> None:
    if databases := config.stash.get(_DATABASES, None):
        server = config.stash.get(_SERVER, None)
        # Somebody else's server gets back what a test that died left there; our own just goes.
        server.stop() if server else databases.drop_all()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs PostgreSQL, so that `-m postgresql` runs it all against another version."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        chosen = (parameters.get(name) for name in ("database_url", "empty_database_url"))
        if "postgres_databases" in names or "start_postgres" in names or "postgresql" in chosen:
            item.add_marker(pytest.mark.postgresql)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A lone surrogate in a failure's text can't travel between xdist's processes: the run would just crash."""
    report = yield
    return json.loads(json.dumps(report, ensure_ascii=False).encode(errors="replace"))


def _databases(config: pytest.Config) -> PostgresDatabases:
    """The server of this run: asked for by nobody, it never starts."""
    if worker := getattr(config, "workerinput", None):
        return PostgresDatabases(*worker["postgres"])
    if _DATABASES not in config.stash:
        prefix = f"scan_etl_{secrets.token_hex(4)}"
        try:
            config.stash[_DATABASES] = PostgresDatabases(_server_url(config), prefix)
        except PostgresUnavailableError as exc:
            pytest.exit(str(exc), returncode=pytest.ExitCode.USAGE_ERROR)
    return config.stash[_DATABASES]


def _server_url(config: pytest.Config) -> str:
    given = os.environ.get("SCAN_ETL_TEST_POSTGRES_URL")
    if given and not config.getoption("--postgres-bin"):
        url = plain_url(given)
        if not accepts_connections(url):
            raise PostgresUnavailableError("No server answers at the SCAN_ETL_TEST_POSTGRES_URL that is set.")
        return url
    server = PostgresServer(find_binaries(config.getoption("--postgres-bin")))
    server.start()
    config.stash[_SERVER] = server
    return server.url()


@pytest.fixture(scope="session")
def postgres_databases(pytestconfig: pytest.Config) -> PostgresDatabases:
    """The PostgreSQL server of this run, where tests get databases of their own."""
    return _databases(pytestconfig)


@pytest.fixture
def empty_postgres_url(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """A new PostgreSQL database without tables."""
    with postgres_databases.database() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_databases: PostgresDatabases) -> str:
    return postgres_databases.template(upgrade)


@pytest.fixture
def postgres_url(postgres_databases: PostgresDatabases, postgres_template: str) -> Iterator[str]:
    """A new PostgreSQL database with the schema at head."""
    with postgres_databases.database(template=postgres_template) as url:
        yield url


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """An SQLite database without tables: a file that isn't there yet."""
    return f"sqlite:///{tmp_path / 'scans.db'}"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "scans.db"
    upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def sqlite_url(empty_sqlite_url: str, sqlite_template: Path) -> str:
    """A new SQLite file with the schema at head."""
    shutil.copy(sqlite_template, empty_sqlite_url.removeprefix("sqlite:///"))
    return empty_sqlite_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database with the schema at head: the test runs once on each dialect."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A new database without tables: the test runs once on each dialect."""
    name = {"sqlite": "empty_sqlite_url", "postgresql": "empty_postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def start_postgres(pytestconfig: pytest.Config) -> Iterator[StartPostgres]:
    """Starts servers for this test alone, which it may `kill()` and `start()` again."""
    with ExitStack() as servers:

        def start(*, durable: bool = False) -> PostgresServer:
            server = PostgresServer(find_binaries(pytestconfig.getoption("--postgres-bin")), durable=durable)
            servers.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    """The real command: `cli("run", "pairs.csv")` gives its `Outcome`, `cli.start(...)` a running process."""
    return Command(tmp_path)
