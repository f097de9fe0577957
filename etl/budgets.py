"""The line of time that all workers of a token share: one row, one column, the next free instant.

It is the generic cell rate algorithm with the database's clock. The row is found by a digest of the token, which says
nothing of it.
"""

from hashlib import blake2b

from sqlalchemy import Connection, case, literal, select, update

from etl.database import upsert
from etl.schema import moved, rate_budgets, utc_now

_budget = rate_budgets.c


def key_of(token: str) -> str:
    """The name of a token's row: 32 hex digits of a one-way digest."""
    return blake2b(token.encode(), digest_size=16, person=b"scan-etl budget").hexdigest()


def open_budget(connection: Connection, key: str) -> None:
    """Make the row of a token, if it isn't there yet."""
    connection.execute(upsert(connection, rate_budgets).values(token_key=key, next_free_at=utc_now()))


def reserve(connection: Connection, key: str, seconds: float) -> float:
    """Take the next `seconds` of the token's time, and return in how many seconds they begin."""
    free_at = case((_budget.next_free_at < utc_now(), utc_now()), else_=_budget.next_free_at)
    connection.execute(
        update(rate_budgets).where(_budget.token_key == key).values(next_free_at=moved(free_at, literal(seconds)))
    )
    ends_at, now = connection.execute(select(_budget.next_free_at, utc_now()).where(_budget.token_key == key)).one()
    begins_in: float = (ends_at - now).total_seconds() - seconds
    return max(0.0, begins_in)


def hold(connection: Connection, key: str, seconds: float) -> None:
    """Let nobody take a piece of time that begins in the next `seconds`."""
    until = moved(utc_now(), literal(seconds))
    statement = update(rate_budgets).where(_budget.token_key == key, _budget.next_free_at < until)
    connection.execute(statement.values(next_free_at=until))
