"""The next version adds a column, filled from the rows of before while workers go on, and replaces a view."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from next_version import NextVersion, next_version
from scan_rows import scan_rows
from sqlalchemy import JSON, Connection, column, func, inspect, select, table, text, update
from tables_of import ask, change

from etl.database.connection import Database
from etl.database.schema import HEAD, scan_meta
from etl.store.scans import load_scans

MIGRATION = '''"""add scan_meta.shiny"""

import sqlalchemy as sa

from etl.transform.fields import integer
from migrations.columns import add_column_from_extra, drop_column_into_extra

revision = "9998"
down_revision = "{head}"


def upgrade() -> None:
    add_column_from_extra("scan_meta", sa.Column("shiny", sa.BigInteger), "shiny", integer)


def downgrade() -> None:
    drop_column_into_extra("scan_meta", sa.Column("shiny", sa.BigInteger), "shiny")
'''
VIEW_MIGRATION = '''"""add bi_scan.meta_extra"""

from migrations.views import create_view, drop_view, replace_view

revision = "9999"
down_revision = "9998"


def upgrade() -> None:
    create_view("bi_named", 1)
    replace_view("bi_scan", old=1, new=2)


def downgrade() -> None:
    replace_view("bi_scan", old=2, new=1, dependents={"bi_named": 1})
    drop_view("bi_named")
'''
SHINY = table(
    "scan_meta", *(column(name) for name in ("deployment_id", "scan_id", "branch", "shiny")), column("extra", JSON)
)


@pytest.fixture
def following(tmp_path: Path) -> NextVersion:
    """It has `scan_meta.shiny`."""
    version = next_version(tmp_path / "next")
    (version.folder / "migrations" / "versions" / "9998_shiny.py").write_text(MIGRATION.format(head=HEAD))
    version.edit("etl/database/schema.py", f'HEAD = "{HEAD}"', 'HEAD = "9998"')
    return version


def db(version: NextVersion, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    done = version.python("-m", "etl", "db", *words, url=url)
    assert done.returncode == 0, done
    return done


def load(url: str, *scans_of_before: Any) -> None:
    with closing(Database(url)) as database:
        database.run_here(lambda connection: load_scans(connection, scans_of_before, "run"))


def shiny(url: str) -> list[tuple[Any, ...]]:
    rows = ask(url, select(SHINY.c.shiny, SHINY.c.extra).order_by(SHINY.c.deployment_id, SHINY.c.scan_id))
    return [tuple(row) for row in rows]


def test_rows_of_before_get_the_values_of_a_new_column(database_url: str, following: NextVersion) -> None:
    """As if they were fetched again: what the column can't hold stays in `extra`, which is NULL if nothing is left."""
    metas: list[Any] = [{"shiny": 7}, {"shiny": "8", "other": 1}, {"shiny": [9]}, {"shiny": None, "a": 1}, {}, None]
    load(database_url, *(scan_rows(number, meta=meta) for number, meta in enumerate(metas, 1)))
    load(database_url, scan_rows(1, deployment_id=121, meta={"shiny": 10}))

    db(following, database_url, "upgrade")
    above = shiny(database_url)
    db(following, database_url, "downgrade", HEAD, "--yes")
    below = ask(database_url, select(scan_meta.c.extra).order_by(scan_meta.c.deployment_id, scan_meta.c.scan_id))
    db(following, database_url, "upgrade")

    assert above == [
        (7, None),
        (8, {"other": 1}),
        (None, {"shiny": [9]}),
        (None, {"a": 1}),
        (None, None),
        (None, None),
        (10, None),
    ]
    assert [row[0] for row in below] == [
        {"shiny": 7},
        {"other": 1, "shiny": 8},
        {"shiny": [9]},
        {"a": 1},
        None,
        None,
        {"shiny": 10},
    ]
    assert shiny(database_url) == above


def columns_of(url: str, name: str) -> list[str]:
    with closing(Database(url)) as database:
        columns = database.run_here(lambda connection: inspect(connection).get_columns(name))
    return [each["name"] for each in columns]


