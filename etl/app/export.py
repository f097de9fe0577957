"""An export: the rows that a table or a view has at one moment go into files."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from etl.database.connection import Database
from etl.errors import ConfigError
from etl.files.csv_file import write_csv
from etl.files.dataset import part_path, replacing_dataset
from etl.files.replacing import Create, replacing
from etl.model import ColumnType
from etl.store.exports import Extract, Part, parts, read, read_clock

Batches = Iterable[Sequence[Sequence[Any]]]
Write = Callable[[BinaryIO, Mapping[str, ColumnType], Batches], int]
"""Writes rows of these columns into an open file, and returns how many they were."""


class Exported(NamedTuple):
    """What was exported. `read_at` is the moment, by the database's clock."""

    rows: int
    files: int
    read_at: datetime
    duration_seconds: float


def writer_of(form: str) -> Write:
    """What writes the form `csv` or `parquet`. ConfigError where that needs a library that isn't there."""
    if form == "csv":
        return write_csv
    try:
        from etl.files.parquet_file import write_parquet  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise ConfigError("Parquet needs a library: pip install 'scan-etl[parquet]'") from error
    return write_parquet


def export(
    database: Database, extract: Extract, form: str, out: Path | BinaryIO, say: Callable[[int], None]
) -> Exported:
    """Write an extract into an open file, into a file of this form, or else into a folder of parts. `say` hears of each
    batch how many rows it had."""
    began_at, write = time.monotonic(), writer_of(form)
    with database.snapshot() as connection:
        read_at = read_clock(connection)

        def put(file: BinaryIO, part: Part | None = None) -> int:
            with closing(read(connection, extract, part)) as batches:
                return write(file, extract.columns, _heard(batches, say))

        if not isinstance(out, Path):
            rows = [put(out)]
        elif out.suffix == f".{form}":
            with replacing(out.parent) as create, create(out) as file:
                rows = [put(file)]
        else:
            with replacing_dataset(out, _label(extract, form)) as create:
                found = parts(connection, extract) if extract.day else []
                rows = [_put_into(create, form, part, put) for part in found or (None,)]
    return Exported(sum(rows), len(rows), read_at, round(time.monotonic() - began_at, 3))


def _put_into(create: Create, form: str, part: Part | None, put: Callable[[BinaryIO, Part | None], int]) -> int:
    place = part_path(part.deployment_id, part.month, form) if part else Path(f"part-0.{form}")
    with create(place) as file:
        return put(file, part)


def _label(extract: Extract, form: str) -> str:
    """The same for two exports if one may take the place of the other."""
    scope = "changes" if extract.changed_since else "all"
    return "-".join([extract.name, form, scope, *map(str, extract.deployment_ids)])


def _heard(batches: Batches, say: Callable[[int], None]) -> Batches:
    for rows in batches:
        yield rows
        say(len(rows))
