"""What a migration says of columns: their types on each dialect, and how the values of before get into a new one.

Rows are changed by ranges of their key, each range in a transaction of its own, so that workers go on meanwhile. A
million rows of `scan_meta` took 44 s on SQLite, 80 s on PostgreSQL and 115 s on MariaDB, and a writer of single rows
waited for 0.2 s at most (`benchmarks/fill_bench.py`, two cores).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects import mysql, postgresql

from etl.database.connection import Database, take_turn
from etl.database.dialects import plan_by_index
from etl.database.types import UtcDateTime
from etl.transform.readers import OddError

INSTANT: Final = UtcDateTime()
TEXT: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
JSON: Final = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

RANGE_ROWS: Final = 2_000
"""So many rows a transaction looks at: it lasts about 0.1 s."""
REST_SECONDS: Final = 0.05
"""Between two transactions. Whoever waits for SQLite's only write lock looks for it about as often."""

Read = Callable[[Any], Any]
Change = Callable[[dict[str, Any], Any], tuple[dict[str, Any], Any] | None]
"""From a row's `extra` and the column's value to their new ones; None to leave the row as it is."""


class _Rows(NamedTuple):
    """The rows of a table that are to be changed: those under `condition`."""

    table: sa.TableClause
    key: Sequence[sa.ColumnClause[Any]]
    extra: sa.ColumnClause[Any]
    value: sa.ColumnClause[Any]
    condition: sa.ColumnElement[bool]


def add_column_from_extra(table: str, column: sa.Column[Any], field: str, read: Read) -> None:
    """Add a column, and move the field of this name from `extra` into it, by its reader of `etl.transform.readers`.

    It may be killed, and begins again where it was. Before it looks at rows, it commits what the migration has done, so
    what can't be done twice comes after it. What workers of the older version write behind its back stays in `extra`.
    """
    if op.get_context().as_sql:
        op.add_column(table, column)
        op.get_context().impl.static_output(f"-- Of rows of before, `scan-etl db upgrade` fills it from extra: {field}")
        return
    if not _has_column(table, column):
        op.add_column(table, column)
    rows = _rows(table, column)
    mentioned = sa.cast(rows.extra, sa.Text).contains(f'"{field}"', autoescape=True)
    _change_rows(rows._replace(condition=mentioned), partial(_from_extra, field, read))


def drop_column_into_extra(table: str, column: sa.Column[Any], field: str) -> None:
    """The way back, for `downgrade`: no value is lost. Views that read the column are replaced before it."""
    if _has_column(table, column):
        rows = _rows(table, column)
        _change_rows(rows._replace(condition=rows.value.is_not(None)), partial(_into_extra, field))
        op.drop_column(table, column.name)


def _has_column(table: str, column: sa.Column[Any]) -> bool:
    return column.name in [found["name"] for found in sa.inspect(op.get_bind()).get_columns(table)]


def _rows(table: str, column: sa.Column[Any]) -> _Rows:
    names = sa.inspect(op.get_bind()).get_pk_constraint(table)["constrained_columns"]
    key = [sa.column(name, sa.BigInteger) for name in names]
    extra, value = sa.column("extra", JSON), sa.column(column.name, column.type)
    return _Rows(sa.table(table, *key, extra, value), key, extra, value, sa.true())


def _from_extra(field: str, read: Read, extra: dict[str, Any], value: Any) -> tuple[dict[str, Any], Any] | None:
    if field not in extra or value is not None:
        return None
    rest = dict(extra)
    raw = rest.pop(field)
    try:
        return rest, None if raw is None else read(raw)
    except OddError as odd:
        return None if odd.found is None else (rest, odd.found)


def _into_extra(field: str, extra: dict[str, Any], value: Any) -> tuple[dict[str, Any], Any]:
    raw = value.isoformat() if isinstance(value, datetime) else value
    return dict(sorted({**extra, field: raw}.items())), None


def _change_rows(rows: _Rows, change: Change) -> None:
    context, connection = op.get_context(), op.get_bind()
    heads = context.get_current_heads()
    connection.commit()
    with closing(Database(context.opts["address"])) as database:
        for place in database.run_here(partial(_places, rows)):
            last = database.run_here(partial(_change_range, rows, change, place))
            while last is not None:
                time.sleep(REST_SECONDS)
                last = database.run_here(partial(_change_range, rows, change, place & (rows.key[-1] > last)))
    connection.begin()
    take_turn(connection)
    if context.get_current_heads() != heads:
        raise CommandError("another upgrade was faster")


def _places(rows: _Rows, connection: sa.Connection) -> list[sa.ColumnElement[bool]]:
    """Where the last column of the key alone puts the rows in order: MariaDB finds no range of pairs by an index."""
    outer = rows.key[:-1]
    found = connection.execute(sa.select(*outer).select_from(rows.table).distinct())
    return [sa.and_(*(column == value for column, value in zip(outer, values, strict=True))) for values in found]


def _change_range(rows: _Rows, change: Change, place: sa.ColumnElement[bool], connection: sa.Connection) -> Any:
    """Change the first rows of a place. Returns the last key that it has looked at; None at the end."""
    plan_by_index(connection)
    inner = rows.key[-1]
    ends = sa.select(inner).select_from(rows.table).where(place).order_by(inner).offset(RANGE_ROWS - 1).limit(1)
    last = connection.execute(ends).scalar()
    within = place if last is None else place & (inner <= last)
    chosen = sa.select(*rows.key, rows.extra, rows.value).where(within, rows.condition).order_by(*rows.key)
    changed = []
    for *key, extra, value in connection.execute(chosen.with_for_update()):
        if new := change(extra or {}, value):
            changed.append([*key, new[0] or None, new[1]])
    if changed:
        _write(connection, rows, changed)
    return last


def _write(connection: sa.Connection, rows: _Rows, changed: Sequence[Sequence[Any]]) -> None:
    """Each of them is a key and the new values."""
    columns = (*rows.key, rows.extra, rows.value)
    new: list[sa.BindParameter[Any]] = [sa.bindparam(f"new_{column.name}") for column in columns]
    is_row = sa.and_(*(column == wanted for column, wanted in zip(rows.key, new, strict=False)))
    statement = sa.update(rows.table).where(is_row).values({rows.extra: new[-2], rows.value: new[-1]})
    connection.execute(statement, [{one.key: value for one, value in zip(new, row, strict=True)} for row in changed])
