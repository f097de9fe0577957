"""Roles of a server that a test makes beside its own: they can log in, and own nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from mysql_databases import ask
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from etl.database.engine import make_engine

REFUSED = frozenset({"42501", 1044, 1142, 1143})
"""The codes of a right that is missing."""


@dataclass(frozen=True, slots=True)
class LoginRole:
    """A role, with the URL of the one that made it."""

    owner_url: str
    name: str

    def url(self, password: str) -> str:
        """The URL of the same database with this role and a password."""
        return make_url(self.owner_url).set(username=self.name, password=password).render_as_string(hide_password=False)

    @property
    def in_sql(self) -> str:
        return self.name if _is_postgresql(self.owner_url) else f"'{self.name}'@'127.0.0.1'"

    def change_password(self, password: str) -> None:
        """From now on only this one opens the door. Who is inside stays."""
        word = "PASSWORD" if _is_postgresql(self.owner_url) else "IDENTIFIED BY"
        execute(self.owner_url, f"ALTER USER {self.in_sql} {word} '{password}'")


@contextmanager
def login_role(owner_url: str, suffix: str, password: str, *grants: str) -> Iterator[LoginRole]:
    """A new role, gone afterwards. `grants` are statements with `{role}` and `{database}`."""
    database = make_url(owner_url).database or ""
    role = LoginRole(owner_url, f"of_{database[-12:]}_{suffix}")
    is_postgresql = _is_postgresql(owner_url)
    how = f"LOGIN PASSWORD '{password}'" if is_postgresql else f"IDENTIFIED BY '{password}'"
    execute(owner_url, f"CREATE USER {role.in_sql} {how}")
    try:
        for grant in grants:
            execute(owner_url, grant.format(role=role.in_sql, database=database))
        yield role
    finally:
        if is_postgresql:
            execute(owner_url, f"DROP OWNED BY {role.in_sql} CASCADE")
        execute(owner_url, f"DROP USER {role.in_sql}")


def execute(url: str, sql: str) -> None:
    """One statement, committed."""
    if _is_postgresql(url):
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(sql)
    else:
        ask(url, sql)


def may(url: str, sql: str) -> bool:
    """Whether the user of a URL has the right to a statement. Where it has, the rows that it changes are given back."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text(sql))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in REFUSED or getattr(error.orig, "args", (None,))[0] in REFUSED:
            return False
        raise
    finally:
        engine.dispose()
    return True


def _is_postgresql(url: str) -> bool:
    return url.startswith("postgresql")
