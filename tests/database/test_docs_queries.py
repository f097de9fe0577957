"""What the documentation says of the database is true of a real one."""

import re
from contextlib import closing
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, inspect

from etl.database.connection import Database
from etl.database.migrate import dictionary

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_dictionary_has_all_columns_of_all_views(sqlite_url: str) -> None:
    """What dashboards may select is written down, in the order in which they get it."""
    with closing(Database(sqlite_url)) as database:
        columns = {
            view: [each["name"] for each in inspect(database.engine).get_columns(view)]
            for view in inspect(database.engine).get_view_names()
        }

    assert {view: list(entry.columns) for view, entry in dictionary().views.items()} == columns


def test_the_readmes_queries_run(database_url: str) -> None:
    """What the README tells a dashboard to ask is valid SQL on each dialect."""
    blocks = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    statements = [part for block in blocks for part in block.split(";") if part.strip()]
    with closing(Database(database_url)) as database:
        for statement in statements:
            database.run_here(partial(Connection.exec_driver_sql, statement=statement))

    assert len(statements) >= 6
