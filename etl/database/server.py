"""What a database is: its kind and version, and which texts it can hold."""

import codecs
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
    """A text, or what JSON is made of, as the database can hold it: a text with a character that its encoding lacks is
    written with escapes."""
    encoding = narrow_encoding(connection)
    return value if encoding is None else _escaped(value, _codec(encoding))


def _codec(encoding: str) -> str:
    """Python's name for an encoding of PostgreSQL; that of ASCII where it has none."""
    name = encoding.replace("WIN", "cp")
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "ascii"


def _escaped(value: Any, codec: str) -> Any:
    if isinstance(value, dict):
        return {_escaped(name, codec): _escaped(item, codec) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item, codec) for item in value]
    if not isinstance(value, str) or _has(codec, value):
        return value
    return value.encode("ascii", "backslashreplace").decode()


def _has(codec: str, text: str) -> bool:
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
