"""What an export writes: the values and types of each table and view, in files that readers of Parquet know."""

import csv
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import ODD_TEXT, changed, exported, fill
from scan_rows import BEGAN_AT, scan_rows
from sqlalchemy import Connection, table
from tables_of import count

from etl.database.connection import Database
from etl.database.migrate import dictionary
from etl.errors import ConfigError
from etl.model import ColumnType
from etl.store.exports import extract, parts, read
from etl.store.scans import load_scans

ENTRIES = {**dictionary().views, **dictionary().tables}
ARROW = {
    ColumnType.BIGINT: pa.int64(),
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.DATE: pa.date32(),
    ColumnType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    ColumnType.TEXT: pa.string(),
    ColumnType.JSON: pa.string(),
}
SCHEMAS = {
    name: pa.schema([(column, ARROW[said.type]) for column, said in entry.columns.items()])
    for name, entry in ENTRIES.items()
}


def test_every_table_and_view_keeps_its_types(database_url: str, tmp_path: Path) -> None:
    """They are the same on each database, and the same without a row; no row is lost, and none is invented."""
    fill(database_url)
    schemas, counts = {}, {}
    for name in ENTRIES:
        done = exported(database_url, name, tmp_path / f"{name}.parquet")
        file = pq.read_table(tmp_path / f"{name}.parquet")
        schemas[name], counts[name] = file.schema, (done.rows, file.num_rows)

    assert schemas == SCHEMAS
    ours = {name: count(database_url, table(name)) for name in ENTRIES}
    assert counts == {name: (count, count) for name, count in ours.items()}
    assert sum(count > 0 for count in ours.values()) > 30


def test_values_come_as_they_are(database_url: str, tmp_path: Path) -> None:
    """To the microsecond, beyond what a float can hold, with NULL as NULL, and in any script."""
    fill(database_url)
    exported(database_url, "bi_scan", tmp_path / "scans.parquet")
    found = {row["scan_id"]: row for row in pq.read_table(tmp_path / "scans.parquet").to_pylist()}

    large = 2**53 + 1
    assert set(found) == {1, 2, 3, 4, large}
    assert found[1]["commit_title"] == ODD_TEXT
    assert found[1]["completed_at"] == datetime(2026, 3, 1, 12, 1, 30, 250001, UTC)
    assert (found[1]["started_day"], found[1]["started_month"]) == (date(2026, 3, 1), date(2026, 3, 1))
    assert (found[1]["duration_seconds"], found[1]["has_logs"], found[1]["is_full_scan"]) == (90.25, True, True)
    assert (found[2]["exit_code"], found[2]["duration_seconds"]) == (-9, pytest.approx(1e-06))
    assert (found[3]["completed_at"], found[3]["commit_title"], found[3]["findings"]) == (None, None, None)
    assert (found[4]["has_logs"], found[4]["started_day"]) == (None, None)
    assert found[large]["deployment_id"] == large


def test_json_comes_as_text(database_url: str, tmp_path: Path) -> None:
    """A list of tags is the text of a list."""
    fill(database_url)
    exported(database_url, "bi_repository", tmp_path / "all.parquet")
    tags = {row["tags"] for row in pq.read_table(tmp_path / "all.parquet").to_pylist()}

    assert tags == {'["a", "b"]', None}


def test_a_folder_has_a_file_for_each_deployment_and_month(database_url: str, tmp_path: Path) -> None:
    """Each has all columns and its own rows; what nobody knows the month of is in one that says so."""
    fill(database_url)
    done = exported(database_url, "bi_scan", tmp_path / "lake")
    files = {path.relative_to(tmp_path / "lake").as_posix(): path for path in (tmp_path / "lake").rglob("*.parquet")}
    scan_ids = {name: pq.ParquetFile(path).read()["scan_id"].to_pylist() for name, path in files.items()}

    large = 2**53 + 1
    assert {name: sorted(found) for name, found in scan_ids.items()} == {
        "deployment=120/year_month=2026-02/part-0.parquet": [2],
        "deployment=120/year_month=2026-03/part-0.parquet": [1, 3],
        "deployment=120/year_month=unknown/part-0.parquet": [4],
        f"deployment={large}/year_month=2026-01/part-0.parquet": [large],
    }
    assert (done.rows, done.files) == (5, 4)
    assert all(pq.read_schema(path) == SCHEMAS["bi_scan"] for path in files.values())


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "day" in entry.columns])
def test_no_row_falls_between_the_months(sqlite_url: str, tmp_path: Path, name: str) -> None:
    """Whatever has a day has as many rows in its parts as in all."""
    fill(sqlite_url)
    done = exported(sqlite_url, name, tmp_path / "lake")

    assert done.rows == count(sqlite_url, table(name))


