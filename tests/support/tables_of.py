"""What a test reads from the tables of a database, and changes in them, beside the commands that use it."""

from contextlib import closing
from typing import Any

from sqlalchemy import Connection, func, select

from etl.database.connection import Database


def ask(url: str, statement: Any) -> list[Any]:
    with closing(Database(url)) as database:
        return database.run_here(lambda connection: list(connection.execute(statement)))


def change(url: str, *statements: Any) -> None:
    """All of them in one transaction."""

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    with closing(Database(url)) as database:
        database.run_here(work)


def count(url: str, table: Any) -> int:
    return int(ask(url, select(func.count()).select_from(table))[0][0])
