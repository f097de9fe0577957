"""Databases on one MariaDB or MySQL server: one for each test, dropped when it ends."""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.constants import CLIENT
from sqlalchemy.engine import make_url


@dataclass(frozen=True, slots=True)
class MysqlDatabases:
    """The user in `server_url` may create databases. Ours begin with this run's `prefix`."""

    server_url: str
    prefix: str

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, which is gone afterwards, connected clients or not."""
        name = f"{self.prefix}_{secrets.token_hex(6)}"
        ask(self.server_url, f"CREATE DATABASE {name}")
        try:
            yield make_url(self.server_url).set(database=name).render_as_string(hide_password=False)
        finally:
            self._drop(name)

    def drop_all(self) -> None:
        """Drop what tests that died have left."""
        for (name,) in ask(self.server_url, "SHOW DATABASES"):
            if name.startswith(self.prefix):
                self._drop(name)

    def _drop(self, name: str) -> None:
        # An open transaction of a client that was killed just now would hold up the DROP.
        for (number,) in ask(self.server_url, "SELECT id FROM information_schema.processlist WHERE db = %s", name):
            with suppress(pymysql.MySQLError):  # it may be gone already
                ask(self.server_url, f"KILL {number}")
        ask(self.server_url, f"DROP DATABASE IF EXISTS {name}")


def ask(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """What one statement gives, committed."""
    with closing(_connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql, values or None)
        return list(cursor.fetchall())


def run_script(url: str, sql: str) -> None:
    """Run statements that give nothing, in one go."""
    with closing(_connect(url, CLIENT.MULTI_STATEMENTS)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        while cursor.nextset():
            pass


def _connect(url: str, client_flag: int = 0) -> Any:
    parts = make_url(url)
    return pymysql.connect(
        host=parts.host,
        port=parts.port or 3306,
        user=parts.username,
        password=str(parts.password or ""),
        database=parts.database,
        connect_timeout=10,
        autocommit=True,
        client_flag=client_flag,
    )


def accepts_connections(url: str) -> bool:
    try:
        ask(url, "SELECT 1")
    except pymysql.OperationalError:
        return False
    return True
