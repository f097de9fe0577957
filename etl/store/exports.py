"""The rows of any table or view, for files: which of them, in which parts, as a stream."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnClause,
    Connection,
    Date,
    Double,
    Row,
    Select,
    TableClause,
    Text,
    and_,
    cast,
    column,
    select,
    table,
)
from sqlalchemy.types import TypeEngine

from etl.database.dictionary import Dictionary
from etl.database.schema import metadata, scans
from etl.database.types import UtcDateTime, utc_now
from etl.errors import ConfigError
from etl.model import ColumnType

BATCH_ROWS: Final = 2_000
"""So many rows are in memory at once."""
DAYS: Final = ("day", "started_day")
"""The columns by whose month rows are parted."""
OF_SCANS: Final = {
    "bi_scan",
    *(
        one.name
        for one in metadata.tables.values()
        if any(key.referred_table is scans for key in one.foreign_key_constraints)
    ),
}
"""What has rows of scans, and by their key the `changed_at` of `scans`."""
_SQL_TYPES: Final[Mapping[ColumnType, TypeEngine[Any]]] = {
    ColumnType.BIGINT: BigInteger(),
    ColumnType.DOUBLE: Double(),
    ColumnType.BOOLEAN: Boolean(),
    ColumnType.DATE: Date(),
    ColumnType.TIMESTAMP: UtcDateTime(),
    ColumnType.TEXT: Text(),
    ColumnType.JSON: Text(),
}


@dataclass(frozen=True, slots=True)
class Extract:
    """Which rows of the table or view `name`: of these deployments, or of all; those that changed since, or all."""

    name: str
    columns: Mapping[str, ColumnType]
    deployment_ids: tuple[int, ...] = ()
    changed_since: datetime | None = None

    @property
    def day(self) -> str | None:
        """The column by which the rows have parts, if they have."""
        return next((name for name in DAYS if {name, "deployment_id"} <= self.columns.keys()), None)


class Part(NamedTuple):
    """The rows of a deployment and of the month that begins on this day. None: nobody knows which."""

    deployment_id: int
    month: date | None


def extract(
    dictionary: Dictionary, name: str, deployment_ids: Sequence[int] = (), changed_since: datetime | None = None
) -> Extract:
    """ConfigError, with what there is, where the table or view isn't there or doesn't know what is asked of it."""
    entries = {**dictionary.views, **dictionary.tables}
    if name not in entries:
        raise ConfigError(f"there is no table or view {name!r}; there are {', '.join(entries)}")
    columns = {column: entry.type for column, entry in entries[name].columns.items()}
    if deployment_ids and "deployment_id" not in columns:
        raise ConfigError(f"{name} has no deployment_id, so --deployment can't choose its rows")
    if changed_since and "changed_at" not in columns and name not in OF_SCANS:
        known = ", ".join(sorted({scans.name, *OF_SCANS}))
        raise ConfigError(f"rows of {name} have no time of change; --changed-since works for {known}")
    return Extract(name, columns, tuple(sorted(set(deployment_ids))), changed_since)


def read_clock(connection: Connection) -> datetime:
    """The database's clock."""
    return connection.execute(select(utc_now())).scalar_one()


def parts(connection: Connection, extract: Extract) -> list[Part]:
    """The parts that have rows, of an extract that has a `day`."""
    rows = _rows(extract)
    found = connection.execute(_chosen(extract, rows, rows.c.deployment_id, rows.c[extract.day or ""]).distinct())
    months = {Part(deployment_id, day and day.replace(day=1)) for deployment_id, day in found}
    return sorted(months, key=lambda part: (part.deployment_id, part.month or date.min))


def read(connection: Connection, extract: Extract, part: Part | None = None) -> Generator[Sequence[Row[Any]]]:
    """The rows of one part, or all, in batches: each row's values in the order of the columns."""
    rows = _rows(extract)
    statement = _chosen(extract, rows, *(_value(one, extract.columns[one.name]) for one in rows.c))
    if part:
        day = rows.c[extract.day or ""]
        in_month = day.is_(None) if part.month is None else and_(day >= part.month, day < _next_month(part.month))
        statement = statement.where(rows.c.deployment_id == part.deployment_id, in_month)
    with connection.execute(statement, execution_options={"yield_per": BATCH_ROWS}) as result:
        yield from result.partitions()


def _rows(extract: Extract) -> TableClause:
    return table(extract.name, *(column(name, _SQL_TYPES[kind]) for name, kind in extract.columns.items()))


def _chosen(extract: Extract, rows: TableClause, *columns: Any) -> Select[Any]:
    statement = select(*columns)
    if extract.deployment_ids:
        statement = statement.where(rows.c.deployment_id.in_(extract.deployment_ids))
    if extract.changed_since is None:
        return statement
    if "changed_at" in extract.columns:
        return statement.where(rows.c.changed_at >= extract.changed_since)
    is_its = and_(scans.c.deployment_id == rows.c.deployment_id, scans.c.scan_id == rows.c.scan_id)
    return statement.join_from(rows, scans, is_its).where(scans.c.changed_at >= extract.changed_since)


def _value(one: ColumnClause[Any], kind: ColumnType) -> Any:
    """JSON as its text: some drivers would read it."""
    return cast(one, Text).label(one.name) if kind is ColumnType.JSON else one


def _next_month(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)
