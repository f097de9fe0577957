"""Connections: a URL becomes an engine with the settings that we rely on, and its drivers' errors become ours."""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from etl.config.masking import SECRET_NAME, mask_url
from etl.config.secret import masked
from etl.config.urls import URL_FILE, Address, address_of
from etl.database.refusals import Code, Meaning, meaning_of
from etl.database.session import (
    IS_SNAPSHOT,
    READER_SECONDS,
    begin_postgresql,
    in_schema,
    instant_text,
    mysql_arguments,
    postgresql_arguments,
    prepare_mysql,
)
from etl.database.sqlite_file import BUSY_POLL_SECONDS, connect_to_read, make_file, prepare_to_read, prepare_to_write
from etl.errors import ConfigError, DatabaseAwayError, DatabaseError, RefusedError, printable

LEAST_SECRET = 4
FULL_CODES = frozenset({sqlite3.SQLITE_FULL, "53100", 1021, 1114})
"""What databases say of a full disk."""
LOGIN_CODES = frozenset({None, 1044, 1045, 1698, 1862, 4151})
"""What servers refuse a login with. psycopg has no code while it connects."""
MOST_UNKNOWN, MOST_LOST = 3, 6
"""How often the same work may fail with a code that isn't known, and with its connection lost in the middle of it.
Links are cut for reasons of their own, but not that often in a row."""


_SEVERAL_HOSTS = re.compile(r"(postgres[^:]*://(?:[^:/@]*(?::[^@]*)?@)?+)([^/?#@]+,[^/?#@]+)(.*)", re.DOTALL)
_HOST = re.compile(r"\[?([^]\[]*?)\]?(?::(\d+))?")


def _parsed(url: str) -> URL:
    """Several hosts are parameters for SQLAlchemy, and part of the place for libpq: host1:port1,host2:port2."""
    if (several := _SEVERAL_HOSTS.fullmatch(url)) is None:
        return make_url(url)
    hosts = [_HOST.fullmatch(host) for host in several[2].split(",")]
    if not all(hosts):
        raise exc.ArgumentError("a host of several")
    named = {"host": [host[1] for host in hosts if host], "port": [host[2] or "5432" for host in hosts if host]}
    return make_url(several[1] + several[3]).update_query_dict({name: ",".join(of) for name, of in named.items()})


def parse_url(url: str) -> URL:
    """The URL with the driver we use. ConfigError for a database we don't support."""
    try:
        parsed = _parsed(url)
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


def holds_database(path: Path) -> bool:
    """Whether an SQLite file is one by now. Without content it has never been one."""
    return path.exists() and path.stat().st_size > 0


def make_engine(place: str | Address, *, reads_only: bool = False) -> Engine:
    """An engine that connects on first use, with the settings that make its transactions and its times real.

    On SQLite one that `reads_only` needs neither the write lock nor a folder that can be written.

    ConfigError where the driver isn't installed.
    """
    address = address_of(place)
    match parse_url(address.url).get_backend_name():
        case "sqlite":
            ways = [connect_to_read] if reads_only else []
            engine = _engine(address, {"timeout": BUSY_POLL_SECONDS, "isolation_level": None}, ways)
            (prepare_to_read if reads_only else prepare_to_write)(engine)
        case "mysql":
            # With MySQL's REPEATABLE READ a lease would lock the gaps between rows, into which others insert.
            engine = _engine(address, mysql_arguments(), isolation_level="READ COMMITTED")
            event.listen(engine, "connect", prepare_mysql)
        case _:
            engine = _engine(address, postgresql_arguments())
            event.listen(engine, "begin", begin_postgresql)
            if address.schema:
                event.listen(engine, "begin", in_schema(address.schema))
    return engine


