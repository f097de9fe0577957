"""The instants of the database, on each dialect: a type that keeps them in UTC, and what SQL is said with them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import expression
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, stored as UTC. Naive values are refused.

    SQLite and MySQL drop the offset without a word, so the value is turned into UTC before it gets there.
    """

    impl = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - as TypeDecorator has it
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: an instant needs its offset")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - as TypeDecorator has it
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class utc_now(expression.FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, at the moment when the row is written."""

    type = UtcDateTime()
    inherit_cache = True


class add_seconds(expression.FunctionElement[datetime]):  # noqa: N801 - as utc_now
    """An instant moved by seconds: `add_seconds(utc_now(), 60)`, `add_seconds(scans.c.started_at, bindparam("s"))`."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(utc_now)
def _utc_now(element: Any, compiler: Any, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy passes all
    return "clock_timestamp()"


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy passes all
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(utc_now, "mysql")
def _utc_now_mysql(element: Any, compiler: Any, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy passes all
    return "UTC_TIMESTAMP(6)"


@compiles(add_seconds)
def _add_seconds(element: Any, compiler: Any, **kw: Any) -> str:
    instant, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({instant} + make_interval(secs => {seconds}))"


@compiles(add_seconds, "sqlite")
def _add_seconds_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    instant, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(strftime('%Y-%m-%d %H:%M:%f', {instant}, ({seconds}) || ' seconds') || '000')"


@compiles(add_seconds, "mysql")
def _add_seconds_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    instant, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"TIMESTAMPADD(MICROSECOND, ROUND(({seconds}) * 1000000), {instant})"


class ready_now(expression.FunctionElement[datetime]):  # noqa: N801 - as utc_now
    """The `due_at` of a queue row that waits for nothing but its turn: the beginning of time."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(ready_now)
def _ready_now(element: Any, compiler: Any, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy passes all
    return "'1970-01-01 00:00:00.000000'"


@compiles(ready_now, "postgresql")
def _ready_now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:  # noqa: ARG001 - SQLAlchemy passes all
    return "timestamptz 'epoch'"


@compiles(CreateTable, "mysql")
def _create_table_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    """Text is compared as on the other databases: by its characters, capitals and trailing blanks among them.

    The collation for that has a name on MySQL and another on MariaDB; each reads only the comment meant for it.
    """
    table = compiler.visit_create_table(element, **kw).rstrip()
    collation = "/*!80017 utf8mb4_0900_bin *//*M! utf8mb4_nopad_bin */"
    return f"{table} ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}"
