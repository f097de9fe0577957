"""Refusals, and what only looks like an outage."""

import asyncio
import math
from contextlib import closing
from functools import partial

import pytest
from cutting_proxy import cutting_proxy
from patience import PATIENCE_SECONDS
from scan_rows import scan_rows
from sqlalchemy import Connection, select, update

from etl.app.adapters import Patience, PatientDatabase
from etl.database.connection import Database
from etl.database.dialects import insert_rows
from etl.database.engine import MOST_LOST, MOST_UNKNOWN
from etl.database.schema import (
    fetch_queue,
)
from etl.errors import DatabaseAwayError, DatabaseError, RefusedError
from etl.store.scans import load_scans
from etl.telemetry.events import DatabaseAway, DatabaseBack, Event


def failure_of(database: Database, *statements: str) -> DatabaseError:
    """What those statements, in one transaction, end with."""
    with pytest.raises(DatabaseError) as caught:
        database.run_here(lambda connection: [connection.exec_driver_sql(sql) for sql in statements])
    return caught.value


@pytest.mark.parametrize("code", [1644, 3157, 3819, 4025])
def test_mysql_refuses_a_row_by_more_codes_than_its_driver_knows(mysql: Database, code: int) -> None:
    """A trigger, JSON that is nested too deep and a CHECK are no outage."""
    assert type(failure_of(mysql, signalling(code))) is RefusedError


def signalling(code: int) -> str:
    return f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}"


async def test_a_row_that_is_larger_than_a_packet_is_refused(mysql: Database) -> None:
    """The server says so and ends the connection: that the rollback fails then hides nothing. Now and then the end
    overtakes the answer, while the row is still being sent; then the database answers all else."""
    row = scan_rows(1, odd="x" * 17_000_000)
    patient = PatientDatabase(mysql, Patience(math.inf, asyncio.Event(), lambda _event: None))
    with pytest.raises(RefusedError, match=r"max_allowed_packet|answers, but this has failed"):
        await patient.run(partial(load_scans, batch=[row], run_id="run"))


@pytest.mark.parametrize("odd", ["\udce4", "\0"])
def test_a_text_that_cannot_be_stored_is_refused(postgres_url: str, odd: str) -> None:
    """Whoever finds that out first, the driver or the server; in a COPY, too."""
    row = scan_rows(1)
    row = row._replace(meta=row.meta | {"branch": odd})
    with closing(Database(postgres_url)) as database, pytest.raises(RefusedError, match="refuses a row"):
        database.run_here(partial(load_scans, batch=[row], run_id="run"))


def test_the_driver_is_believed_before_a_server_that_got_half_a_row(postgres_url: str) -> None:
    """Of what came until the driver gave up, the server may say anything, as here that a batch has 32 characters."""
    columns = [fetch_queue.c[name] for name in ("deployment_id", "scan_id", "batch", "error")]
    rows = [(120, 1, "x" * 33, "y" * 200_000), (120, 2, None, "\udce4")]
    with closing(Database(postgres_url)) as database, pytest.raises(RefusedError, match="isn't Unicode"):
        database.run_here(partial(insert_rows, table=fetch_queue, columns=columns, rows=rows))


def test_a_lone_surrogate_is_refused(database: Database) -> None:
    """No driver can encode it."""
    change = update(fetch_queue).values(error="\udce4")
    with pytest.raises(RefusedError, match="isn't Unicode"):
        database.run_here(lambda connection: connection.execute(change))


@pytest.mark.parametrize("code", ["22003", "23514", "54000", "P0001"])
def test_postgresql_refuses_a_row_by_class(postgres_url: str, code: str) -> None:
    """Out of range, a CHECK, too long for an index, a trigger."""
    with closing(Database(postgres_url)) as database:
        assert type(failure_of(database, raising(code))) is RefusedError


