"""What the rest relies on, whichever the database: instants, texts, keys, and transactions that meet others."""

import asyncio
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from cutting_proxy import cutting_proxy
from patience import PATIENCE_SECONDS
from queue_filling import enqueue
from scan_rows import scan_rows
from sqlalchemy import Connection, Delete, Select, Update, delete, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from etl.app.adapters import Patience, PatientDatabase, SharedSlots
from etl.database.connection import Database
from etl.database.dialects import distinct, in_pairs, insert_rows
from etl.database.engine import MOST_LOST, MOST_UNKNOWN, make_engine
from etl.database.schema import (
    KEY_TEXT_LENGTH,
    NAME_TEXT_LENGTH,
    fetch_queue,
    rate_budgets,
    scan_stat_items,
    schema_drift,
)
from etl.database.types import utc_now
from etl.errors import DatabaseAwayError, DatabaseError, RefusedError
from etl.model import Pair
from etl.store import queue
from etl.store.scans import load_scans
from etl.telemetry.events import DatabaseAway, DatabaseBack, Event


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def mysql(mysql_url: str) -> Iterator[Database]:
    opened = Database(mysql_url)
    yield opened
    opened.close()


def fill_queue(database: Database, deployments: int, scans: int) -> None:
    pairs = [Pair(120 + of, number) for of in range(deployments) for number in range(1, scans + 1)]
    enqueue(database, pairs, batch="batch")


def test_an_instant_is_the_same_instant_whatever_its_offset(database: Database) -> None:
    """Both ways of writing turn it into UTC and keep the microseconds."""
    instant = datetime(2026, 3, 1, 1, 30, 0, 123_456, timezone(timedelta(hours=5, minutes=45)))

    def work(connection: Connection) -> list[datetime]:
        connection.execute(insert(rate_budgets).values(token_key="core", next_free_at=instant))
        insert_rows(connection, rate_budgets, tuple(rate_budgets.c), [("rows", instant)])
        return list(connection.execute(select(rate_budgets.c.next_free_at)).scalars())

    found = database.run_here(work)

    assert found == [instant, instant]
    assert {one.tzinfo for one in found} == {UTC}


def test_the_clock_of_the_database_is_utc(database: Database) -> None:
    """Whatever the time zone of its server."""
    before = datetime.now(UTC)
    found = database.run_here(lambda connection: connection.execute(select(utc_now())).scalar_one())

    assert abs(found - before) < timedelta(minutes=5)


def test_keys_tell_texts_apart_that_look_alike(database: Database) -> None:
    """Capitals, accents and trailing blanks count, and the longest key has characters of four bytes."""
    names = ["a", "A", "a ", "á", "a\N{COMBINING ACUTE ACCENT}", "\U0001f680" * NAME_TEXT_LENGTH]
    longest = "\U0001f680" * KEY_TEXT_LENGTH

    def work(connection: Connection) -> list[str]:
        load_scans(connection, [scan_rows(1)], "run")
        rows = [(120, 1, longest, name, 1.0) for name in names]
        insert_rows(connection, scan_stat_items, tuple(scan_stat_items.c), rows)
        wanted = select(scan_stat_items.c.name).where(scan_stat_items.c.category == longest)
        return list(connection.execute(wanted).scalars())

    assert sorted(database.run_here(work)) == sorted(names)


def test_a_text_that_does_not_fit_is_refused(server_url: str) -> None:
    """It isn't cut: the row is refused, and the others of its transaction with it."""
    row = {"deployment_id": 120, "scan_id": 1, "batch": "x" * 33}
    with closing(Database(server_url)) as database:
        with pytest.raises(RefusedError, match="refuses a row"):
            database.run_here(lambda connection: connection.execute(insert(fetch_queue).values(row)))

        assert database.run_here(partial(distinct, columns=(fetch_queue.c.deployment_id, fetch_queue.c.scan_id))) == []


