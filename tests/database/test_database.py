"""What the rest relies on, whichever the database: instants, texts, keys, and transactions that meet others."""

import asyncio
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from patience import PATIENCE_SECONDS
from scan_rows import scan_rows
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from etl.app.adapters import Patience, PatientDatabase, SharedSlots
from etl.database.connection import Database
from etl.database.dialects import distinct, insert_rows
from etl.database.engine import make_engine
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
from etl.store.scans import load_scans


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


def test_a_server_whose_machine_is_gone_is_missed_within_a_minute(server_url: str) -> None:
    """Its client asks after it, while it waits for an answer and while it sends."""

    def options(connection: Connection) -> list[int]:
        driver: Any = connection.connection.driver_connection
        number = getattr(driver, "_sock", driver).fileno()  # PyMySQL's, else psycopg's
        with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as link:
            is_kept_alive = link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            return [is_kept_alive, *(link.getsockopt(socket.IPPROTO_TCP, name) for name in names)]

    with closing(Database(server_url)) as database:
        assert database.run_here(options) == [1, 10, 5, 3, 60_000]
