"""The few things that differ between SQLite, PostgreSQL and MySQL or MariaDB: how rows are found, locked and written.

Of `etl`, this file alone asks for `dialect.name`, beside `connection`, which knows the lock of an upgrade, and
`version`, which knows schemas. All else is SQLAlchemy Core over `schema`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Date,
    Delete,
    Double,
    Insert,
    Integer,
    Row,
    Select,
    SmallInteger,
    Table,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    exc,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate
from sqlalchemy.types import JSON

from etl.database.types import UtcDateTime
from etl.model import Pair

T = TypeVar("T")


def in_pairs(connection: Connection, table: Table, pairs: Sequence[Pair]) -> ColumnElement[bool]:
    """True for the rows of `table` whose key is one of `pairs`, which are found by that key, however many there are:
    the transaction is one `plan_by_index` from here on."""
    name = connection.dialect.name
    if name != "mysql":
        plan_by_index(connection)
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
    plan_by_index(connection)
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
    columns = tuple(zip(*dict.fromkeys(pairs), strict=True)) or ((), ())
    return [f"{{{msgspec.json.encode(column).decode()[1:-1]}}}" for column in columns]


def _among(dialect_name: str, table: Table, texts: Sequence[ColumnElement[str]]) -> ColumnElement[bool]:
    if dialect_name == "sqlite":
        of_all = func.json_each(*texts).table_valued("key", "value")
        of_one = func.json_each(of_all.c.value).table_valued("value", joins_implicitly=True)
        keys = select(cast(of_all.c.key, BigInteger), of_one.c.value)
        return tuple_(table.c.deployment_id, table.c.scan_id).in_(keys)
    arrays = [cast(keys, ARRAY(BigInteger)) for keys in texts]
    wanted = func.unnest(*arrays).table_valued(*Pair._fields).render_derived().c
    # A join, for a planner that takes the table for empty would read it all to look each row up among the keys. As long
    # as it may not merge both by their keys (`=` would let it), it can only look up each key in the table.
    return and_(
        table.c.deployment_id == any_(postgresql.array([wanted.deployment_id])),
        table.c.scan_id == wanted.scan_id,
    )


def pairs_in(connection: Connection, texts: ColumnElement[str]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """The two columns of the pairs in a column of JSON texts `[[120, 123], ...]`, whose table stands first in FROM."""
    name = connection.dialect.name
    if name == "mysql":
        pairs = func.json_table(texts, _AS_PAIRS).table_valued(*Pair._fields, joins_implicitly=True).c
        return pairs.deployment_id, pairs.scan_id
    if name == "sqlite":
        pair = func.json_each(texts).table_valued("value", joins_implicitly=True).c.value
        return func.json_extract(pair, "$[0]"), func.json_extract(pair, "$[1]")
    pair = func.json_array_elements(cast(texts, JSON)).table_valued("value", joins_implicitly=True).c.value
    number = func.json_extract_path_text
    return cast(number(pair, "0"), BigInteger), cast(number(pair, "1"), BigInteger)


_AS_PAIRS: ColumnElement[Any] = literal_column(
    "'$[*]' COLUMNS (deployment_id BIGINT PATH '$[0]', scan_id BIGINT PATH '$[1]')"
)


def opaque_to_planner(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """The same condition, of which a planner has no opinion, beside keys.

    What was rare when PostgreSQL counted the rows seems to it a better way to find them than the keys, and then it
    compares each row with each key: 0.5 s instead of 4 ms to settle 1,000 of 20,000 pairs, counted before the lease.
    """
    return func.coalesce(condition, false())


def plan_by_index(connection: Connection) -> None:
    """In this transaction rows are found by their keys or in the order of an index, those too that foreign keys ask
    for, whatever the server has counted.

    PostgreSQL counts a table now and then. One that was empty then and is full now seems to it hardly worth an index:
    a lease from 20,000 rows took 24 s. And one that it has never counted seems to hold few that are due: it sorted
    700,000 for each lease.
    """
    if connection.dialect.name != "postgresql":
        return
    # Many callers in one transaction, a round trip each: said once, it holds to its end.
    transaction = connection.get_nested_transaction() or connection.get_transaction()
    if connection.info.get(plan_by_index) is not transaction:
        connection.execute(_BY_KEYS_ALONE)
        connection.info[plan_by_index] = transaction


# Before PostgreSQL 18 a step that is off and can't be done without is said to cost so much that the plan is worth
# compiling: 0.1 s for a statement of 5 ms.
_DETOURS = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_incremental_sort", "jit")
_BY_KEYS_ALONE = select(*(func.set_config(name, "off", True) for name in _DETOURS))  # True: for this transaction


# A transaction locks rows table after table, those of a table in the order of their keys:
#
#   fetch_queue, dead_letters, scan_listings, scans and their children, repositories, schema_drift (path, kind), then
#   what has one row a deployment, a run or a worker (watermarks, deployments, runs, workers).
#
# What it needs of a table it locks in one go, before it believes what it has read: by `lock` where the rows are there,
# by an upsert in the order of the keys where some may be new; and changes none that has come since. So one may wait
# for another, but no two for each other. Who goes piece by piece does each in all its tables before the next one, whose
# keys are higher. A lease waits for nobody: it skips what is locked. InnoDB also locks gaps where a key is inserted
# again, in an order of its own: there a deadlock remains possible, and `Database` tries again.


def lock(
    connection: Connection, table: Table, pairs: Sequence[Pair], *which: ColumnElement[bool], **values: Any
) -> None:
    """Lock those rows with these keys that are `which`, in the order of the keys, as whoever fills the queue does.

    Where two lock the same rows in other orders, one has to start over: a file that was queued again while workers
    drained it didn't get through. SQLite has one writer. `which` and `values` are as for `remove`.
    """
    if connection.dialect.name != "sqlite":
        # Sorted, for MariaDB goes by its list of 1,000 or more.
        on_pairs(connection, _locking(table, connection.dialect.name, which), table, sorted(pairs), **values).close()


def locked(connection: Connection, table: Table, pairs: Sequence[Pair], *columns: Any, **values: Any) -> list[Any]:
    """Lock as `lock` does, and return the keys of these rows and these columns. A row that comes later isn't locked."""
    statement = _locking(table, connection.dialect.name, (), *columns)
    return list(on_pairs(connection, statement, table, sorted(pairs), **values))


