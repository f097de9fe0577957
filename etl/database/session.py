"""What a server is told at each connection or transaction, whatever role, configuration and environment say."""

import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from etl.errors import ConfigError

CONNECT_TIMEOUT_SECONDS = 10
HUNG_SECONDS = 10
"""How long a client may be silent in the middle of a transaction before the server ends it."""
KEEPALIVE_SECONDS = 10
"""After how long a silence a client asks whether its server's machine is still there."""
READER_SECONDS = 86_400
"""After how long MySQL and MariaDB give up a client that doesn't take the next rows: a day, for there is no value for
no limit."""
IS_SNAPSHOT = "etl_snapshot"


# PostgreSQL


def postgresql_arguments() -> dict[str, Any]:
    """For the driver, whatever the URL says."""
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": "scan-etl",
        "autocommit": True,  # `begin_postgresql` says BEGIN
        "client_encoding": "utf8",
        # A prepared statement may keep its plan from when the queue was short: a worker that had waited at an empty
        # one then took 5 s for each lease from 20,000 rows, until the server had counted them.
        "prepare_threshold": None,
        # A server whose machine is gone doesn't say so. Without these, whoever waits for its answer waits for hours.
        "keepalives_idle": KEEPALIVE_SECONDS,
        "keepalives_interval": KEEPALIVE_SECONDS // 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 6_000 * KEEPALIVE_SECONDS,
    }


_OF_TRANSACTION = {
    # A worker that hangs, or whose machine is gone, mustn't hold its locks against all others: on the row of a token
    # each of them would wait for hours, until the server misses its client.
    "idle_in_transaction_session_timeout": f"{HUNG_SECONDS}s",
    "timezone": "UTC",  # in another zone the driver takes 2 us more for an instant
    "datestyle": "ISO",  # the driver reads no other
    "extra_float_digits": "1",  # with fewer, numbers come back rounded
    "quote_all_identifiers": "off",  # SQLAlchemy knows no type called "text", with its quotes
    "standard_conforming_strings": "on",
}
# A reader holds no locks, so it may be silent for as long as a disk or the reader of a pipe takes. And PostgreSQL would
# plan for somebody who wants the first rows soon, and look each row of millions up by a key.
_OF_SNAPSHOT = {**_OF_TRANSACTION, "idle_in_transaction_session_timeout": "0", "cursor_tuple_fraction": "1"}


def _begin(how: str, settings: Mapping[str, str]) -> str:
    return "; ".join((f"BEGIN ISOLATION LEVEL {how}", *(f"SET LOCAL {name} = '{it}'" for name, it in settings.items())))


_BEGIN, _BEGIN_SNAPSHOT = _begin("READ COMMITTED", _OF_TRANSACTION), _begin("REPEATABLE READ READ ONLY", _OF_SNAPSHOT)


def begin_postgresql(connection: Connection) -> None:
    """Settings end with their transaction: behind a pooler the next one has another session, and this session another
    client. All in one round trip, as BEGIN alone."""
    is_snapshot = connection.get_execution_options().get(IS_SNAPSHOT)
    connection.exec_driver_sql(_BEGIN_SNAPSHOT if is_snapshot else _BEGIN)


def in_schema(schema: str) -> Callable[[Connection], None]:
    """For one transaction at a time: the next one of the same session may be another client's of a pool."""

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL search_path = {quoted(schema)}")

    return begin


def quoted(schema: str) -> str:
    """The name of a schema, which has no quotes, as SQL has it."""
    return f'"{schema}"'


# MySQL and MariaDB


_OF_SESSION = {
    "time_zone": "'+00:00'",
    "completion_type": "'NO_CHAIN'",
    "div_precision_increment": "4",  # with less, percentages are rounded
    "group_concat_max_len": "1048576",  # a longer list would be cut
    "sql_big_selects": "1",  # or what may read many rows is refused
    "sql_safe_updates": "0",
    "sql_select_limit": "18446744073709551615",  # or rows are missing
}
_SET_FOR_SESSION = "SET " + ", ".join(f"{name} = {it}" for name, it in _OF_SESSION.items())


def mysql_arguments() -> dict[str, Any]:
    """For the driver, whatever the URL says. ConfigError where it isn't installed."""
    try:
        from pymysql.converters import conversions  # noqa: PLC0415 - comes with an extra
    except ModuleNotFoundError as error:
        raise ConfigError("database.url: MySQL and MariaDB need a driver: pip install 'scan-etl[mysql]'") from error
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": CONNECT_TIMEOUT_SECONDS,
        "program_name": "scan-etl",
        "charset": "utf8mb4",
        "use_unicode": True,
        "sql_mode": "TRADITIONAL",  # or a text that is too long would be cut
        # A worker that hangs mustn't hold its locks against all others. MySQL, which skips the comment, has no
        # such limit.
        "init_command": _SET_FOR_SESSION + f" /*M! , idle_transaction_timeout = {HUNG_SECONDS} */",
        # PyMySQL itself drops the offset.
        "conv": {**conversions, datetime: lambda instant, _: f"'{instant_text(instant)}'"},
    }


def prepare_mysql(connection: Any, _record: object) -> None:
    """Somebody else's port may never say hello: only that has a time limit, a statement may take as long as it does.
    A machine that is gone is noticed as PostgreSQL's."""
    connection._read_timeout = None  # noqa: SLF001 - PyMySQL has one for both, and no other way to lift it
    link: socket.socket = connection._sock  # noqa: SLF001 - it has no parameters for these
    if link.family in (socket.AF_INET, socket.AF_INET6):
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:  # not every system has each
                link.setsockopt(socket.IPPROTO_TCP, option, value)


_KEEPALIVE = {
    "TCP_KEEPIDLE": KEEPALIVE_SECONDS,
    "TCP_KEEPINTVL": KEEPALIVE_SECONDS // 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 6_000 * KEEPALIVE_SECONDS,
}


def instant_text(value: datetime) -> str:
    """The form in which SQLAlchemy's DateTime stores an instant in SQLite, so that text order is time order."""
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(" ", "microseconds")[:26]
