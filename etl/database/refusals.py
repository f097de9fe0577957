"""What a database's refusal means, by its code: one table for PostgreSQL, MariaDB or MySQL, and SQLite."""

import sqlite3
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

Code = str | int
"""A SQLSTATE of PostgreSQL, a number of MariaDB or MySQL (from 1,000 on), or a primary code of SQLite (below 256)."""


class Meaning(Enum):
    """What a caller can do about it."""

    ROW = auto()
    """A row is refused. Others may be stored."""
    CONFLICT = auto()
    """Another transaction was in the way: the same one, tried again, may succeed."""
    TIME_LIMIT = auto()
    """The server ends statements that take so long, or somebody has ended this one."""
    UNAVAILABLE = auto()
    """The database may come back."""
    LASTING = auto()
    """Configuration, rights, a full disk, another schema: only people can fix it."""


_POSTGRESQL: Final[Mapping[str, Meaning]] = {
    "08": Meaning.UNAVAILABLE,  # connection exception
    "0A": Meaning.LASTING,  # feature not supported
    "22": Meaning.ROW,  # data exception: out of range, bad encoding, NUL in JSON
    "23": Meaning.ROW,  # integrity constraint violation
    "25006": Meaning.UNAVAILABLE,  # read-only transaction: a standby, until the failover is over
    "25P03": Meaning.UNAVAILABLE,  # idle_in_transaction_session_timeout has ended the connection
    "25P04": Meaning.TIME_LIMIT,  # transaction_timeout
    "28": Meaning.LASTING,  # invalid user or password
    "3D": Meaning.LASTING,  # no such database
    "3F": Meaning.LASTING,  # no such schema
    "40": Meaning.CONFLICT,  # serialization failure, deadlock
    "42": Meaning.LASTING,  # no such table or column, no right to it
    "53": Meaning.UNAVAILABLE,  # out of memory, too many connections
    "53100": Meaning.LASTING,  # disk full
    "53400": Meaning.LASTING,  # configuration limit exceeded, e.g. temp_file_limit
    "54": Meaning.ROW,  # program limit exceeded: too long for an index, nested too deep
    "55006": Meaning.UNAVAILABLE,  # object in use
    "55P03": Meaning.CONFLICT,  # lock_timeout
    "57014": Meaning.TIME_LIMIT,  # statement_timeout, pg_cancel_backend
    "57P": Meaning.UNAVAILABLE,  # shutting down, crashed, starting up, idle_session_timeout
    "57P04": Meaning.LASTING,  # database dropped
    "58": Meaning.LASTING,  # error of the system, e.g. of its disk
    "P0": Meaning.ROW,  # raised by somebody's trigger
    "XX001": Meaning.LASTING,  # data corrupted
    "XX002": Meaning.LASTING,  # index corrupted
}
"""By class, or by as much of the code as it takes."""

