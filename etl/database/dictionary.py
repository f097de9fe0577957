"""What each table, view and column means: `schema` says it of the tables, a file beside each view of that view."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from etl.database.schema import metadata
from etl.database.types import UtcDateTime
from etl.model import ColumnType


@dataclass(frozen=True, slots=True)
class ColumnEntry:
    """`api` is the path of its value in the API's answer, in the form of `schema_drift`."""

    meaning: str
    type: ColumnType
    unit: str | None = None
    api: str | None = None
    nullable: bool = True

    def sentence(self) -> str:
        """All of it but its type and whether it is nullable, which catalogues know by themselves."""
        parts = [self.meaning, self.unit and f"unit: {self.unit}", self.api and f"API: {self.api}"]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Entry:
    """A table or a view."""

    meaning: str
    columns: Mapping[str, ColumnEntry]


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Tables and views by name."""

    tables: Mapping[str, Entry]
    views: Mapping[str, Entry]


def load_dictionary(folder: Path) -> Dictionary:
    """The tables of `schema`, and the views of the migrations in this folder: what `views/NAME.toml` says of each."""
    tables = {table.name: _of_table(table) for table in metadata.tables.values()}
    files = sorted((folder / "views").glob("*.toml"))
    return Dictionary(tables, {file.stem: _of_view(tomllib.loads(file.read_text("utf-8"))) for file in files})


def _of_table(table: sa.Table) -> Entry:
    return Entry(table.comment or "", {column.name: ColumnEntry(**_said(column)) for column in table.columns})


def _of_view(document: Mapping[str, Any]) -> Entry:
    return Entry(document["meaning"], {name: _of_view_column(**said) for name, said in document["columns"].items()})


def _of_view_column(of: str = "", **said: Any) -> ColumnEntry:
    """What it says itself, and else what the column of a table says that it shows."""
    if not of:
        return ColumnEntry(**{**said, "type": ColumnType(said["type"])})
    table, _, name = of.partition(".")
    return ColumnEntry(**{**_said(metadata.tables[table].columns[name]), **said})


def _said(column: sa.Column[Any]) -> dict[str, Any]:
    return {**column.info, "type": _type(column.type), "nullable": column.nullable}


_TYPES: Final = (
    (sa.Integer, ColumnType.BIGINT),
    (sa.Double, ColumnType.DOUBLE),
    (sa.Boolean, ColumnType.BOOLEAN),
    (sa.Date, ColumnType.DATE),
    (UtcDateTime, ColumnType.TIMESTAMP),
    (sa.JSON, ColumnType.JSON),
    (sa.String, ColumnType.TEXT),
)


def _type(of_sql: sa.types.TypeEngine[Any]) -> ColumnType:
    return next(word for kind, word in _TYPES if isinstance(of_sql, kind))
