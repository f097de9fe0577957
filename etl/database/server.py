"""What a database is: its kind and version, and which texts it can hold."""

from typing import Any

from sqlalchemy import Connection

_HOLD_ALL_TEXTS = (None, "UTF8", "SQL_ASCII")
"""SQL_ASCII keeps the bytes of any text as they are."""


def product(connection: Connection) -> str:
    """The kind of database and its version, e.g. `postgresql 18.0`."""
    numbers: tuple[object, ...] = getattr(connection.dialect, "server_version_info", None) or ()
    name = "mariadb" if getattr(connection.dialect, "is_mariadb", False) else connection.dialect.name
    return f"{name} {'.'.join(map(str, numbers))}".strip()


def narrow_encoding(connection: Connection) -> str | None:
    """The encoding of a PostgreSQL database that lacks characters, e.g. `LATIN1`; None where any text can be stored."""
    driver: Any = connection.connection.driver_connection
    info = getattr(driver, "info", None)  # psycopg alone has it
    encoding = info and info.parameter_status("server_encoding")
    return None if encoding in _HOLD_ALL_TEXTS else encoding


def in_its_characters(connection: Connection, value: Any) -> Any:
    """A text, or what JSON is made of, as every encoding has it: where this one lacks characters, with escapes."""
    if narrow_encoding(connection) is None:
        return value
    if isinstance(value, dict):
        return {name: in_its_characters(connection, item) for name, item in value.items()}
    if isinstance(value, list):
        return [in_its_characters(connection, item) for item in value]
    return value.encode("ascii", "backslashreplace").decode() if isinstance(value, str) else value
