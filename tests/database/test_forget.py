"""A person who is forgotten is nowhere in the database, on each dialect."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scan_rows import scan_rows
from sqlalchemy import JSON, Column, Connection, Date, String, Text, insert, select

from etl.database.connection import Database
from etl.database.schema import dead_letters, metadata, scan_meta, scans
from etl.database.summaries import DERIVED, calendar, summary_marks, summary_state
from etl.database.types import UtcDateTime
from etl.store.forget import PIECE, forget
from etl.store.scans import load_scans
from etl.transform.person import Person

ADDRESS, USER = "ann.muster@mail.example.com", "annmuster"
MESSAGE = f"fix: x\n\nAsk {ADDRESS} or @{USER}.\nCo-authored-by: Ann Muster <{ADDRESS}>\n"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def value_of(column: Column[Any], scan_id: int) -> Any:
    """Something for a column that speaks of the person, if it may."""
    if isinstance(column.type, JSON):
        return {"deep": [{"m": MESSAGE}], "committer": {"name": "Ann Muster", "email": ADDRESS}, ADDRESS: 1}
    if isinstance(column.type, Text):
        return ADDRESS if column.name.endswith("_email") else MESSAGE
    if isinstance(column.type, String):
        return ADDRESS if column.primary_key and (column.type.length or 0) > 32 else "x"
    if isinstance(column.type, UtcDateTime):
        return NOW
    if isinstance(column.type, Date):
        return NOW.date()
    return {"deployment_id": 120, "scan_id": scan_id}.get(column.name, 1)


_OTHERS = (*DERIVED, calendar, summary_marks, summary_state)
TABLES = [table for table in metadata.sorted_tables if not table.name.startswith("bi_") and table not in _OTHERS]
"""All but those whose rows are there from the start, and those of counts."""


def fill(connection: Connection) -> None:
    for table in TABLES:
        written = list(table.c)
        connection.execute(insert(table).values({column.name: value_of(column, 1) for column in written}))


def everything(connection: Connection) -> str:
    """What all columns of all tables hold."""
    rows = {table.name: [list(row) for row in connection.execute(select(table))] for table in TABLES}
    return json.dumps(rows, default=str, ensure_ascii=False)


def test_an_address_is_nowhere_afterwards(database: Database) -> None:
    """In no column of any table, by whatever name: a trial finds the same, and changes nothing."""
    database.run_here(fill)
    before = database.run_here(everything)

    trial = forget(database, Person(ADDRESS), dry_run=True)
    assert database.run_here(everything) == before

    done = forget(database, Person(ADDRESS), dry_run=False)
    after = database.run_here(everything)
    assert done == trial
    holding = {table for table, rows in json.loads(before).items() if ADDRESS in json.dumps(rows, ensure_ascii=False)}
    assert {table for table, count in done.changed.items() if count} == holding > {"scan_meta", "dead_letters"}
    assert ADDRESS not in after
    assert "Ann Muster" not in after
    assert not any(forget(database, Person(ADDRESS), dry_run=False).changed.values())


def test_a_user_name_is_gone_from_messages_and_authors(database: Database) -> None:
    """It stays where it is the name of something else, such as a branch."""
    meta = {
        "branch": f"{USER}/x",
        "commit_title": MESSAGE,
        "commit_author_username": USER.upper(),
        "commit_author_email": ADDRESS,
        "commit_author_name": "Ann",
    }
    database.run_here(lambda connection: load_scans(connection, [scan_rows(1, meta=meta)], "run"))

    found = forget(database, Person(USER), dry_run=False)

    row = database.run_here(lambda connection: connection.execute(select(scan_meta)).mappings().one())
    assert {name: count for name, count in found.changed.items() if count} == {"scan_meta": 1}
    assert found.names == {ADDRESS}
    assert row["branch"] == f"{USER}/x"
    assert "@***." in row["commit_title"]
    assert {row[name] for name in row if "_author_" in name} == {None}


def test_an_unchanged_answer_brings_nobody_back(database: Database) -> None:
    """The content hash stays that of the answer; a changed one is stored as it comes."""

    def load(minutes: int, **more: int) -> None:
        rows = scan_rows(1, minutes=minutes, meta={"commit_author_email": ADDRESS, **more})
        database.run_here(lambda connection: load_scans(connection, [rows], "run"))

    load(0)
    forget(database, Person(ADDRESS), dry_run=False)
    load(5)
    assert ADDRESS not in database.run_here(everything)

    load(9, x=1)
    assert ADDRESS in database.run_here(everything)


def test_more_than_a_piece_is_forgotten(database: Database) -> None:
    """Over the bounds of pieces and deployments; rows of others stay as they are."""
    count = 2 * PIECE + 1
    rows = [
        {
            "deployment_id": 120 + number % 2,
            "scan_id": number,
            "died_at": NOW,
            "error": f"of {ADDRESS if number % 3 else 'bob@example.com'}",
        }
        for number in range(1, count + 1)
    ]
    database.run_here(lambda connection: connection.execute(insert(dead_letters), rows))

    found = forget(database, Person(ADDRESS), dry_run=False)

    errors = database.run_here(lambda connection: connection.execute(select(dead_letters.c.error)).scalars().all())
    assert found.changed["dead_letters"] == count - count // 3
    assert sorted(errors) == sorted(["of ***"] * (count - count // 3) + ["of bob@example.com"] * (count // 3))


def test_a_row_keeps_what_is_not_about_the_person(database: Database) -> None:
    """Numbers, other texts and other fields of `extra` come back as they were."""
    kept = {"a": 2**53 - 1, "b": 0.1, "c": "Grüße 😀", "d": [None, True]}
    database.run_here(lambda connection: load_scans(connection, [scan_rows(1, x=kept, y=ADDRESS)], "run"))

    forget(database, Person(ADDRESS), dry_run=False)

    extra = database.run_here(lambda connection: connection.execute(select(scans.c.extra)).scalar_one())
    assert extra == {"x": kept, "y": "***"}


def test_an_sqlite_file_holds_no_bytes_of_the_person(sqlite_url: str) -> None:
    """Deleted content is overwritten, not only marked as free."""
    with closing(Database(sqlite_url)) as opened:
        opened.run_here(fill)
        forget(opened, Person(ADDRESS), dry_run=False)
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert ADDRESS.encode() not in path.read_bytes()
