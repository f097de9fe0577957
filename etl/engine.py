"""Connections: a URL becomes an engine with the settings that we rely on, and its drivers' errors become ours."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from etl.config import mask_url
from etl.errors import ConfigError, DatabaseAwayError, DatabaseError, ItemError

BUSY_TIMEOUT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 10
HUNG_SECONDS = 10
"""How long a client may be silent in the middle of a transaction before the server ends it."""


def parse_url(url: str) -> URL:
    """The URL with the driver we use. ConfigError for a database we don't support."""
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigError("database.url is not a database URL, e.g. sqlite:///scans.db") from error
    match parsed.drivername:
        case "sqlite":
            return parsed
        case "postgresql" | "postgres" | "postgresql+psycopg":
            return parsed.set(drivername="postgresql+psycopg")
        case "mysql" | "mariadb" | "mysql+pymysql" | "mariadb+pymysql":
            return parsed.set(drivername="mysql+pymysql")
    raise ConfigError(f"database.url: '{parsed.drivername}' is not supported; use sqlite, postgresql or mysql")


def place(url: str) -> str:
    """Where the rows are, for people: the file of an SQLite database, else the URL without its password."""
    path = sqlite_path(url)
    return str(path.absolute()) if path is not None else mask_url(url)


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL; None for other databases and for SQLite in memory."""
    parsed = parse_url(url)
    is_file = parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(parsed.database or "") if is_file else None


def make_engine(url: str) -> Engine:
    """An engine that connects on first use, with the settings that make its transactions and its times real.

    ConfigError where the driver isn't installed.
    """
    parsed = parse_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            engine = _engine(parsed, {"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        case "mysql":
            # With MySQL's REPEATABLE READ a lease would lock the gaps between rows, into which others insert.
            engine = _engine(parsed, _mysql_arguments(), isolation_level="READ COMMITTED")
            event.listen(engine, "connect", _prepare_mysql)
        case _:
            engine = _engine(parsed, _postgresql_arguments())
            event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _engine(url: URL, connect_args: Mapping[str, Any], **options: Any) -> Engine:
    return create_engine(url, pool_size=1, max_overflow=1, connect_args=dict(connect_args), **options)


def _postgresql_arguments() -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": "scan-etl",
        # A prepared statement may keep its plan from when the queue was short: a worker that had waited at an empty
        # one then took 5 s for each lease from 20,000 rows, until the server had counted them.
        "prepare_threshold": None,
    }


def _mysql_arguments() -> dict[str, Any]:
    try:
        from pymysql.converters import conversions  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise ConfigError("database.url: MySQL and MariaDB need a driver: pip install 'scan-etl[mysql]'") from error
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": CONNECT_TIMEOUT_SECONDS,
        "program_name": "scan-etl",
        "charset": "utf8mb4",
        "sql_mode": "TRADITIONAL",  # or a text that is too long would be cut
        # A worker that hangs mustn't hold its locks against all others. MySQL, which passes over the comment, has no
        # such limit.
        "init_command": f"SET time_zone = '+00:00' /*M! , idle_transaction_timeout = {HUNG_SECONDS} */",
        # PyMySQL itself drops the offset.
        "conv": {**conversions, datetime: lambda instant, _: f"'{_instant_text(instant)}'"},
    }


def _prepare_mysql(connection: Any, _record: object) -> None:
    """Somebody else's port may never say hello: only that has a time limit, a statement may take as long as it does."""
    connection._read_timeout = None  # noqa: SLF001 - PyMySQL has one for both, and no other way to lift it


def _prepare_postgresql(connection: Any, _record: object) -> None:
    """A worker that hangs, or whose machine is gone, mustn't hold its locks against all others: on the row of a
    token each of them would wait for hours, until the server misses its client."""
    connection.execute("SET timezone = 'UTC'")  # in another zone the driver takes 2 us more for an instant
    connection.execute(f"SET idle_in_transaction_session_timeout = '{HUNG_SECONDS}s'")
    connection.execute("SET tcp_keepalives_idle = 10")
    connection.execute("SET tcp_keepalives_interval = 5")
    connection.execute("SET tcp_keepalives_count = 3")
    connection.commit()


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads first could otherwise lose an update."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _instant_text(value: datetime) -> str:
    """The form in which SQLAlchemy's DateTime stores an instant in SQLite, so that text order is time order."""
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(" ", "microseconds")[:26]


sqlite3.register_adapter(datetime, _instant_text)


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Database errors become ours here, once. The first line of the driver's message is kept, which may hold the
    values of a key; the statement and other values aren't.

    Raises ItemError where the database refuses a value, ConfigError for a parameter of the URL that no driver knows,
    DatabaseError for all that the caller can't mend.
    """
    try:
        yield
    except (exc.DataError, exc.IntegrityError) as error:
        raise ItemError(f"the database refuses a row: {first_line(error)}", kind="refused_row") from error
    except exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.ProgrammingError):
            raise  # ours: SQLite says it of a call that can't be right
        is_away = error.connection_invalidated or (isinstance(error, exc.OperationalError) and not _is_lasting(error))
        raise (DatabaseAwayError if is_away else DatabaseError)(
            f"database {mask_url(url)}: {first_line(error)}"
        ) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise  # ours
        raise ConfigError(f"database.url has a parameter that the driver doesn't know: {error}") from error
    except exc.TimeoutError as error:
        raise DatabaseAwayError("the database gave no connection in time") from error


def first_line(error: exc.StatementError) -> str:
    """What the driver says of an error, cut to one short line."""
    arguments = getattr(error.orig, "args", ()) or ("",)  # PyMySQL's begin with a number
    return (str(arguments[-1]).strip() or type(error.orig).__name__).splitlines()[0][:300]


def _codes(error: exc.DBAPIError) -> set[object]:
    """PostgreSQL's SQLSTATE, MySQL's number or SQLite's primary code."""
    arguments = getattr(error.orig, "args", None) or (None,)
    return {getattr(error.orig, "sqlstate", None), arguments[0], getattr(error.orig, "sqlite_errorcode", 0) & 0xFF}


_LASTING = frozenset(
    {
        *("28000", "28P01", "3D000", "53100"),  # the user or the password, the database, a full disk
        *(1044, 1045, 1049, 1054, 1142, 1143, 1698, 1021, 1114),  # likewise, and a missing column
        *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL),
    }
)
# While it connects, psycopg has the server's words alone.
_LASTING_WORDS = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|not permitted to log in"
    r'|(database|role) ".*" does not exist'
)


def _is_lasting(error: exc.OperationalError) -> bool:
    """Whether waiting doesn't mend it: drivers call it operational, as they do a server that is away."""
    codes = _codes(error)
    return not _LASTING.isdisjoint(codes) or (None in codes and _LASTING_WORDS.search(str(error.orig)) is not None)


_CONFLICTS = frozenset({"40001", "40P01", 1205, 1213})


def is_conflict(error: Exception) -> bool:
    """Whether the database has ended a transaction in favour of another one: it is right to try it again.

    Serialization failures and deadlocks by PostgreSQL's SQLSTATE, lock wait timeouts and deadlocks by MySQL's number.
    """
    return isinstance(error, exc.DBAPIError) and not _CONFLICTS.isdisjoint(_codes(error))
