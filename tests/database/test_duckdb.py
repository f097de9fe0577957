"""DuckDB attaches the database itself, and finds in it what the dictionary says."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import duckdb_extension_postgres_scanner
import duckdb_extension_sqlite_scanner
import pytest
from exported import fill
from sqlalchemy import make_url, text
from tables_of import ask

from etl.database.migrate import dictionary
from etl.model import ColumnType

ENTRIES = {**dictionary().views, **dictionary().tables}
TYPES = {
    ColumnType.BIGINT: "BIGINT",
    ColumnType.DOUBLE: "DOUBLE",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.DATE: "DATE",
    ColumnType.TIMESTAMP: "TIMESTAMP WITH TIME ZONE",
    ColumnType.TEXT: "VARCHAR",
    ColumnType.JSON: "VARCHAR",
}
SMALLER = {"INTEGER": "BIGINT", "SMALLINT": "BIGINT"}
ON_SQLITE = {"BOOLEAN": "BIGINT", "TIMESTAMP WITH TIME ZONE": "TIMESTAMP"}
"""SQLite has neither; what it has is 0 and 1, and UTC."""
EXTENSIONS = {"sqlite": duckdb_extension_sqlite_scanner, "postgres": duckdb_extension_postgres_scanner}


def attached(kind: str, place: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB with a database attached as `scans`. Its extension comes with a wheel, not from the internet."""
    extension = next(Path(EXTENSIONS[kind].__path__[0]).rglob("*.duckdb_extension"))
    connection = duckdb.connect()
    connection.load_extension(str(extension))
    connection.execute(f"ATTACH '{place}' AS scans (TYPE {kind}, READ_ONLY)")
    connection.execute("USE scans")
    return connection


def types(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    found = connection.table(name)
    return {column: SMALLER.get(str(kind), str(kind)) for column, kind in zip(found.columns, found.types, strict=True)}


def expected(name: str, instead: Mapping[str, str]) -> dict[str, str]:
    return {column: instead.get(TYPES[said.type], TYPES[said.type]) for column, said in ENTRIES[name].columns.items()}


@pytest.fixture
def sqlite_in_duckdb(sqlite_url: str) -> Iterator[duckdb.DuckDBPyConnection]:
    fill(sqlite_url)
    with attached("sqlite", make_url(sqlite_url).database or "") as connection:
        yield connection


@pytest.fixture
def postgres_in_duckdb(postgres_url: str) -> Iterator[duckdb.DuckDBPyConnection]:
    fill(postgres_url)
    with attached("postgres", postgres_url) as connection:
        yield connection


def test_postgresql_has_the_types_of_the_dictionary(postgres_in_duckdb: duckdb.DuckDBPyConnection) -> None:
    """In each column of each table and view."""
    found = {name: types(postgres_in_duckdb, name) for name in ENTRIES}

    assert found == {name: expected(name, {}) for name in ENTRIES}


def test_sqlite_has_the_types_of_the_dictionary(sqlite_in_duckdb: duckdb.DuckDBPyConnection) -> None:
    """In each column of each table and view, though DuckDB runs the views by itself."""
    found = {name: types(sqlite_in_duckdb, name) for name in ENTRIES}

    assert found == {name: expected(name, ON_SQLITE) for name in ENTRIES}


@pytest.mark.parametrize(
    "name",
    [
        "bi_scan",
        "bi_scan_daily",
        "bi_coverage",
        "bi_day",
        "bi_freshness",
        "bi_repository",
        "bi_deployment",
        "scan_stat_items",
    ],
)
def test_duckdb_counts_the_rows_that_sqlite_has(
    sqlite_in_duckdb: duckdb.DuckDBPyConnection, sqlite_url: str, name: str
) -> None:
    """Whichever of the two runs the view."""
    ours = ask(sqlite_url, text(f"SELECT COUNT(*) FROM {name}"))[0][0]  # noqa: S608 - our own names

    assert len(sqlite_in_duckdb.table(name).fetchall()) == ours > 0


def test_duckdb_says_of_each_scan_what_sqlite_says(
    sqlite_in_duckdb: duckdb.DuckDBPyConnection, sqlite_url: str
) -> None:
    """What a view computes is the same, whichever of the two runs it."""
    sql = (
        "SELECT scan_id, outcome, duration_seconds, products, commit_title_line, branch_name, is_full_scan,"
        " findings_code, repository_now FROM bi_scan ORDER BY deployment_id, scan_id"
    )

    assert sqlite_in_duckdb.execute(sql).fetchall() == [tuple(row) for row in ask(sqlite_url, text(sql))]
