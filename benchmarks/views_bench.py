"""Whether dashboards get right numbers in a second: each of their questions beside the same, counted by hand.

    .venv/bin/python benchmarks/views_bench.py [--scans N] [--filled] [--only-views] [URL ...]

Writes N made-up scans (20,000 if not said) of two years, counts them, and asks. A URL is that of an empty database, as
for MariaDB, or with `--filled` of one that an earlier call has filled. Without one, SQLite and PostgreSQL bring their
own. Counting by hand takes minutes at millions.
"""

import argparse
import math
import time
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from bench_databases import postgresql_databases, sqlite_database
from many_scans import fill
from sqlalchemy import Connection, make_url
from views_questions import QUESTIONS, ROWS, SECONDS, Question

from etl.app.refresh import refresh
from etl.database.connection import Database
from etl.database.migrate import upgrade
from migrations.views.macros import in_words_of


def days(last: date) -> dict[str, str]:
    """The days that the questions name."""
    monday = last - timedelta(days=last.weekday())
    found = {
        "last": last,
        "week": last - timedelta(days=6),
        "fortnight": last - timedelta(days=13),
        "month": last - timedelta(days=29),
        "quarter": last - timedelta(days=89),
        "last_week": monday,
        "quarter_week": monday - timedelta(days=84),
    }
    return {name: day.isoformat() for name, day in found.items()}


def _sql(sql: str, dialect: str, last: date) -> str:
    for name, word in {**days(last), "seconds": SECONDS[dialect]}.items():
        sql = sql.replace("{" + name + "}", word)
    return in_words_of(dialect, sql)


def ask(connection: Connection, sql: str) -> tuple[list[tuple[Any, ...]], float]:
    """The rows in order, and how many seconds they took."""
    began_at = time.perf_counter()
    rows = connection.exec_driver_sql(sql.replace("%", "%%") if connection.dialect.name != "sqlite" else sql).all()
    seconds = time.perf_counter() - began_at
    return sorted((tuple(map(_plain, row)) for row in rows), key=repr), seconds


def _plain(value: Any) -> Any:
    """Numbers as numbers, whatever type a server gives them, and instants as texts."""
    if isinstance(value, Decimal | int | float):
        return float(value)
    if isinstance(value, datetime):
        return str(value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value)
    return value if value is None else str(value)


def _is_same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
        return bool(a == b or (a and b and str(a)[:23] == str(b)[:23]))

    return len(one) == len(other) and all(
        equal(*pair) for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)
    )


def answer(connection: Connection, question: Question, last: date, *, by_hand: bool) -> None:
    """Print a line: the seconds that the view and the count by hand took, and whether they say the same."""
    dialect = connection.dialect.name
    asked, seconds = ask(connection, _sql(question.asked, dialect, last))
    said = ""
    if by_hand:
        hand = _sql(f"WITH x AS ({ROWS}) {question.by_hand}", dialect, last)
        counted, slow = ask(connection, hand)
        said = f"{slow:>9.2f} s  {'same' if _is_same(asked, counted) else 'DIFFERENT'}"
        if not _is_same(asked, counted):
            said += f"\n    view {asked[:3]} of {len(asked)}\n    hand {counted[:3]} of {len(counted)}"
    print(f"{seconds:>8.3f} s{said}  {len(asked):>6} rows  {question.text}", flush=True)


def measure(url: str, scans: int, last: date, *, filled: bool, by_hand: bool) -> None:
    """Fill, count and ask."""
    with closing(Database(url)) as database:
        if not filled:
            database.run_here(partial(fill, count=scans, last_day=last))
        began_at = time.perf_counter()
        counted = refresh(database, seconds=math.inf)
        print(f"\n{make_url(url).get_backend_name()}: {counted} days counted in {time.perf_counter() - began_at:.1f} s")
        for question in QUESTIONS:
            database.run_here(partial(answer, question=question, last=last, by_hand=by_hand))


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Ask the views what dashboards ask.")
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--last-day", type=date.fromisoformat, default=datetime.now(UTC).date() - timedelta(days=1))
    parser.add_argument("--filled", action="store_true", help="the databases hold the scans already")
    parser.add_argument("--only-views", action="store_true", help="don't count by hand")
    parser.add_argument("urls", nargs="*", metavar="URL")
    options = parser.parse_args()
    work = partial(
        measure, scans=options.scans, last=options.last_day, filled=options.filled, by_hand=not options.only_views
    )
    for url in options.urls:
        upgrade(url)
        work(url)
    if not options.urls:
        with sqlite_database() as url:
            work(url)
        with postgresql_databases() as new_database, new_database() as url:
            work(url)


if __name__ == "__main__":
    main()