@lru_cache
def _locking(table: Table, dialect_name: str, which: Sequence[Any], *columns: ColumnElement[Any]) -> Select[Any]:
    rows = select(*table.primary_key, *columns).where(*which).with_for_update()
    if dialect_name == "sqlite":
        return rows
    # On PostgreSQL not the order of an index, or it might read all of that for its sake.
    is_opaque = dialect_name == "postgresql"
    return rows.order_by(*(func.coalesce(column, 0) if is_opaque else column for column in table.primary_key))


def distinct(
    connection: Connection, columns: tuple[Column[T], Column[Any]], *which: ColumnElement[bool], **values: Any
) -> list[T]:
    """The values of the first of these columns in some rows: one look-up each, however many rows have them.

    One index alone begins with what `which` fixes, if anything, and goes on with both columns. `which` are constants,
    and `values` those of their parameters.
    """
    if connection.dialect.name != "mysql":
        plan_by_index(connection)
        return list(connection.execute(_distinct(*columns, *which), values).scalars())
    # It would read the whole index for each round of a recursion.
    found = []
    least = select(func.min(columns[0])).where(*which)
    value = connection.execute(least, values).scalar()
    while value is not None:
        found.append(value)
        value = connection.execute(least.where(columns[0] > value), values).scalar()
    return found


