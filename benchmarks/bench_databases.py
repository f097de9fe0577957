"""New, empty databases with the tables in place, for one measurement each."""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from etl.database import upgrade

# The server is the one that the tests start for themselves.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from postgres_databases import PostgresDatabases, plain_url  # noqa: E402 - after the path
from postgres_server import PostgresServer, find_binaries  # noqa: E402

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
    server = None if given else PostgresServer(find_binaries())
    try:
        if server:
            server.start()
        databases = PostgresDatabases(plain_url(given) if given else server.url(), prefix)

        @contextmanager
        def new_database() -> Iterator[str]:
            with databases.database(template=databases.template(upgrade)) as url:
                yield url

        yield new_database
        databases.drop_all()
    finally:
        if server:
            server.stop()
