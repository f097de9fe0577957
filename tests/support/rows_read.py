"""How much a database reads for a piece of work."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Connection, text


@contextmanager
def _postgresql(connection: Connection, *tables: str) -> Iterator[Callable[[], int]]:
    """Rows, index entries and blocks of these tables."""
    statement = text(
        "SELECT sum(pg_stat_get_xact_tuples_returned(place) + pg_stat_get_xact_tuples_fetched(place)"
        " + pg_stat_get_xact_blocks_fetched(place))"
        " FROM (SELECT oid AS place FROM pg_class WHERE relname = ANY(:tables)"
        " UNION ALL SELECT indexrelid FROM pg_index JOIN pg_class ON oid = indrelid WHERE relname = ANY(:tables)"
        ") AS places"
    )
    yield lambda: int(connection.execute(statement, {"tables": list(tables)}).scalar_one())


@contextmanager
def _sqlite(connection: Connection, *_tables: str) -> Iterator[Callable[[], int]]:
    """Tens of steps of its virtual machine: a row takes about as many."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(count, 10)
    yield lambda: steps
    driver.set_progress_handler(None, 0)


@contextmanager
def _mysql(connection: Connection, *_tables: str) -> Iterator[Callable[[], int]]:
    """Rows and index entries."""
    statement = text("SHOW SESSION STATUS LIKE 'Handler_read%'")
    yield lambda: sum(int(row[1]) for row in connection.execute(statement))


_BY_DIALECT = {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mysql}


def counting_reads(connection: Connection, *tables: str) -> AbstractContextManager[Callable[[], int]]:
    """What tells how much has been read of these tables since the block began; on SQLite and MariaDB, of all tables."""
    return _BY_DIALECT[connection.dialect.name](connection, *tables)