@lru_cache
def _distinct(column: Column[T], following: Column[Any], *which: ColumnElement[bool]) -> Select[tuple[T]]:
    # Not min(), for which PostgreSQL may read all rows. Both columns, for only one index has this order.
    least = select(column).where(*which).order_by(column, following).limit(1)
    known = select(least.scalar_subquery().label("value")).cte("known", recursive=True)
    greater = least.where(column > known.c.value).scalar_subquery()
    known = known.union_all(select(greater).where(known.c.value.is_not(None)))
    return select(known.c.value).where(known.c.value.is_not(None))


def upsert(
    connection: Connection,
    table: Table,
    change: Callable[[Any], Mapping[str, Any]] | None = None,
    differs: Callable[[Any], ColumnElement[bool]] | None = None,
) -> Insert:
    """An INSERT that changes the row whose key is there already, or without `change` leaves it as it is.

    `change` gets the columns of the row that is to be inserted, and gives the new values by column. So does `differs`,
    which says whether that makes another row of it: MySQL finds that out by itself.
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
    new = statement.excluded
    return statement.on_conflict_do_update(index_elements=key, set_=change(new), where=differs and differs(new))


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What to change in the rows whose keys `chosen` selects and locks, and what to return of them.

    `columns` begin with the key, and `values` change none of them.
    """

    chosen: Select[Any]
    table: Table
    values: Mapping[str, Any]
    columns: Sequence[Column[Any]]


def change_chosen(connection: Connection, change: Change, **values: Any) -> Sequence[Row[Any]]:
    """Make a change, which is a constant, with these values of its parameters; return the columns it wants."""
    if connection.dialect.update_returning:
        return connection.execute(_changing(change, connection.dialect.name), values).all()
    rows = connection.execute(change.chosen.with_only_columns(*change.columns), values).all()
    if rows:
        pairs = [Pair(row.deployment_id, row.scan_id) for row in rows]
        keys = in_pairs(connection, change.table, pairs)
        connection.execute(update(change.table).where(keys).values(change.values), values)
    return rows


@lru_cache
def _changing(change: Change, dialect_name: str) -> ReturningUpdate[Any]:
    if dialect_name == "postgresql":
        # By their place: to find the chosen rows once more a planner has no other way, and nothing to guess.
        place: ColumnElement[Any] = literal_column(f"{change.table.name}.ctid")
        places = change.chosen.with_only_columns(place).scalar_subquery()
        is_chosen = place == any_(func.array(places))
    else:
        is_chosen = tuple_(*change.table.primary_key).in_(change.chosen)
    return update(change.table).where(is_chosen).values(change.values).returning(*change.columns)


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
    keys = in_pairs(connection, table, pairs)
    rows = connection.execute(select(*columns).where(which, keys).with_for_update(), values).all()
    connection.execute(delete(table).where(which, keys), values)
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
            copy.set_types([_COPY_TYPES.get(type(column.type), "text") for column in columns])
            for row in rows:
                wrapped = row
                for at in json_at:
                    if row[at] is not None:
                        wrapped = (*wrapped[:at], as_json(row[at]), *wrapped[at + 1 :])
                copy.write_row(wrapped)
    except psycopg.Error as error:
        if isinstance(error.__context__, UnicodeError):
            # The driver has sent what it had made of that row, on which the server may choke in any way.
            raise error.__context__ from None
        raise exc.DBAPIError.instance(
            sql, None, error, psycopg.Error, connection_invalidated=driver.closed, dialect=connection.dialect
        ) from error  # what SQLAlchemy does for all that goes through it


_COPY_TYPES = {
    BigInteger: "int8",
    Integer: "int4",
    SmallInteger: "int2",
    Boolean: "bool",
    Double: "float8",
    UtcDateTime: "timestamptz",
    Date: "date",
    JSON: "jsonb",
}


def overwrite_deleted(connection: Connection) -> None:
    """Nothing is left in an SQLite file of what is deleted from here on. Servers see to that by themselves, later."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
