"""What is counted for dashboards, and the same counted anew."""

from typing import Any

from sqlalchemy import Connection, select

from etl.database.summaries import DERIVED
from etl.store.summaries import mark_everything, refresh_piece

Counted = dict[str, list[tuple[Any, ...]]]


def count_all(connection: Connection) -> None:
    """Count what is marked, as whoever ends a batch of work does."""
    while refresh_piece(connection):
        pass


def counted(connection: Connection) -> Counted:
    """The rows of all tables of counts, without their numbers."""
    found = {}
    for table in DERIVED:
        columns = [column for column in table.c if column.name != "id"]
        found[table.name] = sorted((tuple(row) for row in connection.execute(select(*columns))), key=repr)
    return found


def counted_anew(connection: Connection) -> Counted:
    """What they would hold if everything were counted."""
    mark_everything(connection)
    count_all(connection)
    return counted(connection)
