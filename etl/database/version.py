"""The table that holds the revision of our schema: where it is, and whose tables stand beside it."""

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, column, func, inspect, select, table

from etl.errors import DatabaseError

VERSION_TABLE: Final = "scan_etl_version"
EARLIER_TABLE: Final = "alembic_version"
"""Every program that leaves the name to Alembic has it, and so did ours."""
_OURS_ALONE: Final = ("fetch_queue", "dead_letters", "scan_listings", "listing_gaps", "schema_drift", "rate_budgets")
"""No other program has all of these."""


def own_schema(connection: Connection) -> str | None:
    """The one schema whose tables are ours, on PostgreSQL: another of `search_path` may hold another installation."""
    if connection.dialect.name != "postgresql":
        return None
    return connection.execute(select(func.current_schema())).scalar()


def version_table(connection: Connection) -> str | None:
    """The table that holds the revision; None if no migration has run. Somebody else's isn't read."""
    inspector, schema = inspect(connection), own_schema(connection)
    if inspector.has_table(VERSION_TABLE, schema):
        return VERSION_TABLE
    if not all(inspector.has_table(name, schema) for name in (EARLIER_TABLE, *_OURS_ALONE)):
        return None
    are_ours = all(re.fullmatch(r"\d{4}", one) for one in _revisions(connection, EARLIER_TABLE))
    return EARLIER_TABLE if are_ours else None


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None if no migration has run."""
    found = version_table(connection)
    return None if found is None else next(iter(_revisions(connection, found)), None)


def _revisions(connection: Connection, name: str) -> set[str]:
    return set(connection.execute(select(column("version_num")).select_from(table(name))).scalars())


def claim(connection: Connection, names: Iterable[str]) -> None:
    """Before anything is made: give an earlier version table the name that is ours alone, and refuse tables and views
    of our `names` that are somebody else's."""
    found = version_table(connection)
    if found == EARLIER_TABLE:
        connection.exec_driver_sql(f"ALTER TABLE {EARLIER_TABLE} RENAME TO {VERSION_TABLE}")
    elif found is None:
        inspector, schema = inspect(connection), own_schema(connection)
        if theirs := [name for name in sorted(names) if inspector.has_table(name, schema)]:
            raise DatabaseError(
                f"somebody else's tables have the names of ours: {', '.join(theirs)} (there is no {VERSION_TABLE} "
                "beside them). Nothing was made: give scan-etl a database of its own, or on PostgreSQL a schema, by "
                "[database] schema"
            )
