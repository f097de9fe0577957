"""Removing a person from what is stored, piece by piece: whoever is interrupted calls it again, and workers go on."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    String,
    Table,
    Text,
    and_,
    delete,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.types import JSON

from etl.database.connection import Database
from etl.database.dialects import overwrite_deleted, plan_by_index
from etl.database.schema import metadata
from etl.database.summaries import DERIVED
from etl.model import Pair
from etl.store.marks import mark
from etl.transform.fields import AUTHORS
from etl.transform.person import MESSAGES, Person

PIECE = 500
_OUR_LENGTH = 32
"""Longest text of ours in a key, such as a `run_id`."""


class Forgotten(NamedTuple):
    """How many rows of which table have changed, or would, and other names that the person had there."""

    changed: dict[str, int]
    names: frozenset[str]


class _Piece(NamedTuple):
    """`last` is the key of the last row, None at the end of the table."""

    last: Sequence[Any] | None
    changed: int
    names: frozenset[str]


def forget(database: Database, person: Person, *, dry_run: bool) -> Forgotten:
    """Remove a person from all tables. Rows keep their content hash, so that an answer which is the same as before
    doesn't bring anybody back."""
    changed: dict[str, int] = {}
    names: frozenset[str] = frozenset()
    for table in metadata.sorted_tables:
        columns = _searched(table, person)
        if not columns:
            continue
        changed[table.name] = 0
        last: Sequence[Any] | None = ()
        while last is not None:
            work = partial(_forget_piece, table=table, columns=columns, person=person, after=last, dry_run=dry_run)
            last, count, more = database.run_here(work)
            changed[table.name] += count
            names |= more
    return Forgotten(changed, names)


def _searched(table: Table, person: Person) -> list[Column[Any]]:
    """The columns that may hold a person. Those of the key are names of things, in which only an address means one.
    The tables of words for dashboards come from migrations alone, and what is counted for them is counted anew."""
    if table.name.startswith("bi_") or table in DERIVED:
        return []
    if person.has_address:
        return [column for column in table.c if isinstance(column.type, Text | JSON) or _is_name(column)]
    return [column for column in table.c if column.name in AUTHORS | MESSAGES]


def _is_name(column: Column[Any]) -> bool:
    """Whether a column of the key holds names that come from the API, rather than ids and words of ours."""
    kind = column.type
    return column.primary_key and isinstance(kind, String) and (kind.length or 0) > _OUR_LENGTH


def _forget_piece(
    connection: Connection,
    table: Table,
    columns: list[Column[Any]],
    person: Person,
    after: Sequence[Any],
    dry_run: bool,
) -> _Piece:
    overwrite_deleted(connection)
    plan_by_index(connection)
    key = list(table.primary_key)
    piece = select(*dict.fromkeys([*key, *columns])).order_by(*key).limit(PIECE)
    rows = connection.execute(piece.where(_is_after(key, after)) if after else piece).mappings().all()
    found = [(row, person.trace(_values(row, columns))) for row in rows]
    hits = [row for row, trace in found if trace.changes]
    if not dry_run:
        if {"deployment_id", "scan_id"} <= set(table.primary_key.columns.keys()):
            mark(connection, [Pair(row["deployment_id"], row["scan_id"]) for row in hits])
        for row in hits:
            _forget_row(connection, and_(*(column == row[column.name] for column in key)), columns, person)
    last = [rows[-1][column.name] for column in key] if len(rows) == PIECE else None
    return _Piece(last, len(hits), frozenset().union(*(trace.names for _, trace in found)))


def _forget_row(connection: Connection, is_it: ColumnElement[bool], columns: list[Column[Any]], person: Person) -> None:
    """Look once more, now that the row is locked: a worker may have replaced it."""
    table = columns[0].table
    row = connection.execute(select(*columns).where(is_it).with_for_update()).mappings().first()
    changes = person.trace(_values(row, columns)).changes if row else {}
    if any(column.name in changes for column in table.primary_key):
        connection.execute(delete(table).where(is_it))
    elif changes:
        connection.execute(update(table).where(is_it).values(changes))


def _values(row: RowMapping, columns: list[Column[Any]]) -> dict[str, Any]:
    return {column.name: row[column.name] for column in columns}


def _is_after(key: Sequence[Column[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    """Behind a key, said twice: PostgreSQL looks up the one form in its index, MariaDB the other."""
    return and_(tuple_(*key) > tuple_(*map(literal, last)), _is_greater(key, last))


def _is_greater(key: Sequence[Column[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    greater: ColumnElement[bool] = key[0] > last[0]
    if len(key) == 1:
        return greater
    return or_(greater, and_(key[0] == last[0], _is_greater(key[1:], last[1:])))