def test_of_two_transactions_that_block_each_other_the_loser_is_tried_again(server_url: str) -> None:
    """Neither caller sees the deadlock, and both changes are there."""
    meeting = threading.Barrier(2)

    def count(order: tuple[str, str]) -> int:
        tries = 0

        def work(connection: Connection) -> None:
            nonlocal tries
            tries += 1
            for path in order:
                row = schema_drift.c.path == path
                connection.execute(update(schema_drift).where(row).values(count=schema_drift.c.count + 1))
                if path == order[0] and tries == 1:
                    meeting.wait(PATIENCE_SECONDS)

        with closing(Database(server_url)) as database:
            database.run_here(work)
        return tries

    now = datetime.now(UTC)
    rows = [(path, "kind", 0, now, now, 120, 1) for path in ("a", "b")]
    with closing(Database(server_url)) as database:
        database.run_here(partial(insert_rows, table=schema_drift, columns=tuple(schema_drift.c), rows=rows))
        with ThreadPoolExecutor(2) as pool:
            tries = list(pool.map(count, (("a", "b"), ("b", "a"))))
        counts = database.run_here(lambda connection: connection.execute(select(schema_drift.c.count)).scalars().all())

    assert sorted(tries) == [1, 2]
    assert counts == [2, 2]


async def test_a_token_has_its_line_of_time_after_a_failure_to_open_it(sqlite_url: str) -> None:
    """What opened it was rolled back: the next who asks for a piece opens it again."""
    with closing(Database(sqlite_url)) as database:
        refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON rate_budgets BEGIN SELECT RAISE(ABORT, 'not now'); END"
        await database.run(lambda connection: connection.execute(text(refuse)))
        budget = SharedSlots(PatientDatabase(database, Patience(0, asyncio.Event(), print)), "token")
        with pytest.raises(RefusedError, match="not now"):
            await budget.reserve(1.0)
        await database.run(lambda connection: connection.execute(text("DROP TRIGGER refuse")))

        assert await budget.reserve(1.0) == 0
        assert 0 < await budget.reserve(1.0) <= 1


def test_what_is_no_conflict_is_not_tried_again(database: Database) -> None:
    """A wrong statement is wrong the second time, too."""
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("SELECT nonsense FROM fetch_queue"))

    with pytest.raises((DatabaseError, DBAPIError), match="nonsense"):
        database.run_here(work)

    assert len(tries) == 1


@pytest.mark.parametrize(
    ("changes", "is_away"), [({"password": "wrong"}, False), ({"database": "no_such"}, False), ({"port": 1}, True)]
)
def test_only_a_server_that_may_come_back_is_away(server_url: str, changes: dict[str, Any], is_away: bool) -> None:
    """For one that refuses the password, or has no such database, nobody waits."""
    url = make_url(server_url).set(**changes).render_as_string(hide_password=False)
    with closing(Database(url)) as database, pytest.raises(DatabaseError) as caught:
        database.run_here(utc_now_of)

    assert isinstance(caught.value, DatabaseAwayError) == is_away


def utc_now_of(connection: Connection) -> object:
    return connection.execute(select(utc_now())).scalar_one()


@pytest.mark.parametrize(
    "statements",
    [
        ("INSERT INTO no_such (a) VALUES (1)",),
        ("PRAGMA query_only = 1", "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1)"),
        ("PRAGMA max_page_count = 1", "CREATE TABLE big AS SELECT hex(randomblob(1000000))"),
    ],
)
def test_a_file_that_is_full_or_not_for_writing_is_not_away(sqlite_url: str, statements: tuple[str, ...]) -> None:
    """Nor is one without a table."""
    with closing(Database(sqlite_url)) as database, pytest.raises(DatabaseError) as caught:
        database.run_here(lambda connection: [connection.exec_driver_sql(sql) for sql in statements])

    assert not isinstance(caught.value, DatabaseAwayError)


# Refusals, and what only looks like an outage


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


def test_a_row_that_is_larger_than_a_packet_is_refused(mysql: Database) -> None:
    """The server says so, and ends the connection: that the rollback fails then hides nothing."""
    row = scan_rows(1, odd="x" * 17_000_000)
    with pytest.raises(RefusedError, match="max_allowed_packet"):
        mysql.run_here(partial(load_scans, batch=[row], run_id="run"))


@pytest.mark.parametrize("odd", ["\udce4", "\0"])
def test_a_text_that_cannot_be_stored_is_refused(postgres_url: str, odd: str) -> None:
    """Whoever finds that out first, the driver or the server; in a COPY, too."""
    row = scan_rows(1)
    row = row._replace(meta=row.meta | {"branch": odd})
    with closing(Database(postgres_url)) as database, pytest.raises(RefusedError, match="refuses a row"):
        database.run_here(partial(load_scans, batch=[row], run_id="run"))


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
        with pytest.raises(RefusedError, match=f"answers, but this has failed {times} times"):
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


