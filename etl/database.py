"""The engine, its thread, and the few things that differ between SQLite, PostgreSQL and MySQL or MariaDB.

Of `etl`, this file alone asks for `dialect.name`. Everything else is SQLAlchemy Core over `schema`.
"""

import asyncio
import contextlib
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import stamina
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Double,
    Engine,
    Insert,
    Integer,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    create_engine,
    delete,
    event,
    exc,
    false,
    func,
    inspect,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate
from sqlalchemy.types import JSON

from etl import schema
from etl.config import mask_url
from etl.errors import ConfigError, DatabaseAwayError, DatabaseError, ItemError
from etl.model import Pair
from etl.schema import HEAD

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 10
HUNG_SECONDS = 10
"""How long a client may be silent in the middle of a transaction before the server ends it."""
UPGRADE_TIMEOUT_SECONDS = 3_600
"""How long an upgrade of MySQL or MariaDB waits for another one to end."""


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
        case _:
            engine = _engine(parsed, {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "scan-etl"})
            event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _engine(url: URL, connect_args: Mapping[str, Any], **options: Any) -> Engine:
    return create_engine(url, pool_size=1, max_overflow=1, connect_args=dict(connect_args), **options)


def _mysql_arguments() -> dict[str, Any]:
    try:
        from pymysql.converters import conversions  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise ConfigError("database.url: MySQL and MariaDB need a driver: pip install 'scan-etl[mysql]'") from error
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "program_name": "scan-etl",
        "charset": "utf8mb4",
        "sql_mode": "TRADITIONAL",  # or a text that is too long would be cut
        # A worker that hangs mustn't hold its locks against all others. MySQL, which passes over the comment, has no
        # such limit.
        "init_command": f"SET time_zone = '+00:00' /*M! , idle_transaction_timeout = {HUNG_SECONDS} */",
        # PyMySQL itself drops the offset.
        "conv": {**conversions, datetime: lambda instant, _: f"'{_instant_text(instant)}'"},
    }


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

    Raises ItemError where the database refuses a value, DatabaseError for all that the caller can't mend.
    """
    try:
        yield
    except (exc.DataError, exc.IntegrityError) as error:
        raise ItemError(f"the database refuses a row: {_first_line(error)}", kind="refused_row") from error
    except exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.ProgrammingError):
            raise  # ours: SQLite says it of a call that can't be right
        is_away = error.connection_invalidated or (isinstance(error, exc.OperationalError) and not _is_lasting(error))
        raise (DatabaseAwayError if is_away else DatabaseError)(
            f"database {mask_url(url)}: {_first_line(error)}"
        ) from error
    except exc.TimeoutError as error:
        raise DatabaseAwayError("the database gave no connection in time") from error


def _first_line(error: exc.StatementError) -> str:
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


def _is_conflict(error: Exception) -> bool:
    """Whether the database has ended a transaction in favour of another one: it is right to try it again.

    Serialization failures and deadlocks by PostgreSQL's SQLSTATE, lock wait timeouts and deadlocks by MySQL's number.
    """
    return isinstance(error, exc.DBAPIError) and not _CONFLICTS.isdisjoint(_codes(error))


# Uncounted in `runs`, untold: it is the ordinary price of many workers.
_retrying = stamina.RetryingCaller(attempts=5, timeout=None, wait_initial=0.05, wait_max=1.0).on(_is_conflict)


class Database:
    """One thread that owns the connection: `run(work)` calls `work(connection)` there, in a transaction.

    One writer is what SQLite wants, and elsewhere it keeps the order of lease and settle plain. `work` is called
    again when the database ends its transaction in favour of another one: what it does is in its connection alone.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, committed. A caller that is cancelled waits for the commit all the same."""
        return await self.on_thread(lambda: self.run_here(work))

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Run `work` on the database's thread. For work of several transactions, which calls `run_here`."""
        task = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await task
            raise

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """The same on the calling thread, for commands that do one thing."""
        with translated(self.url):
            return _retrying(self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        with self.engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        """End the thread and the connection."""
        self._thread.shutdown()
        self.engine.dispose()


# What differs between the dialects


def in_pairs(connection: Connection, table: Table, pairs: Sequence[Pair]) -> ColumnElement[bool]:
    """True for the rows of `table` whose key is one of `pairs`, which are found by that key, however many there are."""
    name = connection.dialect.name
    if name != "mysql":
        return _among(name, table, [literal(keys, Text) for keys in _key_texts(name, pairs)])
    # For an UPDATE by a subquery MariaDB reads the whole table, and it compares a list of pairs one by one.
    return or_(
        false(),
        *(and_(table.c.deployment_id == of, table.c.scan_id.in_(ids)) for of, ids in _by_deployment(pairs).items()),
    )


def on_pairs(
    connection: Connection, statement: Select[Any] | Update | Delete, table: Table, pairs: Sequence[Pair], **values: Any
) -> CursorResult[Any]:
    """Execute a statement, with these values of its parameters, on those rows of `table` whose key is one of `pairs`.

    For statements that are constants of their module, and often executed: to make one anew, and to find out that it
    is known, takes SQLAlchemy 0.8 ms, five times what its execution takes the client.
    """
    name = connection.dialect.name
    if name == "mysql":
        return connection.execute(statement.where(in_pairs(connection, table, pairs)), values)
    keys = {f"keys_{at}": keys for at, keys in enumerate(_key_texts(name, pairs))}
    return connection.execute(_on_pairs(statement, table, name), {**keys, **values})


@lru_cache
def _on_pairs(
    statement: Select[Any] | Update | Delete, table: Table, dialect_name: str
) -> Select[Any] | Update | Delete:
    texts = [bindparam(f"keys_{at}", type_=Text) for at in range(len(_key_texts(dialect_name, [])))]
    return statement.where(_among(dialect_name, table, texts))


def _by_deployment(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    scan_ids = defaultdict(list)
    for pair in pairs:
        scan_ids[pair[0]].append(pair[1])
    return scan_ids


def _key_texts(dialect_name: str, pairs: Sequence[Pair]) -> list[str]:
    """Keys as few texts, for a list goes through the driver number by number."""
    if dialect_name == "sqlite":
        # By deployment, for a JSON document a pair would take three times as long to read.
        return [msgspec.json.encode(_by_deployment(pairs)).decode()]
    columns = ([pair[at] for pair in pairs] for at in (0, 1))
    return [f"{{{msgspec.json.encode(column).decode()[1:-1]}}}" for column in columns]


def _among(dialect_name: str, table: Table, texts: Sequence[ColumnElement[str]]) -> ColumnElement[bool]:
    wanted: Select[Any]
    if dialect_name == "sqlite":
        of_all = func.json_each(*texts).table_valued("key", "value")
        of_one = func.json_each(of_all.c.value).table_valued("value", joins_implicitly=True)
        wanted = select(cast(of_all.c.key, BigInteger), of_one.c.value)
    else:
        arrays = [cast(keys, ARRAY(BigInteger)) for keys in texts]
        unnested = func.unnest(*arrays).table_valued("deployment_id", "scan_id").render_derived()
        wanted = select(unnested.c.deployment_id, unnested.c.scan_id)
    return tuple_(table.c.deployment_id, table.c.scan_id).in_(wanted)


def distinct(connection: Connection, column: Column[T], *which: ColumnElement[bool], **values: Any) -> list[T]:
    """The values of a column in some rows: one look-up each, however many rows have them.

    There is an index that begins with what `which` fixes, if anything, and the column. `which` are constants, and
    `values` those of their parameters.
    """
    if connection.dialect.name != "mysql":
        return list(connection.execute(_distinct(column, *which), values).scalars())
    # It would read the whole index for each round of a recursion.
    found = []
    least = select(func.min(column)).where(*which)
    value = connection.execute(least, values).scalar()
    while value is not None:
        found.append(value)
        value = connection.execute(least.where(column > value), values).scalar()
    return found


@lru_cache
def _distinct(column: Column[T], *which: ColumnElement[bool]) -> Select[tuple[T]]:
    least = select(func.min(column)).where(*which)
    known = least.with_only_columns(func.min(column).label("value")).cte("known", recursive=True)
    following = least.where(column > known.c.value).scalar_subquery()
    known = known.union_all(select(following).where(known.c.value.is_not(None)))
    return select(known.c.value).where(known.c.value.is_not(None))


def upsert(connection: Connection, table: Table, change: Callable[[Any], Mapping[str, Any]] | None = None) -> Insert:
    """An INSERT that changes the row whose key is there already, or without `change` leaves it as it is.

    `change` gets the columns of the row that is to be inserted, and gives the new values by column.
    """
    key = table.primary_key.columns
    if connection.dialect.name == "mysql":
        into = mysql.insert(table)
        # Not INSERT IGNORE, which also bends wrong values until they fit.
        as_it_is = {column.name: column for column in key}
        return into.on_duplicate_key_update(change(into.inserted) if change else as_it_is)
    statement: sqlite.Insert | postgresql.Insert
    statement = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    if change is None:
        return statement.on_conflict_do_nothing()
    return statement.on_conflict_do_update(index_elements=key, set_=change(statement.excluded))


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What to change in the rows whose keys `chosen` selects and locks, and what to return of them.

    `columns` begin with the key, and `values` change none of them.
    """

    chosen: Select[Any]
    table: Table
    values: Mapping[str, Any]
    columns: Sequence[Column[Any]]


def change_chosen(connection: Connection, change: Change, **values: Any) -> Sequence[Sequence[Any]]:
    """Make a change, which is a constant, with these values of its parameters; return the columns it wants."""
    if connection.dialect.update_returning:
        return connection.execute(_changing(change), values).all()
    rows = connection.execute(change.chosen.with_only_columns(*change.columns), values).all()
    if rows:
        pairs = [Pair(row[0], row[1]) for row in rows]
        on_pairs(connection, update(change.table).values(change.values), change.table, pairs, **values)
    return rows


@lru_cache
def _changing(change: Change) -> ReturningUpdate[Any]:
    keys = select(change.chosen.cte("chosen"))
    changed = update(change.table).where(tuple_(*change.table.primary_key).in_(keys)).values(change.values)
    return changed.returning(*change.columns)


def remove(
    connection: Connection,
    table: Table,
    pairs: Sequence[Pair],
    which: ColumnElement[bool],
    columns: Sequence[Column[Any]],
    **values: Any,
) -> Sequence[Sequence[Any]]:
    """Delete those rows with these keys that are `which`, and return what these columns of theirs held.

    `which` and `columns` are constants, and `values` those of their parameters.
    """
    if connection.dialect.delete_returning:
        return on_pairs(connection, _removing(table, which, *columns), table, pairs, **values).all()
    rows = on_pairs(connection, select(*columns).where(which).with_for_update(), table, pairs, **values).all()
    on_pairs(connection, delete(table).where(which), table, pairs, **values)
    return rows


@lru_cache
def _removing(table: Table, which: ColumnElement[bool], *columns: Column[Any]) -> ReturningDelete[Any]:
    return delete(table).where(which).returning(*columns)


def insert_rows(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert new rows the fastest way the driver has. JSON columns take JSON text.

    Per scan of five tables, 500 a batch: 12 us by the driver's executemany on SQLite, 5.5 us by binary
    COPY on PostgreSQL. Core with a dictionary a row takes 30 and 60 us. PyMySQL makes one INSERT of many rows.
    """
    if not rows:
        return
    names = ", ".join(column.name for column in columns)
    if connection.dialect.name != "postgresql":
        marks = ", ".join(["?" if connection.dialect.name == "sqlite" else "%s"] * len(columns))
        sql = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - names come from schema.py
        connection.exec_driver_sql(sql, list(rows))
        return
    _copy_rows(connection, table, columns, rows)


def _copy_rows(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]]
) -> None:
    import psycopg.types.json  # noqa: PLC0415 - 0.07 s that SQLite doesn't need

    as_json = partial(psycopg.types.json.Jsonb, dumps=str.encode)
    driver: Any = connection.connection.driver_connection
    json_at = [at for at, column in enumerate(columns) if isinstance(column.type, JSON)]
    names = ", ".join(column.name for column in columns)
    sql = f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    try:
        with driver.cursor() as cursor, cursor.copy(sql) as copy:
            copy.set_types([_copy_type(column) for column in columns])
            for row in rows:
                wrapped = row
                for at in json_at:
                    if row[at] is not None:
                        wrapped = (*wrapped[:at], as_json(row[at]), *wrapped[at + 1 :])
                copy.write_row(wrapped)
    except psycopg.Error as error:  # what SQLAlchemy does for all that goes through it
        raise exc.DBAPIError.instance(sql, None, error, psycopg.Error, dialect=connection.dialect) from error


