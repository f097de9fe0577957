"""The line of time that all workers of a token share: one row, one column, the next free instant.

It is the generic cell rate algorithm with the database's clock. The row is found by a digest of the token, which says
nothing of it.
"""

from hashlib import blake2b

from sqlalchemy import Connection, bindparam, case, or_, select, update

from etl.database.dialects import upsert
from etl.database.schema import rate_budgets
from etl.database.types import add_seconds, utc_now

LONGEST_WAIT_SECONDS = 900.0
"""Nothing makes a token wait for longer than that, unless the settings say so. What is further ahead was written while
the clock was: it isn't believed."""

_budget = rate_budgets.c
_OF_TOKEN = _budget.token_key == bindparam("of_token")
_IS_AHEAD = _budget.next_free_at > add_seconds(utc_now(), bindparam("longest"))
_FREE_AT = case((or_(_budget.next_free_at < utc_now(), _IS_AHEAD), utc_now()), else_=_budget.next_free_at)
_RESERVE = update(rate_budgets).where(_OF_TOKEN).values(next_free_at=add_seconds(_FREE_AT, bindparam("seconds")))
_RESERVED = select(_budget.next_free_at, utc_now()).where(_OF_TOKEN)
_HELD_UNTIL = add_seconds(utc_now(), bindparam("seconds"))
_HOLD = (
    update(rate_budgets)
    .where(_OF_TOKEN, or_(_budget.next_free_at < _HELD_UNTIL, _IS_AHEAD))
    .values(next_free_at=_HELD_UNTIL)
)


def key_of(token: str) -> str:
    """The name of a token's row: 32 hex digits of a one-way digest."""
    return blake2b(token.encode(), digest_size=16, person=b"scan-etl budget").hexdigest()


def open_slots(connection: Connection, key: str) -> None:
    """Make the row of a token, if it isn't there yet."""
    connection.execute(upsert(connection, rate_budgets).values(token_key=key, next_free_at=utc_now()))


def reserve(
    connection: Connection, key: str, seconds: float, longest_wait_seconds: float = LONGEST_WAIT_SECONDS
) -> float:
    """Take the next `seconds` of the token's time, and return in how many seconds they begin."""
    values = {"of_token": key, "seconds": seconds, "longest": longest_wait_seconds}
    if not connection.execute(_RESERVE, values).rowcount:  # somebody has removed the row
        open_slots(connection, key)
        connection.execute(_RESERVE, values)
    ends_at, now = connection.execute(_RESERVED, {"of_token": key}).one()
    begins_in: float = (ends_at - now).total_seconds() - seconds
    return max(0.0, begins_in)


def hold(connection: Connection, key: str, seconds: float, longest_wait_seconds: float = LONGEST_WAIT_SECONDS) -> None:
    """Let nobody take a piece of time that begins in the next `seconds`."""
    connection.execute(_HOLD, {"of_token": key, "seconds": seconds, "longest": longest_wait_seconds})
