"""Rows as CSV: UTF-8, with a header, as RFC 4180 has it."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, BinaryIO, Final

from etl.model import ColumnType

FORMULA_BEGINNINGS: Final = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, which may send what stands beside it to anybody."""


def write_csv(file: BinaryIO, columns: Mapping[str, ColumnType], batches: Iterable[Sequence[Sequence[Any]]]) -> int:
    """Write rows to an open file. Returns how many; NULL is an empty cell."""
    count = 0
    text = io.TextIOWrapper(file, "utf-8", newline="")
    try:
        writer = csv.writer(text)
        writer.writerow(columns)
        cells = [_CELLS.get(kind) for kind in columns.values()]
        for rows in batches:
            count += len(rows)
            writer.writerows(map(_row, rows, [cells] * len(rows)))
        text.flush()
    finally:
        text.detach()  # the file is the caller's to close
    return count


def _row(values: Sequence[Any], cells: Sequence[Callable[[Any], str] | None]) -> list[Any]:
    return [value if cell is None or value is None else cell(value) for value, cell in zip(values, cells, strict=True)]


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_BEGINNINGS) else text


def _boolean(value: bool) -> str:
    return "true" if value else "false"


_CELLS: Final[Mapping[ColumnType, Callable[[Any], str]]] = {
    ColumnType.BOOLEAN: _boolean,
    ColumnType.DATE: date.isoformat,
    ColumnType.TIMESTAMP: datetime.isoformat,
    ColumnType.TEXT: _harmless,
    ColumnType.JSON: _harmless,
}
