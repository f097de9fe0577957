"""What a role may do: the rights of those who run and of those who read, given by statements and tried one by one."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from sqlalchemy import Connection, Executable, Table, delete, exc, false, func, insert, select, text, update

from etl.database.schema import metadata
from etl.database.version import VERSION_TABLE, own_schema
from etl.errors import DatabaseError

Kind = Literal["writer", "reader"]
READS: Final = "SELECT"
WRITES: Final = "SELECT, INSERT, UPDATE, DELETE"
_REFUSED: Final = frozenset({"42501", 1044, 1142, 1143})
"""The codes of a right that is missing."""


_SEQUENCES: Final = [
    f"{table.name}_{table.autoincrement_column.name}_seq"
    for table in metadata.sorted_tables
    if table.autoincrement_column is not None
]
"""PostgreSQL has a right of its own for the numbers that it gives."""


def grant_statements(connection: Connection, kind: Kind, role: str, views: Iterable[str]) -> Iterator[str]:
    """What gives a role its rights: a writer all that a run needs, a reader all that a dashboard does."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    schema = own_schema(connection)
    to = _user(role) if schema is None else quote(role)
    if schema is not None:
        yield f"GRANT USAGE ON SCHEMA {quote(schema)} TO {to}"
        for name in _SEQUENCES if kind == "writer" else ():
            yield f"GRANT USAGE ON SEQUENCE {quote(schema)}.{name} TO {to}"
    place = quote(schema or connection.engine.url.database or "")
    of = {**dict.fromkeys([VERSION_TABLE, *views], READS), **dict.fromkeys(metadata.tables, WRITES)}
    for name, rights in of.items():
        yield f"GRANT {rights if kind == 'writer' else READS} ON {place}.{name} TO {to}"


def _user(role: str) -> str:
    """A role of MariaDB or MySQL: a name, and maybe a host behind an @."""
    parts = [part.replace("\\", "\\\\").replace("'", "''") for part in role.rsplit("@", 1)]
    return "@".join(f"'{part}'" for part in parts)


def grant(connection: Connection, statements: Iterable[str]) -> None:
    """Execute the statements of a grant. Each can be said again. DatabaseError where PostgreSQL only warns that nothing
    is given: whoever asks has the right and may not pass it on."""
    driver: Any = connection.connection.driver_connection
    refused: list[str] = []
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL client_min_messages = 'warning'"))
        driver.add_notice_handler(
            lambda said: refused.append(said.message_primary) if said.sqlstate == "01007" else None
        )
    for statement in statements:
        connection.execute(text(statement.replace(":", r"\:")))
    if refused:
        raise DatabaseError(f"{refused[0]}: have the owner of the tables run `scan-etl db grant`")


def missing_rights(connection: Connection) -> Mapping[str, list[str]]:
    """The tables and sequences on which the role lacks a right that a run needs, by right. Each is tried, on no row."""
    missing: dict[str, list[str]] = defaultdict(list)
    for table in metadata.sorted_tables:
        for right, statement in _trials(table).items():
            try:
                with connection.begin_nested():
                    connection.execute(statement)
            except exc.DBAPIError as error:
                codes = {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1]}
                if not codes & _REFUSED:
                    raise
                missing[right].append(table.name)
    if own_schema(connection) is not None:
        for name in _SEQUENCES:
            if not connection.execute(select(func.has_sequence_privilege(name, "USAGE"))).scalar():
                missing["USAGE"].append(name)
    return missing


def _trials(table: Table) -> Mapping[str, Executable]:
    columns: list[Any] = list(table.columns)  # all: some have no default
    return {
        "SELECT": select(*columns).where(false()),
        "INSERT": insert(table).from_select(columns, select(*columns).where(false())),
        "UPDATE": update(table).values({columns[0]: columns[0]}).where(false()),
        "DELETE": delete(table).where(false()),
    }
