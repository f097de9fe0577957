"""Fixtures that every test file may use: databases of one test each, a server to crash, the command."""

import gc
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import database_servers
import hypothesis
import pytest
from chromium import Tab, chromium_problem, open_tab
from command import BARE_ENVIRONMENT, Command
from database_servers import Address, DatabaseServers
from dbt_package import dbt_problem
from fork_server import ForkServer
from mariadb_server import mariadb_problem
from mysql_databases import MysqlDatabases, run_script
from pgbouncer_server import pgbouncer_problem
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer, StartPostgres, find_binaries
from sqlalchemy.engine import make_url

from etl.database.connection import Database
from etl.database.migrate import upgrade, upgrade_sql

# What tests share has asserts of its own, which should show what they compared too.
pytest.register_assert_rewrite("flatten_answers", "walked_lists", "worker_processes", "worker_scenes")

# Our servers are on loopback, without TLS. To read the system's authorities takes 0.02 s a connection to MariaDB.
os.environ["SSL_CERT_FILE"] = os.devnull

# No time limit for one example, nor for making one: the machine is shared, and the tests run side by side.
hypothesis.settings.register_profile("scan-etl", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("scan-etl")

_SERVERS = pytest.StashKey[DatabaseServers]()
_ADDRESS = pytest.StashKey[Address]()
SLOW_AT_ONCE = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres-bin",
        type=Path,
        metavar="DIR",
        help="the folder with the initdb and postgres to test with, instead of the wheel's",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SERVERS] = DatabaseServers(config.getoption("--postgres-bin"))
    # What a shell starts in the background ignores Ctrl-C, and so would the commands that the tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """To look for garbage among what thousands of tests consist of took a quarter of their time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called in the main process for each xdist worker: all of them share its servers."""
    stash = node.config.stash
    if _ADDRESS not in stash:
        stash[_ADDRESS] = stash[_SERVERS].listen()
    node.workerinput["servers"] = stash[_ADDRESS]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_SERVERS].close()