def test_mysql_tries_again_when_a_lock_does_not_come(mysql: Database) -> None:
    """As after a deadlock; the caller sees nothing of it."""
    fill_queue(mysql, deployments=1, scans=1)
    change = text("UPDATE fetch_queue SET attempts = attempts + 1")
    tries = threading.Semaphore(0)

    def work(connection: Connection) -> None:
        tries.release()
        connection.execute(text("SET innodb_lock_wait_timeout = 1"))
        connection.execute(change)

    def hold(connection: Connection) -> Future[None]:
        connection.execute(change)
        changing = pool.submit(mysql.run_here, work)
        assert all(tries.acquire(timeout=PATIENCE_SECONDS) for _ in range(2))
        return changing

    with closing(Database(mysql.url)) as holder, ThreadPoolExecutor(1) as pool:
        holder.run_here(hold).result(PATIENCE_SECONDS)
        attempts = holder.run_here(lambda connection: connection.execute(select(fetch_queue.c.attempts)).scalar_one())

    assert attempts == 2


def plan_of(connection: Connection, statement: Select[Any] | Update | Delete) -> dict[str, Any]:
    """The one step in which MariaDB or MySQL would run a statement."""
    sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
    [step] = connection.exec_driver_sql(f"EXPLAIN FORMAT=TRADITIONAL {sql}").mappings()
    return dict(step)


def test_mysql_finds_pairs_by_their_key(mysql: Database) -> None:
    """It reads as many rows as there are pairs, for an UPDATE and a DELETE too, and locks no others."""
    fill_queue(mysql, deployments=3, scans=1_000)
    pairs = [Pair(120 + number % 3, number) for number in range(1, 501)]

    def work(connection: Connection) -> list[dict[str, Any]]:
        ours = in_pairs(connection, fetch_queue, pairs)
        statements = (
            select(fetch_queue.c.attempts).where(ours),
            update(fetch_queue).where(ours).values(attempts=1),
            delete(fetch_queue).where(ours),
        )
        return [plan_of(connection, statement) for statement in statements]

    plans = mysql.run_here(work)

    assert {(plan["type"], plan["key"]) for plan in plans} == {("range", "PRIMARY")}
    assert all(int(plan["rows"]) <= len(pairs) for plan in plans)


@pytest.mark.parametrize("batch", [None, "batch"])
def test_mysql_leases_in_the_order_of_an_index(mysql: Database, batch: str | None) -> None:
    """A lease locks the rows that it takes: if it sorted, it would lock all rows that are due."""
    fill_queue(mysql, deployments=2, scans=2_000)

    def work(connection: Connection) -> tuple[int, int]:
        leased = len(queue.lease(connection, "token", 100, 60, batch=batch))
        locked = text(
            "SELECT trx_rows_locked FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()"
        )
        return leased, connection.execute(locked).scalar_one()

    leased, locked = mysql.run_here(work)

    assert leased == 100
    # Each is locked in the index and in the table, where the change locks it again, at its old and new place.
    assert locked <= 10 * leased


def test_mysql_skips_from_deployment_to_deployment(mysql: Database) -> None:
    """It doesn't read the rows between them."""
    fill_queue(mysql, deployments=3, scans=1_000)

    def work(connection: Connection) -> tuple[list[int], int]:
        found = distinct(connection, (fetch_queue.c.deployment_id, fetch_queue.c.scan_id))
        read_on = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read_next'").one()
        return found, int(read_on[1])

    with closing(Database(mysql.url)) as fresh:  # the count is the session's
        found, read_on = fresh.run_here(work)

    assert found == [120, 121, 122]
    assert read_on < 10


def test_without_its_driver_mysql_says_what_to_install() -> None:
    """The extra is named, and nothing else is needed to know it."""
    code = (
        "import sys\n"
        "sys.modules['pymysql'] = None\n"
        "from etl.database.engine import make_engine\n"
        "make_engine('mysql://localhost/scans')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "ConfigError" in done.stderr
    assert "pip install 'scan-etl[mysql]'" in done.stderr


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_every_name_of_mysql_is_one_dialect(scheme: str) -> None:
    """So that all that depends on the dialect has one name to ask for."""
    engine = make_engine(f"{scheme}://localhost/scans")

    assert (engine.dialect.name, engine.driver) == ("mysql", "pymysql")


def test_the_write_lock_of_another_program_is_waited_for(sqlite_url: str) -> None:
    """It is free again after a while, as a backup's is."""
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        freeing = threading.Timer(1.0, other.execute, ("COMMIT",))
        freeing.start()
        with closing(Database(sqlite_url)) as database:
            found = database.run_here(lambda connection: connection.execute(text("SELECT 1")).scalar())
        freeing.join()

    assert found == 1