_COPY_TYPES = {
    BigInteger: "int8",
    Integer: "int4",
    Boolean: "bool",
    Double: "float8",
    schema.UtcDateTime: "timestamptz",
    JSON: "jsonb",
}


def _copy_type(column: Column[Any]) -> str:
    return _COPY_TYPES.get(type(column.type), "text")


def analyze(connection: Connection, table: Table) -> None:
    """Tell the planner how many rows a table filled just now has. InnoDB knows by itself, and would commit here."""
    if connection.dialect.name != "mysql":
        connection.exec_driver_sql(f"ANALYZE {table.name}")


def drop_temporary(connection: Connection, table: Table) -> None:
    """Drop a temporary table, if it is there. On MySQL it takes another word, or it would commit."""
    word = "TEMPORARY " if connection.dialect.name == "mysql" else ""
    connection.exec_driver_sql(f"DROP {word}TABLE IF EXISTS {table.name}")


def product(connection: Connection) -> str:
    """The kind of database and its version, e.g. `postgresql 18.0`."""
    numbers: tuple[object, ...] = getattr(connection.dialect, "server_version_info", None) or ()
    name = "mariadb" if getattr(connection.dialect, "is_mariadb", False) else connection.dialect.name
    return f"{name} {'.'.join(map(str, numbers))}".strip()