def pytest_report_header() -> list[str]:
    return list(_problems().values())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Said again where nobody overlooks it, and where `-q` doesn't hide it."""
    for problem in _problems().values():
        terminalreporter.write_line(problem)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n logical` three more than hardware threads: a worker waits for half of its time."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) + 3


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a server, so that `-m postgresql` runs it all against another version. Put them in order."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        chosen = {_parameters(item).get(name) for name in BY_DIALECT}
        if names & {"postgres_databases", "start_postgres"} or "postgresql" in chosen:
            item.add_marker(pytest.mark.postgresql)
        if "mysql_databases" in names or "mysql" in chosen:
            item.add_marker(pytest.mark.mysql)
        if "promtool" in names:
            item.add_marker(pytest.mark.promtool)
        if "tab" in names:
            item.add_marker(pytest.mark.chromium)
    missing = list(_problems())
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items[:] = _shared_out(items, getattr(config, "workerinput", {}).get("workercount", 1))


def _shared_out(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in the order in which each worker, at first, gets an equal share of them. The slow ones come first, for
    at the end they would leave all workers but one idle, and go to two: each of them has many processes of its own."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = iter([item for item in items if not item.get_closest_marker("slow")])
    with_slow = min(SLOW_AT_ONCE, workers)
    shares, left = [], len(items)
    for number in range(workers):
        share = slow[number::with_slow] if number < with_slow else []
        size = left // (workers - number)
        shares += [*share, *islice(others, max(0, size - len(share)))]
        left -= size
    return [*shares, *others]


def _parameters(item: pytest.Item) -> Mapping[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A lone surrogate in a failure's text can't travel between xdist's processes: the run would just crash."""
    report = yield
    return json.loads(json.dumps(report, ensure_ascii=False).encode(errors="replace"))


def _problems() -> dict[str, str]:
    """By marker, why its tests don't run here. In CI they do: where a program is missing, they fail."""
    if os.environ.get("CI") == "true":
        return {}
    is_mysql_given = bool(os.environ.get("SCAN_ETL_TEST_MYSQL_URL"))
    found = {
        "mysql": None if is_mysql_given else mariadb_problem(),
        "pgbouncer": pgbouncer_problem(),
        "promtool": _promtool_problem(),
        "chromium": chromium_problem(),
        "dbt": dbt_problem(),
    }
    return {marker: problem for marker, problem in found.items() if problem}


def _promtool_problem() -> str | None:
    if shutil.which("promtool"):
        return None
    return "The tests of metrics and alerts by promtool are left out: it is in Debian's package prometheus."


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of Prometheus' own program to check metrics and rules."""
    found = shutil.which("promtool")
    assert found, "promtool is missing: it is in Debian's package prometheus"
    return found


def _databases(config: pytest.Config, kind: str) -> Any:
    """The server of this run: asked for by nobody, it never starts."""
    if worker := getattr(config, "workerinput", None):
        return database_servers.ask(worker["servers"], kind)
    return config.stash[_SERVERS].ask(kind)


@pytest.fixture(scope="session")
def postgres_databases(pytestconfig: pytest.Config) -> PostgresDatabases:
    """The PostgreSQL server of this run, where tests get databases of their own."""
    databases: PostgresDatabases = _databases(pytestconfig, "postgresql")
    return databases


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


@pytest.fixture(scope="session")
def mysql_databases(pytestconfig: pytest.Config) -> MysqlDatabases:
    """The MariaDB or MySQL server of this run, where tests get databases of their own."""
    databases: MysqlDatabases = _databases(pytestconfig, "mysql")
    return databases


@pytest.fixture
def empty_mysql_url(mysql_databases: MysqlDatabases) -> Iterator[str]:
    """A new MariaDB or MySQL database without tables."""
    with mysql_databases.database() as url:
        yield url


@pytest.fixture(scope="session")
def mysql_schema(mysql_databases: MysqlDatabases) -> Iterator[str]:
    """What `db sql` gives, which makes the same tables as a migration in a third of the time. The days of the calendar,
    which take the server half of that, are copied from a database that has them."""
    script = upgrade_sql(mysql_databases.server_url)
    with mysql_databases.database() as url:
        run_script(url, script)
        calendar = f"INSERT INTO calendar SELECT * FROM {make_url(url).database}.calendar;"  # noqa: S608 - a name of our own
        yield re.sub("^INSERT INTO calendar SELECT .*;$", calendar, script, count=1, flags=re.MULTILINE)


@pytest.fixture
def mysql_url(empty_mysql_url: str, mysql_schema: str) -> str:
    """A new MariaDB or MySQL database with the schema at head."""
    run_script(empty_mysql_url, f"SET unique_checks = 0, foreign_key_checks = 0;\n{mysql_schema}")
    return empty_mysql_url


_SERVER = {"postgresql": "postgres_url", "mysql": "mysql_url"}
_EMPTY_SERVER = {"postgresql": "empty_postgres_url", "mysql": "empty_mysql_url"}
BY_DIALECT = {
    "database_url": {"sqlite": "sqlite_url", **_SERVER},
    "empty_database_url": {"sqlite": "empty_sqlite_url", **_EMPTY_SERVER},
    "server_url": _SERVER,
    "empty_server_url": _EMPTY_SERVER,
}
"""The fixtures that make a test run once on each dialect, and the fixture that each of their parameters stands for."""


def _url_by_dialect(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(BY_DIALECT[request.fixturename or ""][request.param])
    return url


@pytest.fixture(params=BY_DIALECT["database_url"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database with the schema at head: the test runs once on each dialect."""
    return _url_by_dialect(request)


@pytest.fixture(params=BY_DIALECT["empty_database_url"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A new database without tables: the test runs once on each dialect."""
    return _url_by_dialect(request)


@pytest.fixture(params=BY_DIALECT["server_url"])
def server_url(request: pytest.FixtureRequest) -> str:
    """A new database on a server with the schema at head: the test runs once on each dialect that has servers."""
    return _url_by_dialect(request)


@pytest.fixture(params=BY_DIALECT["empty_server_url"])
def empty_server_url(request: pytest.FixtureRequest) -> str:
    """A new database on a server without tables: the test runs once on each dialect that has servers."""
    return _url_by_dialect(request)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A new database with the schema at head, opened: the test runs once on each dialect."""
    with closing(Database(database_url)) as opened:
        yield opened


@pytest.fixture
def mysql(mysql_url: str) -> Iterator[Database]:
    """Likewise, on MariaDB or MySQL alone."""
    with closing(Database(mysql_url)) as opened:
        yield opened


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


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with closing(ForkServer(BARE_ENVIRONMENT)) as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, fork_server: ForkServer) -> Command:
    """The real command: `cli("run", "pairs.csv")` gives its `Outcome`, `cli.start(...)` a running process."""
    return Command(tmp_path, fork_server)


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    """A tab of a real Chromium."""
    if problem := chromium_problem():
        pytest.fail(problem)
    async with open_tab(tmp_path / "chromium") as opened:
        yield opened