def raising(code: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '{code}'; END $$"


@pytest.mark.parametrize("code", ["28000", "42501", "53100", "57P04"])
def test_what_only_people_can_fix_is_not_waited_for(postgres_url: str, code: str) -> None:
    """Rights, a full disk, a database that was dropped."""
    with closing(Database(postgres_url)) as database:
        assert type(failure_of(database, raising(code))) is DatabaseError


def test_a_server_that_may_not_be_written_to_is_waited_for(server_url: str) -> None:
    """It is a standby until the failover is over, however often it says so."""
    with closing(Database(server_url)) as database:
        is_mysql = database.engine.dialect.name == "mysql"
        error = failure_of(database, signalling(1290) if is_mysql else raising("25006"))

    assert isinstance(error, DatabaseAwayError)
    assert error.most_failures == math.inf


def test_a_time_limit_of_the_server_is_named(server_url: str) -> None:
    """It is neither an outage nor a bug, and somebody has to raise it."""
    with closing(Database(server_url)) as database:
        if database.engine.dialect.name == "mysql":
            error = failure_of(database, signalling(1969))
        else:
            error = failure_of(database, "SET LOCAL statement_timeout = 5", "SELECT pg_sleep(10)")

    assert type(error) is DatabaseError
    assert "statement_timeout" in str(error)


def test_a_time_limit_of_transactions_is_named(postgres_url: str) -> None:
    """The server ends the connection with it, which is no outage either."""
    with closing(Database(postgres_url)) as database:
        error = failure_of(database, raising("25P04"))

    assert type(error) is DatabaseError
    assert "raise its time limit" in str(error)


UNKNOWN = {"postgresql": raising("ZZ001"), "mysql": signalling(30_123)}
LOSING = {"postgresql": "SELECT pg_terminate_backend(pg_backend_pid())", "mysql": "KILL CONNECTION_ID()"}


@pytest.mark.parametrize(
    ("statements", "times"), [(UNKNOWN, MOST_UNKNOWN), pytest.param(LOSING, MOST_LOST, marks=pytest.mark.slow)]
)
async def test_what_always_fails_on_a_database_that_answers_is_refused(
    server_url: str, statements: dict[str, str], times: int
) -> None:
    """After a few times, each on a connection of its own; that there was no outage after all is told."""
    events: list[Event] = []
    connections = set()

    def work(connection: Connection) -> None:
        sql = "SELECT pg_backend_pid()" if connection.dialect.name == "postgresql" else "SELECT CONNECTION_ID()"
        connections.add(connection.exec_driver_sql(sql).scalar())
        connection.exec_driver_sql(statements[connection.dialect.name])

    with closing(Database(server_url)) as database:
        patient = PatientDatabase(database, Patience(math.inf, asyncio.Event(), events.append))
        with pytest.raises(RefusedError, match=f"answers, but the same work failed {times} times"):
            await patient.run(work)

    assert len(connections) == times
    assert [type(event) for event in events] == [DatabaseAway, DatabaseBack]


def test_work_is_not_to_blame_while_the_database_does_not_answer(server_url: str) -> None:
    """A connection that is lost in an outage says nothing of what was done on it."""
    with cutting_proxy(server_url) as proxy, closing(Database(proxy.url(server_url))) as database:

        def work(connection: Connection) -> None:
            connection.execute(select(1))
            proxy.refuse()
            connection.execute(select(1))

        with pytest.raises(DatabaseAwayError) as caught:
            database.run_here(work)

    assert caught.value.most_failures == math.inf


async def test_work_that_always_fails_ends_beside_work_that_succeeds() -> None:
    """Each piece has its own patience."""
    events: list[Event] = []
    patience = Patience(0.4, asyncio.Event(), events.append)

    async def fail() -> None:
        raise DatabaseAwayError("always")

    async with asyncio.timeout(PATIENCE_SECONDS):
        failing = asyncio.create_task(patience.retry(fail))
        while not failing.done():
            await patience.retry(partial(asyncio.sleep, 0))

    assert isinstance(failing.exception(), DatabaseAwayError)
    assert events == [DatabaseAway("always")]


async def test_an_outage_is_told_of_once_however_much_it_holds_up() -> None:
    """And its end, when nothing waits for the database any more."""
    events: list[Event] = []
    patience = Patience(math.inf, asyncio.Event(), events.append)
    failures = {"lease": 1, "settle": 2}

    async def work(name: str) -> str:
        failures[name] -= 1
        if failures[name] >= 0:
            raise DatabaseAwayError(name)
        return name

    done = await asyncio.gather(*(patience.retry(partial(work, name)) for name in failures))

    assert done == ["lease", "settle"]
    assert [type(event) for event in events] == [DatabaseAway, DatabaseBack]


async def test_who_finds_the_database_next_tells_of_the_end_of_an_outage() -> None:
    """Where the work that it held up was called off, too."""
    events, told = list[Event](), asyncio.Event()

    def emit(event: Event) -> None:
        events.append(event)
        told.set()

    async def fail() -> None:
        raise DatabaseAwayError("away")

    patience = Patience(math.inf, asyncio.Event(), emit)
    waiting = asyncio.create_task(patience.retry(fail))
    await told.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    for _ in range(2):
        await patience.retry(partial(asyncio.sleep, 0))

    assert [type(event) for event in events] == [DatabaseAway, DatabaseBack]
