"""SQLite's one file: for whose eyes it is made, how it is locked and read, and whether it is still the same one."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Engine, event, exc

from etl.errors import DatabaseError

BUSY_TIMEOUT_SECONDS, BUSY_POLL_SECONDS = 60.0, 0.2
"""How long to wait for SQLite's write lock, and for how long at a stretch: SQLite's own wait hears of no Ctrl-C."""
_FILE: Final = "scan-etl file"


def prepare_to_write(engine: Engine) -> None:
    """Each transaction is a writer's, in the file that was opened."""
    event.listen(engine, "connect", _write_ahead)
    event.listen(engine, "connect", _remember_file)
    event.listen(engine, "begin", _check_file)
    event.listen(engine, "begin", _begin_immediate)
    event.listen(engine, "commit", _check_file)


def prepare_to_read(engine: Engine) -> None:
    """No transaction takes a lock that a writer could have, or writes anything."""
    event.listen(engine, "connect", _refuse_to_write)
    event.listen(engine, "begin", _begin)


def make_file(path: str) -> None:
    """A file that isn't there is made for its owner's eyes alone; what SQLite puts beside it gets the same mode."""
    with contextlib.suppress(OSError):  # it is there, or can't be made, which SQLite tells
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _write_ahead(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads first could otherwise lose an update."""
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except exc.OperationalError as error:
            is_busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= until:
                raise
        else:
            return


# An open file takes rows also after it was deleted, or another was moved over it. Nobody would find them again.


def _remember_file(connection: sqlite3.Connection, record: Any) -> None:
    _, _, path = connection.execute("PRAGMA database_list").fetchone()
    record.info[_FILE] = path, _identity(path)


def _check_file(connection: Connection) -> None:
    path, identity = connection.info[_FILE]
    if _identity(path) != identity:
        raise DatabaseError(f"the database {path} was deleted or replaced while it was open: what was written is lost")


def _identity(path: str) -> tuple[int, int] | None:
    """Which file stands there; None if none does."""
    try:
        found = os.stat(path)  # noqa: PTH116 - ten times a Path's pace, twice a transaction
    except OSError:
        return None
    return found.st_dev, found.st_ino


# Reading


def connect_to_read(dialect: Dialect, _record: object, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """A file that can't be written, or whose folder can't: there SQLite can't make what it puts beside the file.

    None leaves the connection to whoever makes it else. Without a write-ahead log nobody is writing just now.
    """
    path = Path(arguments[0])
    if all(os.access(place, os.W_OK) for place in (path, path.parent)):
        return None
    log = path.with_name(f"{path.name}-wal")
    is_at_rest = not log.exists() or log.stat().st_size == 0
    uri = f"{path.as_uri()}?mode=ro{'&immutable=1' if is_at_rest else ''}"
    return dialect.connect(uri, uri=True, **parameters)


def _refuse_to_write(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA schema_version")  # it is read only now: whether it is a database shows here


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
