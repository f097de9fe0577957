"""What the definitions of the tables are made of: the one `metadata`, types that each dialect has, and columns that say
what they mean."""

from typing import Any

from sqlalchemy import Column, MetaData, Text
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
