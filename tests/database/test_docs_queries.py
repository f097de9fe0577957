"""What the documentation says of the database is true of a real one."""

import re
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from counted_days import count_all
from scan_rows import BEGAN_AT, scan_rows
from sqlalchemy import Connection, inspect

from etl.database.connection import Database
from etl.database.migrate import dictionary
from etl.model import ScanRows
from etl.store.scans import load_scans

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/queries.md", "docs/running.md")
BLOCKS = [sql for page in PAGES for sql in re.findall(r"```sql\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)]


def test_the_dictionary_has_all_columns_of_all_views(sqlite_url: str) -> None:
    """What dashboards may select is written down, in the order in which they get it."""
    with closing(Database(sqlite_url)) as database:
        columns = {
            view: [each["name"] for each in inspect(database.engine).get_columns(view)]
            for view in inspect(database.engine).get_view_names()
        }

    assert {view: list(entry.columns) for view, entry in dictionary().views.items()} == columns


STATEMENTS = {
    heading.strip().partition("?")[0].partition(":")[0]: sql.strip()
    for block in BLOCKS
    for heading, sql in re.findall(r"-- ([^\n]*)\n(.*?);", block, re.DOTALL)
}


def odd_scans() -> list[ScanRows]:
    """Namesakes in two deployments, one of them renamed; borders of days in other zones; a clock that ran backwards; no
    start, no end, no repository, a start in a thousand years; a scan that runs."""
    now = datetime.now(UTC)
    full, diff = {"repository": "acme/pay", "is_full_scan": True}, {"repository": "acme/pay", "pull_request_id": "7"}
    renamed = {"repository": "acme/renamed", "is_full_scan": True}
    found = {"findings": 9, "findings_by_product": {"sast": 5, "sca": 4}}
    open_: dict[str, Any] = {"completed_at": None, "exit_code": None}
    minutes = (now - BEGAN_AT) // timedelta(minutes=1)
    return [
        scan_rows(1, started_at="2026-03-01T00:30:00+01:00", completed_at="2026-02-28T23:31:00Z", meta=full),
        scan_rows(2, started_at=at("01T23:59:59"), completed_at=at("02T00:00:29"), meta=diff, exit_code=1),
        scan_rows(3, started_at=at("01T10:00:00"), completed_at=at("01T09:00:00"), meta=diff, exit_code=2),
        scan_rows(
            4, started_at=at("02T10:00:00"), completed_at=at("02T10:01:00"), meta=renamed, exit_code=1, stats=found
        ),
        scan_rows(5, started_at=None, **open_, meta=diff),
        scan_rows(6, deployment_id=130, started_at=at("01T12:00:00"), meta=full, stats={"findings": 11}),
        scan_rows(7, repository_id=None, meta=None, started_at="2999-01-01T00:00:00Z", completed_at=None, exit_code=3),
        scan_rows(8, repository_id=9, meta={"repository": "acme/new"}, started_at=str(now), **open_, minutes=minutes),
    ]


def at(time: str) -> str:
    return f"2026-03-{time}Z"


def ago(day: date) -> int:
    return (datetime.now(UTC).date() - day).days


BY_HAND: dict[str, set[tuple[Any, ...]]] = {
    "Which repositories were not scanned for seven days, or never": {
        (130, 7, "acme/pay", ago(date(2026, 3, 1))),
        (120, 7, "acme/renamed", ago(date(2026, 3, 2))),
    },
    "How long do scans take, by repository": {
        (120, "acme/renamed", 5, 50.0, 60.0),
        (130, "acme/pay", 1, 90.250001, 90.250001),
        (120, "acme/new", 1, None, None),
        (120, None, 1, None, None),
    },
    "How long do they take by week, full and diff scans apart": {
        ("2026-02-23", "all", 60.0, 87.225001),
        ("2026-02-23", "full", 75.1250005, 88.73750095),
        ("2026-02-23", "diff", 30.0, 30.0),
        ("2026-03-02", "all", 60.0, 60.0),
        ("2026-03-02", "full", 60.0, 60.0),
    },
    "What fails, and since when": {
        ("None", 2, 0),
        ("2026-02-28", 1, 0),
        ("2026-03-01", 3, 1),
        ("2026-03-02", 1, 0),
        (str(datetime.now(UTC).date()), 1, 0),
    },
    "Findings now, by product": {(20, 5, 4, None)},
    "Who is covered": {(3, 0, 3)},
}


def plain(value: Any) -> Any:
    if isinstance(value, Decimal | float | int):
        return round(float(value), 5)
    return value


@pytest.mark.parametrize("question", BY_HAND)
def test_the_documented_queries_give_what_is_counted_by_hand(database_url: str, question: str) -> None:
    """On odd data, on each database."""
    with closing(Database(database_url)) as database:
        database.run_here(partial(load_scans, batch=odd_scans(), run_id="run"))
        database.run_here(count_all)
        found = database.run_here(lambda connection: connection.exec_driver_sql(STATEMENTS[question]).all())

    is_dated = isinstance(next(iter(BY_HAND[question]))[0], str)
    rows = {(str(row[0]) if is_dated else plain(row[0]), *map(plain, row[1:])) for row in found}
    assert rows == {tuple(map(plain, row)) for row in BY_HAND[question]}


def test_the_documented_queries_run(database_url: str) -> None:
    """What the README and the docs tell a dashboard to ask is valid SQL on each dialect."""
    statements = [part for block in BLOCKS for part in block.split(";") if part.strip()]
    with closing(Database(database_url)) as database:
        for statement in statements:
            database.run_here(partial(Connection.exec_driver_sql, statement=statement))

    assert len(statements) >= 10