@contextlib.contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees the data of one moment, however long it reads, and is in nobody's way; of SQLite the
    engine has to be one that `reads_only`. Rows come as they are asked for, if the caller says `yield_per`."""
    options: dict[str, Any] = {IS_SNAPSHOT: True}
    if engine.dialect.name != "mysql":
        with engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection
        return
    options["isolation_level"] = "REPEATABLE READ"
    with engine.connect().execution_options(**options) as connection, connection.begin():
        connection.detach()  # what is set here is for this connection alone
        connection.exec_driver_sql(f"SET net_write_timeout = {READER_SECONDS} /*M! , idle_transaction_timeout = 0 */")
        yield connection


def _engine(
    address: Address, connect_args: Mapping[str, Any], ways: Iterable[Callable[..., Any]] = (), **options: Any
) -> Engine:
    """An engine that connects by the first of these `ways` that gives a connection, or else as drivers do."""
    with _python_errors():
        url = parse_url(address.url)
        engine = create_engine(url, pool_size=1, max_overflow=1, connect_args=dict(connect_args), **options)
    if address.url_file:
        event.listen(engine, "do_connect", _by_file(address, connect_args))
    for way in (*ways, _connect):
        event.listen(engine, "do_connect", way)
    return engine


def _by_file(address: Address, connect_args: Mapping[str, Any]) -> Callable[..., None]:
    """For each connection: what the file of the address says now takes the place of what it said before."""

    def read(dialect: Dialect, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> None:
        try:
            url = parse_url(address.current_url())
            if url.get_backend_name() != dialect.name:
                raise ConfigError(f"{URL_FILE}: the file names another kind of database than at the start")
            with _python_errors():
                arguments[:], more = dialect.create_connect_args(url)
        except ConfigError as error:
            raise DatabaseAwayError(str(error)) from error  # it may be right in a moment
        parameters.clear()
        parameters.update(more, **connect_args)

    return read


def _connect(dialect: Dialect, _record: object, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """What comes from the URL is given to the driver here alone."""
    if dialect.name == "sqlite" and not parameters.get("uri"):
        make_file(arguments[0])
    if dialect.name == "mysql" and parameters.get("password"):
        parameters = {**parameters, "password": parameters["password"].encode()}  # PyMySQL would take Latin-1
    try:
        with _python_errors():
            return dialect.connect(*arguments, **parameters)
    except dialect.loaded_dbapi.Error as error:
        if not _WRONG_PARAMETER.match(str(error)):
            raise
        raise ConfigError(f"database.url has a wrong parameter: {printable(str(error), 300)}") from error


@contextlib.contextmanager
def _python_errors() -> Iterator[None]:
    """Drivers have errors of Python's for what they don't know, can't read or haven't installed."""
    try:
        yield
    except UnicodeError:
        raise  # it would quote what may be a password
    except (TypeError, NotImplementedError) as error:
        raise ConfigError(f"database.url has a parameter that the driver doesn't know: {error}") from error
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"database.url has a wrong parameter: {error}") from error
    except OSError as error:
        raise ConfigError(f"database.url names a file that can't be read ({error.strerror})") from error
    except RuntimeError as error:
        raise ConfigError(
            f"database.url: {error}: install it, e.g. by `pip install cryptography`, or ask for TLS by ssl_ca=FILE"
        ) from error


sqlite3.register_adapter(datetime, instant_text)
sqlite3.register_adapter(date, date.isoformat)


@contextlib.contextmanager
def translated(address: Address) -> Iterator[None]:
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
        raise _ours(error, address) from error
    except UnicodeEncodeError as error:
        raise RefusedError("the database refuses a row: a text in it isn't Unicode") from error
    except exc.TimeoutError as error:
        raise DatabaseAwayError("the database gave no connection in time") from error


def _ours(error: exc.DBAPIError, address: Address) -> DatabaseError:
    database, said = f"database {display_url(address.url)}", first_line(error, *_urls_of(address))
    is_lost = error.connection_invalidated and error.statement is not None
    meaning = _meaning(error)
    if address.url_file and error.statement is None and _code(error) in LOGIN_CODES:
        meaning = Meaning.UNAVAILABLE  # until the file has the new password
    match meaning:
        case Meaning.ROW:
            return RefusedError(f"the database refuses a row: {said}")
        case Meaning.LASTING:
            is_full = _code(error) in FULL_CODES
            advice = ": make room and start it again, what was stored is safe" if is_full else ""
            return DatabaseError(f"{database}: {said}{advice}")
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


def _urls_of(address: Address) -> list[URL]:
    """Those whose secrets an error might quote."""
    urls = [parse_url(address.url)]
    with contextlib.suppress(ConfigError):
        urls.append(parse_url(address.current_url()))
    return urls


def first_line(error: exc.StatementError, *urls: URL) -> str:
    """What the driver says of an error, without the secrets of the URLs, cut to one short line."""
    arguments = getattr(error.orig, "args", ()) or ("",)  # PyMySQL's begin with a number
    secrets = [secret for url in urls for secret in _secrets_of(url)]
    lines = masked(str(arguments[-1]), *secrets).strip().splitlines() or [type(error.orig).__name__]
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


# While it connects, psycopg has the words of libpq and of the server alone.
_WRONG_PARAMETER = re.compile(r"invalid connection option|bad value for|connection is bad: invalid \w+ value")
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
