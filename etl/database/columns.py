"""What the definitions of the tables are made of: the one `metadata`, types that each dialect has, and columns that say
what they mean."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CheckConstraint, Column, MetaData, Text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import JSON

from etl.database.types import UtcDateTime

# MySQL's TEXT ends at 64 KiB.
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql")
Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def column(
    name: str, kind: Any, meaning: str, *, api: str | None = None, unit: str | None = None, **options: Any
) -> Column[Any]:
    """A column, with what the dictionary says of it. `api` is its path in the answer, in the form of `schema_drift`."""
    entry = {"meaning": meaning, "unit": "UTC" if kind is UtcDateTime else unit, "api": api}
    return Column(name, kind, info=entry, **options)


_INSTANT = {
    "sqlite": (
        "{0} >= '1970-01-01 00:00:00.000000' AND strftime('%s', {0}) IS NOT NULL"
        " AND {0} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'"
    ),
    "postgresql": "{0} BETWEEN '1970-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
    "mysql": "{0} BETWEEN '1970-01-01 00:00:00' AND '9999-12-31 23:59:59.999999'",
}


def checked_instants(name: str, columns: Sequence[str]) -> list[CheckConstraint]:
    """Any program may INSERT, and what is no instant, or none that every driver knows, would stop every run."""
    return [
        CheckConstraint(" AND ".join(condition.format(each) for each in columns), name=name).ddl_if(dialect=dialect)
        for dialect, condition in _INSTANT.items()
    ]
