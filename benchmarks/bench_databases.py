"""New, empty databases with the tables in place, for one measurement each."""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from etl.database.migrate import upgrade

# The server is the one that the tests start for themselves.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from postgres_databases import PostgresDatabases, plain_url
from postgres_server import PostgresServer, find_binaries

NewDatabase = Callable[[], AbstractContextManager[str]]
"""Gives the URL of a new database, which is gone when the block ends."""


@contextmanager
def sqlite_database() -> Iterator[str]:
    """The URL of a new SQLite file with the schema at head."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/scans.db"
        upgrade(url)
        yield url


@contextmanager
def postgresql_databases() -> Iterator[NewDatabase]:
    """New databases on SCAN_ETL_TEST_POSTGRES_URL if it is set, else on a server of our own."""
    prefix = f"scan_etl_bench_{secrets.token_hex(4)}"
    given = os.environ.get("SCAN_ETL_TEST_POSTGRES_URL")
    with nullcontext(plain_url(given)) if given else _own_server() as server_url:
        databases = PostgresDatabases(server_url, prefix)

        @contextmanager
        def new_database() -> Iterator[str]:
            with databases.database(template=databases.template(upgrade)) as url:
                yield url

        try:
            yield new_database
        finally:
            databases.drop_all()


@contextmanager
def _own_server() -> Iterator[str]:
    server = PostgresServer(find_binaries())
    try:
        server.start()
        yield server.url()
    finally:
        server.stop()
