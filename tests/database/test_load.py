"""Loading: idempotent, and the same whatever the order in which answers arrive."""

from datetime import timedelta
from functools import partial
from itertools import permutations
from typing import Any

from scan_rows import BEGAN_AT, SCAN_TABLES, scan_rows
from sqlalchemy import Connection, Table, func, select

from etl.database.connection import Database
from etl.database.schema import (
    metadata,
    scan_languages,
    scan_meta,
    scan_products,
    scan_stat_items,
    scan_stats,
    scans,
    schema_drift,
)
from etl.database.summaries import summary_marks
from etl.model import Drift, Pair, ScanRows
from etl.store.drift import MOST_NEW_ROWS, MOST_ROWS, OTHERS, DriftSeen, count_drift
from etl.store.scans import load_scans


def load(database: Database, *batch: ScanRows, run_id: str = "run") -> tuple[int, int, int]:
    return tuple(database.run_here(lambda connection: load_scans(connection, batch, run_id)))  # type: ignore[return-value]  # of three


def rows_of(database: Database, table: Table, *left_out: str) -> list[dict[str, Any]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        columns = [column for column in table.c if column.name not in left_out]
        return [dict(row) for row in connection.execute(select(*columns).order_by(*table.primary_key)).mappings()]

    return database.run_here(work)


def test_one_answer_becomes_the_rows_of_six_tables(database: Database) -> None:
    """Every value of an answer is found again in its column, with its type, on each dialect."""
    counts = load(database, scan_rows(9, minutes=5))

    assert counts == (1, 0, 0)
    key = {"deployment_id": 120, "scan_id": 9}
    at = BEGAN_AT + timedelta(minutes=5)
    assert rows_of(database, scans, "content_hash") == [
        {
            **key,
            "repository_id": 7,
            "started_at": BEGAN_AT + timedelta(microseconds=1),
            "completed_at": BEGAN_AT + timedelta(seconds=90, microseconds=250_001),
            "exit_code": 0,
            "has_logs": True,
            "extra": None,
            "first_fetched_at": at,
            "fetched_at": at,
            "changed_at": at,
            "run_id": "run",
            "started_day": BEGAN_AT.date(),
            "duration_seconds": 90.25,
        }
    ]
    assert rows_of(database, scan_products) == [{**key, "product": "sast"}, {**key, "product": "secrets"}]
    meta = rows_of(database, scan_meta)[0]
    assert {name: value for name, value in meta.items() if value is not None} == {
        **key,
        "trigger_event": "push",
        "branch": "main",
        "repository": "acme/pay",
        "is_full_scan": True,
        "extra": {"mood": "good"},
    }
    assert rows_of(database, scan_stats) == [
        {**key, "findings": 3, "total_time_seconds": 90.25, "engine_requested": "OSS", "extra": None}
    ]
    assert rows_of(database, scan_languages) == [
        {**key, "language": "go", "targets_parsed": 9, "num_targets": 10, "bytes_parsed": None, "num_bytes": 2**40}
    ]
    assert rows_of(database, scan_stat_items) == [
        {**key, "category": "findings_by_product", "name": "sast", "value": 2.0},
        {**key, "category": "findings_by_product", "name": "secrets", "value": 1.0},
    ]
    drift = rows_of(database, schema_drift)
    assert {(row["path"], row["kind"], row["count"]) for row in drift} == {
        ("meta.mood", "unknown_field", 1),
    }


def test_loading_twice_equals_loading_once(database: Database) -> None:
    """A batch that is loaded again changes nothing, and is counted as unchanged."""
    batch = [scan_rows(number) for number in range(1, 4)]
    load(database, *batch, run_id="first")
    tables = [table for table in metadata.sorted_tables if table not in (schema_drift, summary_marks)]
    before = [rows_of(database, table) for table in tables]

    again = load(database, *batch, run_id="second")

    assert again == (0, 0, 3)
    assert [rows_of(database, table) for table in tables] == before


def test_the_order_of_arrival_does_not_matter(database: Database) -> None:
    """Whatever the order of four answers, the rows are those of the newest finished one."""
    running: dict[str, Any] = {"completed_at": None, "exit_code": None, "enabled_products": [], "stats": {}}
    answers: list[dict[str, Any]] = [
        {"minutes": 1, **running},
        {"minutes": 2, **running, "meta": {"branch": "renamed"}},
        {"minutes": 3, "stats": {"errors": {"a": 1}}},
        {"minutes": 4, **running},
    ]
    orders = list(permutations(answers))
    for scan_id, order in enumerate(orders, start=1):
        for answer in order:
            load(database, scan_rows(scan_id, **answer))

    left_out = ("scan_id", "changed_at", "content_hash")
    for table in SCAN_TABLES:
        found = rows_of(database, table, *left_out)
        per_scan = len(found) // len(orders)
        assert found == found[:per_scan] * len(orders), table.name
    stored = rows_of(database, scans)[0]
    assert (stored["first_fetched_at"], stored["fetched_at"]) == (
        BEGAN_AT + timedelta(minutes=1),
        BEGAN_AT + timedelta(minutes=3),
    )
    assert [row["name"] for row in rows_of(database, scan_stat_items)] == ["a"] * len(orders)


def test_an_unchanged_answer_moves_only_the_time_it_was_seen(database: Database) -> None:
    """The same content seen later leaves `changed_at` and `run_id` alone, so that a late older answer still loses."""
    load(database, scan_rows(1, minutes=1), run_id="first")

    assert load(database, scan_rows(1, minutes=3), run_id="second") == (0, 0, 1)
    assert load(database, scan_rows(1, minutes=2, exit_code=7), run_id="third") == (0, 0, 1)
    stored = rows_of(database, scans)[0]
    assert (stored["run_id"], stored["exit_code"]) == ("first", 0)
    assert stored["changed_at"] == BEGAN_AT + timedelta(minutes=1)
    assert stored["fetched_at"] == BEGAN_AT + timedelta(minutes=3)


def test_a_changed_answer_replaces_the_child_rows(database: Database) -> None:
    """Products and items that a newer answer doesn't have any more are gone."""
    load(database, scan_rows(1))

    assert load(database, scan_rows(1, minutes=1, enabled_products=["sca"], stats={"findings": 4})) == (0, 1, 0)
    assert [row["product"] for row in rows_of(database, scan_products)] == ["sca"]
    assert rows_of(database, scan_stat_items) == rows_of(database, scan_languages) == []
    assert rows_of(database, scan_stats)[0]["findings"] == 4


def test_the_largest_ids_and_texts_come_back_equal(database: Database) -> None:
    """Ids up to 2^63-1, text of every plane and a long one, and exact JSON numbers survive each dialect."""
    odd = "\U0001f680 ﷽ 'quoted' \\ % _ \t\n" + "x" * 100_000
    extra: dict[str, Any] = {"shiny": {"list": [1, 2.5, None, True, "\U0001f680"], "small": 5e-324, "exact": 2**63 - 1}}
    rows = scan_rows(2**63 - 1, deployment_id=2**63 - 1, repository_id=2**63 - 1, meta={"branch": odd}, **extra)

    load(database, rows)

    assert rows_of(database, scan_meta)[0]["branch"] == odd
    stored = rows_of(database, scans)[0]
    assert (stored["scan_id"], stored["repository_id"], stored["extra"]) == (2**63 - 1, 2**63 - 1, extra)


def test_drift_is_counted_over_batches(database: Database) -> None:
    """`schema_drift` adds up how often a difference was met, and keeps a sample."""
    load(database, scan_rows(1), scan_rows(2))
    load(database, scan_rows(3))

    row = rows_of(database, schema_drift)[0]
    assert (row["count"], row["sample_scan_id"]) == (3, 3)


def met(*numbers: int) -> list[DriftSeen]:
    return [DriftSeen(Drift(f"made_up_{number:04}", "unknown_field"), Pair(120, 1), BEGAN_AT) for number in numbers]


def test_drift_with_names_without_end_is_bounded(database: Database) -> None:
    """One batch adds some differences, all batches together not many more; the rest is counted in one row."""
    database.run_here(partial(count_drift, met=met(*range(10_000))))
    database.run_here(partial(count_drift, met=met(*range(50), *range(20_000, 20_010))))

    rows = {row["path"]: row["count"] for row in rows_of(database, schema_drift)}
    assert len(rows) == MOST_NEW_ROWS + 10 + 1
    assert [rows[f"made_up_{number:04}"] for number in (0, 49, 50, MOST_NEW_ROWS - 1, 20_009)] == [2, 2, 1, 1, 1]
    assert rows[OTHERS] == 10_000 - MOST_NEW_ROWS


def test_a_full_table_of_drift_counts_what_it_knows(database: Database) -> None:
    """New differences are counted together then, a row for each kind."""
    for first in range(0, MOST_ROWS + MOST_NEW_ROWS, MOST_NEW_ROWS):
        database.run_here(partial(count_drift, met=met(*range(first, first + MOST_NEW_ROWS))))
    database.run_here(partial(count_drift, met=[*met(7), DriftSeen(Drift("new", "odd_type"), Pair(120, 2), BEGAN_AT)]))

    rows = {(row["path"], row["kind"]): row for row in rows_of(database, schema_drift)}
    assert len(rows) == MOST_ROWS + 2
    assert rows["made_up_0007", "unknown_field"]["count"] == 2
    assert rows[OTHERS, "unknown_field"]["count"] == MOST_NEW_ROWS
    assert rows[OTHERS, "odd_type"]["sample_scan_id"] == 2


def test_a_batch_of_nothing_is_nothing(database: Database) -> None:
    """An empty batch touches no table."""
    assert load(database) == (0, 0, 0)
    assert (
        database.run_here(lambda connection: connection.execute(select(func.count()).select_from(scans)).scalar()) == 0
    )