# The schema's version


def schema_problem(connection: Connection) -> str | None:
    """Why this version can't work with the database's schema, as a sentence with the mend; None if it can."""
    found = revision(connection)
    if found == HEAD:
        return None
    if found is None:
        return "the database has no tables of scan-etl yet: run `scan-etl db upgrade`"
    if found < HEAD:
        return f"the schema is at {found}, this version needs {HEAD}: run `scan-etl db upgrade`"
    return f"the schema is at {found}, newer than this version knows ({HEAD}): upgrade scan-etl"


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None if no migration has run."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@contextlib.contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Of twelve runs of four concurrent upgrades of an empty PostgreSQL database one died without it."""
    match connection.dialect.name:
        case "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7233620170402)"))
            yield
        case "mysql":
            # The names of locks are the whole server's, and end after 64 characters. A lock ends with its connection.
            lock = func.concat("scan-etl ", func.left(func.sha2(func.database(), 256), 40))
            if not connection.execute(select(func.get_lock(lock, UPGRADE_TIMEOUT_SECONDS))).scalar():
                raise DatabaseError("another upgrade of this database is still going on: try again when it has ended")
            try:
                yield
            except exc.DBAPIError as error:
                raise DatabaseError(f"{_first_line(error)}; {_HALF_DONE}") from error
        case _:
            yield


_HALF_DONE = (
    "MySQL and MariaDB can't take back a migration that fails midway, so the schema may now be between two revisions, "
    "and remain there. Restore the backup; or undo what the last migration did (`scan-etl db sql` shows all "
    "statements; a new database needs its tables and views dropped). Then run `scan-etl db upgrade` again"
)
