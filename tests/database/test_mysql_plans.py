"""How MariaDB and MySQL lock and find what we ask of them, and what to install for them."""

import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from patience import PATIENCE_SECONDS
from queue_filling import enqueue
from sqlalchemy import Connection, Delete, Select, Update, delete, select, text, update
from worker_processes import wait_until

from etl.database.connection import Database
from etl.database.dialects import distinct, in_pairs
from etl.database.schema import (
    fetch_queue,
)
from etl.model import Pair
from etl.store import queue


def fill_queue(database: Database, deployments: int, scans: int) -> None:
    pairs = [Pair(120 + of, number) for of in range(deployments) for number in range(1, scans + 1)]
    enqueue(database, pairs, batch="batch")


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
        # The server shows its transactions as somebody else saw them last, until nobody has looked for 0.1 s.
        wait_until("this transaction is shown", lambda: connection.execute(locked).first())
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
