"""Rows as Parquet. Needs the extra `parquet`: whoever imports this without it gets a ModuleNotFoundError."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from etl.model import ColumnType

ROW_GROUP_ROWS: Final = 50_000
"""So many rows at most are held in memory, in Arrow's compact form: 20 MB of the widest view."""
_TYPES: Final[Mapping[ColumnType, Any]] = {
    ColumnType.BIGINT: pa.int64(),
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.DATE: pa.date32(),
    ColumnType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    ColumnType.TEXT: pa.string(),
    ColumnType.JSON: pa.string(),
}


def write_parquet(file: BinaryIO, columns: Mapping[str, ColumnType], batches: Iterable[Sequence[Sequence[Any]]]) -> int:
    """Write rows to an open file. Returns how many; the types are those of the columns, whatever the rows hold."""
    count = 0
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(_record_batches(schema, batches)):
            count += group.num_rows
            writer.write_table(group, row_group_size=group.num_rows)
    return count


def _record_batches(schema: Any, batches: Iterable[Sequence[Sequence[Any]]]) -> Iterator[Any]:
    for rows in batches:
        values = zip(*rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


def _groups(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of rows joined to larger ones, for each group of a file is read on its own."""
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