def is_half_filled(url: str) -> bool:
    return "shiny" in columns_of(url, "scan_meta") and ask(url, select(func.count(SHINY.c.shiny)))[0][0] > 0


def rename_branches(url: str, stop: Event) -> int:
    """Write like a worker of the version of before, a row at a time. Returns the number of rows."""
    written = 0
    with closing(Database(url)) as database:
        while not stop.is_set():
            written += 1
            is_row = (scan_meta.c.deployment_id == 120) & (scan_meta.c.scan_id == written)
            statement = update(scan_meta).where(is_row).values(branch=f"b{written}")
            database.run_here(partial(Connection.execute, statement=statement))
            stop.wait(0.01)
    return written


def test_a_fill_that_is_killed_goes_on_while_workers_write(database_url: str, following: NextVersion) -> None:
    """What they write meanwhile stays as they wrote it, also the new column of a scan that is stored meanwhile."""
    most = 6_000
    load(database_url, *(scan_rows(number, meta={"shiny": number, "n": 1}) for number in range(1, most + 1)))
    stop = Event()
    with ThreadPoolExecutor(1) as pool, ExitStack() as at_end:
        at_end.callback(stop.set)
        writer = pool.submit(rename_branches, database_url, stop)
        with following.start("-m", "etl", "db", "upgrade", url=database_url) as process:
            while process.poll() is None and not is_half_filled(database_url):
                stop.wait(0.01)
            process.kill()
        load(database_url, scan_rows(most + 1, meta={"shiny": 1}))
        change(database_url, update(SHINY).where(SHINY.c.scan_id == most + 1).values(shiny=99))
        db(following, database_url, "upgrade")
    written = writer.result()

    found = ask(database_url, select(SHINY.c.branch).order_by(SHINY.c.scan_id).limit(written))
    assert [row.branch for row in found] == [f"b{number}" for number in range(1, written + 1)]
    assert shiny(database_url) == [*((number, {"n": 1}) for number in range(1, most + 1)), (99, {"shiny": 1})]


def test_upgrades_at_once_fill_once(database_url: str, following: NextVersion) -> None:
    """Also where a fill lets others in between its transactions, each ends well."""
    load(database_url, *(scan_rows(number, meta={"shiny": number}) for number in range(1, 5_001)))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(db, following, database_url, "upgrade") for _ in range(3)]:
            done.result(60)

    assert shiny(database_url) == [(number, None) for number in range(1, 5_001)]
    db(following, database_url, "downgrade", HEAD, "--yes")


def test_a_script_says_what_it_does_not_fill(sqlite_url: str, following: NextVersion) -> None:
    """Whoever runs SQL by hand gets the column, and is told of the rows of before."""
    script = db(following, sqlite_url, "sql").stdout

    assert "ADD COLUMN shiny BIGINT" in script
    assert "-- Of rows of before, `scan-etl db upgrade` fills it from extra: shiny" in script


def test_a_view_is_replaced_under_those_who_read_it(database_url: str, following: NextVersion) -> None:
    """A new version adds columns behind the others, and the way back takes them away."""
    views = following.folder / "migrations" / "views"
    (views / "bi_named_v01.sql").write_text("SELECT scan_id, repository FROM bi_scan\n")
    query = (views / "bi_scan_v01.sql").read_text()
    (views / "bi_scan_v02.sql").write_text(
        query.replace("\nFROM scans s", ",\n    m.extra AS meta_extra\nFROM scans s")
    )
    (views.parent / "versions" / "9999_bi_scan.py").write_text(VIEW_MIGRATION)
    following.edit("etl/database/schema.py", 'HEAD = "9998"', 'HEAD = "9999"')
    load(database_url, scan_rows(1))
    before = columns_of(database_url, "bi_scan")

    db(following, database_url, "upgrade")
    after = columns_of(database_url, "bi_scan")
    named = ask(database_url, text("SELECT scan_id, repository FROM bi_named"))
    db(following, database_url, "downgrade", "9998", "--yes")

    assert after == [*before, "meta_extra"]
    assert named == [(1, "acme/pay")]
    assert columns_of(database_url, "bi_scan") == before
