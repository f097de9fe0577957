"""What the documentation says of the database is true of a real one."""

import re
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect

from etl.database.connection import Database

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TABLES = (ROOT / "docs" / "tables.md").read_text()


@pytest.mark.parametrize("view", ["bi_scan", "bi_scan_daily", "bi_coverage"])
def test_the_docs_name_every_column_of_a_view(sqlite_url: str, view: str) -> None:
    """What dashboards may select is written down."""
    section = TABLES.split(f"\n### `{view}`")[1].split("\n### ")[0]
    with closing(Database(sqlite_url)) as database:
        columns = database.run_here(
            lambda connection: [column["name"] for column in inspect(connection).get_columns(view)]
        )

    assert [name for name in columns if f"`{name}`" not in section] == []


def test_the_readmes_queries_run(database_url: str) -> None:
    """What the README tells a dashboard to ask is valid SQL on each dialect."""
    blocks = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    statements = [part for block in blocks for part in block.split(";") if part.strip()]
    with closing(Database(database_url)) as database:
        for statement in statements:
            database.run_here(partial(Connection.exec_driver_sql, statement=statement))

    assert len(statements) >= 6
