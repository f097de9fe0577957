"""What `Database` promises of a unit of work."""

import threading
from collections.abc import Callable
from contextlib import closing

from sqlalchemy import Connection, text

from etl.database import Database


def test_two_transactions_that_wait_for_each_other_both_come_to_an_end(postgres_url: str) -> None:
    """PostgreSQL ends one of them; it is done again, so that both changes are there afterwards."""
    locked = threading.Barrier(2)

    def crossing(first: str, second: str) -> Callable[[Connection], None]:
        met: list[bool] = []

        def work(connection: Connection) -> None:
            connection.execute(
                text("UPDATE rate_budgets SET next_free_at = now() WHERE token_key = :key"), {"key": first}
            )
            if not met:
                met.append(True)
                locked.wait(30)
            connection.execute(text("UPDATE runs SET requests = requests + 1 WHERE run_id = :key"), {"key": second})
            connection.execute(
                text("UPDATE rate_budgets SET next_free_at = now() WHERE token_key = :key"), {"key": second}
            )

        return work

    with closing(Database(postgres_url)) as one, closing(Database(postgres_url)) as other:
        for key in ("a", "b"):
            values = {"key": key}
            budget = text("INSERT INTO rate_budgets VALUES (:key, now())")
            run = text("INSERT INTO runs (run_id, command, version, started_at) VALUES (:key, 'x', 'x', now())")
            one.run_here(lambda connection, v=values, b=budget: connection.execute(b, v))  # type: ignore[misc]
            one.run_here(lambda connection, v=values, r=run: connection.execute(r, v))  # type: ignore[misc]
        thread = threading.Thread(target=other.run_here, args=(crossing("b", "a"),))
        thread.start()
        one.run_here(crossing("a", "b"))
        thread.join(30)
        counts = one.run_here(lambda connection: connection.execute(text("SELECT requests FROM runs")).scalars().all())

    assert counts == [1, 1]