@pytest.mark.parametrize("name", ["bi_scan", "bi_scan_daily", "bi_author_daily", "bi_repository"])
def test_a_folder_is_one_table_for_its_readers(sqlite_url: str, tmp_path: Path, name: str) -> None:
    """DuckDB, pandas and polars find the columns of the view with their types, and the folders as columns beside."""
    fill(sqlite_url)
    done = exported(sqlite_url, name, tmp_path / "lake")
    columns = list(ENTRIES[name].columns)
    with duckdb.connect() as connection:
        connection.sql("SET TimeZone = 'UTC'")
        by_duckdb = connection.read_parquet(f"{tmp_path}/lake/**/*.parquet", hive_partitioning=True).to_arrow_table()
    by_polars = pl.read_parquet(tmp_path / "lake").select(columns)
    by_pandas = pd.read_parquet(tmp_path / "lake")[columns]

    assert by_duckdb.select(columns).schema == SCHEMAS[name]
    assert by_polars.schema == pl.DataFrame(SCHEMAS[name].empty_table()).schema
    assert by_pandas.dtypes["deployment_id"] == "int64"
    assert by_duckdb.num_rows == len(by_polars) == len(by_pandas) == done.rows > 0
    rows = by_polars.rows()
    assert sorted(map(str, rows)) == sorted(str(tuple(row.values())) for row in by_duckdb.select(columns).to_pylist())
    assert sorted(by_pandas["deployment_id"]) == sorted(by_polars["deployment_id"])


def test_an_export_of_nothing_has_the_same_columns(sqlite_url: str, tmp_path: Path) -> None:
    """In a file and in a folder."""
    exported(sqlite_url, "bi_scan", tmp_path / "none.parquet")
    exported(sqlite_url, "bi_scan", tmp_path / "lake")
    exported(sqlite_url, "bi_exit_code", tmp_path / "none.csv", form="csv")

    assert pq.read_table(tmp_path / "none.parquet").schema == SCHEMAS["bi_scan"]
    assert pd.read_parquet(tmp_path / "lake").shape == (0, len(SCHEMAS["bi_scan"]))
    assert pl.read_parquet(tmp_path / "lake").shape == (0, len(SCHEMAS["bi_scan"]))


def test_an_export_takes_the_place_of_the_one_before(sqlite_url: str, tmp_path: Path) -> None:
    """A month that has no rows any more has no file either."""
    fill(sqlite_url)
    exported(sqlite_url, "scans", tmp_path / "lake")
    with closing(Database(sqlite_url)) as database:
        sql = "DELETE FROM scans WHERE deployment_id = 120 AND scan_id = 2"
        database.run_here(partial(Connection.exec_driver_sql, statement=sql))
    done = exported(sqlite_url, "scans", tmp_path / "lake")

    assert sorted(pl.read_parquet(tmp_path / "lake")["scan_id"]) == [1, 3, 4, 2**53 + 1]
    assert not (tmp_path / "lake" / "deployment=120" / "year_month=2026-02").exists()
    assert len(list((tmp_path / "lake").rglob("*.parquet"))) == done.files == 3


def test_what_is_something_else_is_left_alone(sqlite_url: str, tmp_path: Path) -> None:
    """A folder with other files, or with another export, is refused before a file is written."""
    fill(sqlite_url)
    exported(sqlite_url, "scans", tmp_path / "lake")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ConfigError, match="holds something else"):
        exported(sqlite_url, "scans", tmp_path / "mine")
    with pytest.raises(ConfigError, match="holds another export, scans-parquet-all: give bi_scan-parquet-all a folder"):
        exported(sqlite_url, "bi_scan", tmp_path / "lake")
    with pytest.raises(ConfigError, match="another export"):
        exported(sqlite_url, "scans", tmp_path / "lake", changed_since=BEGAN_AT)
    with pytest.raises(ConfigError, match="another export"):
        exported(sqlite_url, "scans", tmp_path / "lake", deployment_ids=[120])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["scans", "bi_scan", "scan_stat_items"])