_MYSQL: Final[Mapping[int, Meaning]] = {
    1020: Meaning.CONFLICT,  # record has changed since it was read (innodb_snapshot_isolation)
    1021: Meaning.LASTING,  # disk full
    1026: Meaning.LASTING,  # error writing a file
    1030: Meaning.LASTING,  # error of the storage engine, e.g. its disk is full
    1034: Meaning.LASTING,  # index corrupted
    1037: Meaning.UNAVAILABLE,  # out of memory
    1038: Meaning.UNAVAILABLE,  # out of sort memory
    1040: Meaning.UNAVAILABLE,  # too many connections
    1041: Meaning.UNAVAILABLE,  # out of resources
    1044: Meaning.LASTING,  # no right to the database
    1045: Meaning.LASTING,  # wrong password
    1047: Meaning.UNAVAILABLE,  # unknown command: what a Galera node says that isn't ready
    1048: Meaning.ROW,  # NULL in a column that takes none
    1049: Meaning.LASTING,  # no such database
    1053: Meaning.UNAVAILABLE,  # shutting down
    1054: Meaning.LASTING,  # no such column
    1062: Meaning.ROW,  # duplicate key
    1114: Meaning.LASTING,  # table full
    1118: Meaning.ROW,  # row too large
    1129: Meaning.LASTING,  # host blocked
    1130: Meaning.LASTING,  # host not allowed
    1133: Meaning.LASTING,  # no such user
    1142: Meaning.LASTING,  # no right to the table
    1143: Meaning.LASTING,  # no right to the column
    1146: Meaning.LASTING,  # no such table
    1152: Meaning.UNAVAILABLE,  # connection aborted
    1153: Meaning.ROW,  # larger than max_allowed_packet
    1158: Meaning.UNAVAILABLE,  # network: error reading
    1159: Meaning.UNAVAILABLE,  # network: timeout reading
    1160: Meaning.UNAVAILABLE,  # network: error writing
    1161: Meaning.UNAVAILABLE,  # network: timeout writing
    1184: Meaning.UNAVAILABLE,  # connection aborted, too
    1194: Meaning.LASTING,  # table corrupted
    1197: Meaning.ROW,  # transaction larger than max_binlog_cache_size
    1203: Meaning.UNAVAILABLE,  # too many connections of this user
    1205: Meaning.CONFLICT,  # lock wait timeout
    1213: Meaning.CONFLICT,  # deadlock
    1226: Meaning.UNAVAILABLE,  # limit of this user reached for now
    1227: Meaning.LASTING,  # no privilege
    1251: Meaning.LASTING,  # no way to log in that both know
    1264: Meaning.ROW,  # out of range
    1265: Meaning.ROW,  # not of the column's type
    1290: Meaning.UNAVAILABLE,  # --read-only, until the failover is over
    1292: Meaning.ROW,  # incorrect value
    1301: Meaning.ROW,  # result larger than max_allowed_packet
    1317: Meaning.TIME_LIMIT,  # KILL QUERY
    1364: Meaning.LASTING,  # a column that we don't know needs a value
    1366: Meaning.ROW,  # incorrect value for the column
    1370: Meaning.LASTING,  # no right to a routine
    1406: Meaning.ROW,  # too long for the column
    1410: Meaning.LASTING,  # no such user, and no right to make one
    1451: Meaning.ROW,  # a foreign key holds the row
    1452: Meaning.ROW,  # a foreign key misses its row
    1614: Meaning.CONFLICT,  # deadlock of a distributed transaction
    1644: Meaning.ROW,  # raised by somebody's trigger
    1690: Meaning.ROW,  # out of range
    1698: Meaning.LASTING,  # wrong way to log in
    1712: Meaning.LASTING,  # index corrupted, too
    1792: Meaning.UNAVAILABLE,  # read-only transaction, as 1290
    1820: Meaning.LASTING,  # password must be changed
    1836: Meaning.UNAVAILABLE,  # read-only mode, as 1290
    1862: Meaning.LASTING,  # password expired
    1927: Meaning.UNAVAILABLE,  # connection killed
    1932: Meaning.LASTING,  # the engine has lost the table
    1969: Meaning.TIME_LIMIT,  # MariaDB's max_statement_time
    2002: Meaning.UNAVAILABLE,  # no connection by socket
    2003: Meaning.UNAVAILABLE,  # no connection
    2006: Meaning.UNAVAILABLE,  # server has gone
    2013: Meaning.UNAVAILABLE,  # connection lost
    2055: Meaning.UNAVAILABLE,  # connection lost, too
    3024: Meaning.TIME_LIMIT,  # MySQL's max_execution_time
    3118: Meaning.LASTING,  # account locked
    3140: Meaning.ROW,  # MySQL: not JSON
    3150: Meaning.ROW,  # MySQL: JSON too large
    3157: Meaning.ROW,  # MySQL: JSON nested too deep
    3572: Meaning.CONFLICT,  # NOWAIT
    3819: Meaning.ROW,  # MySQL: CHECK violated
    4025: Meaning.ROW,  # MariaDB: CHECK violated, and so JSON that isn't
    4031: Meaning.UNAVAILABLE,  # idle for too long
    4038: Meaning.ROW,  # MariaDB: JSON nested deeper than 32
    4151: Meaning.LASTING,  # MariaDB: account locked
}

_SQLITE: Final[Mapping[int, Meaning]] = {
    sqlite3.SQLITE_ERROR: Meaning.LASTING,  # no such table or column
    sqlite3.SQLITE_PERM: Meaning.LASTING,
    sqlite3.SQLITE_BUSY: Meaning.UNAVAILABLE,  # another process writes
    sqlite3.SQLITE_LOCKED: Meaning.UNAVAILABLE,  # another connection of this process does
    sqlite3.SQLITE_NOMEM: Meaning.UNAVAILABLE,
    sqlite3.SQLITE_READONLY: Meaning.LASTING,  # also a file that was deleted or moved
    sqlite3.SQLITE_IOERR: Meaning.LASTING,
    sqlite3.SQLITE_CORRUPT: Meaning.LASTING,
    sqlite3.SQLITE_FULL: Meaning.LASTING,
    sqlite3.SQLITE_CANTOPEN: Meaning.LASTING,
    sqlite3.SQLITE_PROTOCOL: Meaning.UNAVAILABLE,  # others open and close the file all the time
    sqlite3.SQLITE_SCHEMA: Meaning.CONFLICT,  # another process has just changed it
    sqlite3.SQLITE_TOOBIG: Meaning.ROW,
    sqlite3.SQLITE_CONSTRAINT: Meaning.ROW,
    sqlite3.SQLITE_MISMATCH: Meaning.ROW,
    sqlite3.SQLITE_NOLFS: Meaning.LASTING,
    sqlite3.SQLITE_AUTH: Meaning.LASTING,
    sqlite3.SQLITE_NOTADB: Meaning.LASTING,
}


def meaning_of(code: Code | None) -> Meaning | None:
    """What a code means; None for one that isn't known."""
    if isinstance(code, str):
        prefixes = (code[:length] for length in range(len(code), 1, -1))
        return next((_POSTGRESQL[prefix] for prefix in prefixes if prefix in _POSTGRESQL), None)
    return None if code is None else _MYSQL.get(code) or _SQLITE.get(code)
