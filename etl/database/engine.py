"""Connections: a URL becomes an engine with the settings that we rely on, and its drivers' errors become ours."""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from etl.config.secret import masked
from etl.config.settings import SECRET_NAME, mask_url
from etl.database.refusals import Code, Meaning, meaning_of
from etl.errors import ConfigError, DatabaseAwayError, DatabaseError, RefusedError, printable

BUSY_TIMEOUT_SECONDS, BUSY_POLL_SECONDS = 60.0, 0.2
"""How long to wait for SQLite's write lock, and for how long at a stretch: SQLite's own wait hears of no Ctrl-C."""
CONNECT_TIMEOUT_SECONDS = 10
HUNG_SECONDS = 10
"""How long a client may be silent in the middle of a transaction before the server ends it."""
READER_SECONDS = 86_400
"""How long MySQL and MariaDB wait for whoever reads rows to take the next ones; they have no word for ever."""
LEAST_SECRET = 4
MOST_UNKNOWN, MOST_LOST = 3, 6
"""How often the same work may fail with a code that isn't known, and with its connection lost in the middle of it.
Links are cut for reasons of their own, but not that often in a row."""


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


def display_url(url: str) -> str:
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
            engine = _engine(parsed, {"timeout": BUSY_POLL_SECONDS, "isolation_level": None})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        case "mysql":
            # With MySQL's REPEATABLE READ a lease would lock the gaps between rows, into which others insert.
            engine = _engine(parsed, _mysql_arguments(), isolation_level="READ COMMITTED")
            event.listen(engine, "connect", _prepare_mysql)
        case _:
            engine = _engine(parsed, _postgresql_arguments())
            event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _engine(url: URL, connect_args: Mapping[str, Any], **options: Any) -> Engine:
    engine = create_engine(url, pool_size=1, max_overflow=1, connect_args=dict(connect_args), **options)
    event.listen(engine, "do_connect", _connect)
    return engine


def _connect(dialect: Dialect, _record: object, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """What comes from the URL is given to the driver here alone. PyMySQL has no error of its own for a name that it
    doesn't know."""
    if dialect.name == "sqlite" and not parameters.get("uri"):
        _make_sqlite_file(arguments[0])
    try:
        return dialect.connect(*arguments, **parameters)
    except TypeError as error:
        raise ConfigError(f"database.url has a parameter that the driver doesn't know: {error}") from error


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
        # A worker that hangs mustn't hold its locks against all others. MySQL, which skips the comment, has no
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


def _make_sqlite_file(path: str) -> None:
    """A file that isn't there is made for its owner's eyes alone; what SQLite puts beside it gets the same mode."""
    with contextlib.suppress(OSError):  # it is there, or can't be made, which SQLite tells
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads first could otherwise lose an update."""
    if connection.get_execution_options().get(_READS_ONLY):
        connection.exec_driver_sql("BEGIN")
        return
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except exc.OperationalError as error:
            is_busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= until:
                raise
        else:
            return


@contextlib.contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees the data of one moment, however long it reads, and is in nobody's way. Rows come as they
    are asked for, if the caller says `yield_per`."""
    with engine.connect().execution_options(**_SNAPSHOT[engine.dialect.name]) as connection, connection.begin():
        connection.detach()  # what is set here is for this connection alone
        for statement in _OF_READERS.get(engine.dialect.name, ()):
            connection.exec_driver_sql(statement)
        yield connection


_READS_ONLY = "etl_reads_only"
_SNAPSHOT: Mapping[str, Mapping[str, Any]] = {
    "sqlite": {_READS_ONLY: True},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "mysql": {"isolation_level": "REPEATABLE READ"},
}
# A reader holds no locks, so it may be silent for as long as a disk or the reader of a pipe takes. PostgreSQL would
# plan for somebody who wants the first rows soon, and look each row of millions up by a key.
_OF_READERS: Mapping[str, Sequence[str]] = {
    "postgresql": ("SET LOCAL idle_in_transaction_session_timeout = 0", "SET LOCAL cursor_tuple_fraction = 1"),
    "mysql": (f"SET net_write_timeout = {READER_SECONDS} /*M! , idle_transaction_timeout = 0 */",),
}


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

    Raises RefusedError where the database or its driver refuses a value, DatabaseError for all that the caller can't
    fix.
    """
    try:
        yield
    except exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.ProgrammingError):
            raise  # ours: SQLite says it of a call that can't be right
        raise _ours(error, url) from error
    except UnicodeEncodeError as error:
        raise RefusedError("the database refuses a row: a text in it isn't Unicode") from error
    except exc.TimeoutError as error:
        raise DatabaseAwayError("the database gave no connection in time") from error


def _ours(error: exc.DBAPIError, url: str) -> DatabaseError:
    database, said = f"database {mask_url(url)}", first_line(error, parse_url(url))
    is_lost = error.connection_invalidated and error.statement is not None
    match _meaning(error):
        case Meaning.ROW:
            return RefusedError(f"the database refuses a row: {said}")
        case Meaning.LASTING:
            return DatabaseError(f"{database}: {said}")
        case Meaning.TIME_LIMIT:
            return DatabaseError(
                f"{database}: the server ends statements too early, raise its time limit for this user"
                f" (statement_timeout, max_statement_time): {said}"
            )
        case Meaning.UNAVAILABLE if is_lost:
            return DatabaseAwayError(f"{database}: {said}", MOST_LOST)
        case None:
            return DatabaseAwayError(f"{database}: {said}", MOST_UNKNOWN)
    return DatabaseAwayError(f"{database}: {said}")


def first_line(error: exc.StatementError, url: URL) -> str:
    """What the driver says of an error, without the secrets of the URL, cut to one short line."""
    arguments = getattr(error.orig, "args", ()) or ("",)  # PyMySQL's begin with a number
    lines = masked(str(arguments[-1]), *_secrets_of(url)).strip().splitlines() or [type(error.orig).__name__]
    return printable(lines[0], 300)


def _secrets_of(url: URL) -> list[str]:
    """What no error may quote. A password of three letters would take most words with it, and is none."""
    named = [str(value) for name, value in url.query.items() if SECRET_NAME.search(name)]
    return [secret for secret in (str(url.password or ""), *named) if len(secret) >= LEAST_SECRET]


def _code(error: exc.DBAPIError) -> Code | None:
    arguments = getattr(error.orig, "args", None) or (None,)
    if isinstance(arguments[0], int):
        return arguments[0]  # PyMySQL
    primary: int = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return primary or getattr(error.orig, "sqlstate", None)


# While it connects, psycopg has the server's words alone.
_LASTING_WORDS = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|not permitted to log in"
    r'|(database|role) ".*" does not exist'
)


def _meaning(error: exc.DBAPIError) -> Meaning | None:
    """What the code of an error means, or else its class; None if neither is known."""
    code = _code(error)
    if (known := meaning_of(code)) is not None:
        return known
    if error.connection_invalidated:
        return Meaning.UNAVAILABLE
    match error:
        case exc.DataError() | exc.IntegrityError():
            return Meaning.ROW
        case exc.ProgrammingError() | exc.NotSupportedError():
            return Meaning.LASTING
        case exc.OperationalError() if code is None:
            return Meaning.LASTING if _LASTING_WORDS.search(str(error.orig)) else Meaning.UNAVAILABLE
    return None


def is_worth_another_try(error: Exception) -> bool:
    """Whether the same transaction may succeed at once: another one was in its way, or it took a little too long."""
    return isinstance(error, exc.DBAPIError) and _meaning(error) in (Meaning.CONFLICT, Meaning.TIME_LIMIT)