def test_only_what_changed_since(database_url: str, tmp_path: Path, name: str) -> None:
    """Whatever has rows of scans has those of the scans whose content changed, each once."""
    fill(database_url)
    changed(database_url, 1, BEGAN_AT + timedelta(days=9))
    since = BEGAN_AT + timedelta(days=9)
    exported(database_url, name, tmp_path / "new.parquet", changed_since=since)
    exported(database_url, name, tmp_path / "none.parquet", changed_since=since + timedelta(microseconds=1))
    exported(database_url, name, tmp_path / "all.parquet")
    found = pq.read_table(tmp_path / "new.parquet")["scan_id"].to_pylist()

    assert set(found) == {1}
    assert len(found) == pq.read_table(tmp_path / "all.parquet")["scan_id"].to_pylist().count(1)
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_changes_have_parts_too(database_url: str, tmp_path: Path) -> None:
    """There is a file only of those months in which something changed."""
    fill(database_url)
    for scan_id in (2, 4):
        changed(database_url, scan_id, BEGAN_AT + timedelta(days=9))
    exported(database_url, "bi_scan", tmp_path / "new", changed_since=BEGAN_AT + timedelta(days=8))

    folders = {path.parent.name for path in (tmp_path / "new").rglob("*.parquet")}
    assert folders == {"year_month=2026-02", "year_month=unknown"}


def test_only_some_deployments(database_url: str, tmp_path: Path) -> None:
    """Those that are named."""
    fill(database_url)
    exported(database_url, "scans", tmp_path / "one.parquet", deployment_ids=[2**53 + 1])
    exported(database_url, "scans", tmp_path / "both.parquet", deployment_ids=[2**53 + 1, 120])

    assert pq.read_table(tmp_path / "one.parquet")["deployment_id"].to_pylist() == [2**53 + 1]
    assert pq.read_table(tmp_path / "both.parquet").num_rows == 5


def test_an_export_sees_one_moment(database_url: str) -> None:
    """What others commit meanwhile isn't in it, and they needn't wait for it."""
    fill(database_url)
    scans = extract(dictionary(), "bi_scan")
    with closing(Database(database_url, reads_only=True)) as reader, closing(Database(database_url)) as writer:
        with reader.snapshot() as connection:
            before = parts(connection, scans)
            writer.run_here(partial(load_scans, batch=[scan_rows(5)], run_id="run"))
            during = [row.scan_id for part in before for rows in read(connection, scans, part) for row in rows]
        with reader.snapshot() as connection:
            after = [row.scan_id for rows in read(connection, scans) for row in rows]

    assert sorted(during) == [1, 2, 3, 4, 2**53 + 1]
    assert sorted(after) == [1, 2, 3, 4, 5, 2**53 + 1]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("scan", {}, r"no table or view 'scan'; there are bi_.* bi_scan, .* workers"),
        ("bi_day", {"deployment_ids": [1]}, "bi_day has no deployment_id"),
        ("bi_day", {"changed_since": BEGAN_AT}, "rows of bi_day have no time of change; .* bi_scan, "),
        ("scan_listings", {"changed_since": BEGAN_AT}, "no time of change"),
    ],
)
def test_what_can_not_be_asked_is_said(name: str, options: dict[str, Any], said: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=said):
        extract(dictionary(), name, **options)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


def test_no_cell_of_csv_is_a_formula(database_url: str, tmp_path: Path) -> None:
    """A text that a spreadsheet would take for one has an apostrophe before it; numbers below zero are numbers."""
    with closing(Database(database_url)) as database:
        batch = [
            scan_rows(number, exit_code=-9, meta={"branch": text}) for number, text in enumerate([*FORMULAS, "a=b"])
        ]
        database.run_here(partial(load_scans, batch=batch, run_id="run"))
    exported(database_url, "scan_meta", tmp_path / "meta.csv", form="csv")
    exported(database_url, "scans", tmp_path / "scans.csv", form="csv")

    with (tmp_path / "meta.csv").open(newline="", encoding="utf-8") as file:
        branches = {row["branch"] for row in csv.DictReader(file)}
    assert branches == {*(f"'{text}" for text in FORMULAS), "a=b"}
    assert set(pl.read_csv(tmp_path / "scans.csv")["exit_code"]) == {-9}


def test_csv_comes_back_as_it_was(sqlite_url: str, tmp_path: Path) -> None:
    """With line breaks, quotes and microseconds: DuckDB reads the types that Parquet has."""
    fill(sqlite_url)
    exported(sqlite_url, "bi_scan", tmp_path / "scans.csv", form="csv")
    wanted = ["scan_id", "commit_title", "started_at", "started_day", "duration_seconds", "is_full_scan"]
    with duckdb.connect() as connection:
        connection.sql("SET TimeZone = 'UTC'")
        found = connection.read_csv(f"{tmp_path}/scans.csv").filter("scan_id = 1").select(*wanted).to_arrow_table()

    assert list(found.schema) == [SCHEMAS["bi_scan"].field(name) for name in wanted]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (1, ODD_TEXT, datetime(2026, 3, 1, 12, 0, 0, 1, UTC), date(2026, 3, 1), 90.25, True)
    ]
