"""What `make` does: on a machine that lacks something, and for whoever adds a column."""

import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from next_version import NextVersion, next_version
from scan_rows import scan_rows
from sqlalchemy import text
from tables_of import ask

from etl.database.connection import Database
from etl.database.migrate import upgrade
from etl.database.schema import HEAD
from etl.store.scans import load_scans

ROOT = Path(__file__).parents[2]
FIELD = '''    "meta.",
    _field("novelty", text, counts_as_sent=True),
    _field("on"'''
LOAD_AGAIN = """
from functools import partial
from scan_rows import scan_rows
from etl.database.connection import Database
from etl.store.scans import load_scans
import sys
rows = scan_rows(1, meta={"on": "push", "novelty": "4711"})
print(rows.meta["novelty"], tuple(Database(sys.argv[1]).run_here(partial(load_scans, batch=[rows], run_id="new"))))
"""

HALF_AN_ENVIRONMENT = f"""#!/bin/sh
# As Debian's Python without its package for environments: it makes one that has no pip, and fails.
if [ "$2" = venv ]; then '{sys.executable}' -m venv --without-pip "$3" && exit 1; fi
exec '{sys.executable}' "$@"
"""


def test_a_python_that_makes_half_an_environment_leaves_none(tmp_path: Path) -> None:
    """The next `make`, once the package that is named is there, starts anew."""
    python, environment = tmp_path / "python", tmp_path / "environment"
    python.write_text(HALF_AN_ENVIRONMENT)
    python.chmod(0o755)
    done = subprocess.run(
        ["/usr/bin/env", "make", f"{environment}/bin/python", f"VENV={environment}", f"PYTHON={python}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done
    assert "install python3-venv" in done.stderr
    assert not environment.exists()


@pytest.fixture
def checkout(tmp_path: Path) -> NextVersion:
    """`scan_meta` and `workers` have each a column more; the one of `scan_meta` is a field of the API."""
    version = next_version(tmp_path / "checkout")
    for table, column in (
        ("scan_meta", '_column("novelty", _Text, "a field of tomorrow", api="meta.novelty")'),
        ("workers", '_column("host", String(64), "its machine")'),
    ):
        version.edit(
            "etl/database/schema.py",
            f'    "{table}",\n    metadata,\n',
            f'    "{table}",\n    metadata,\n    {column},\n',
        )
    version.edit("etl/transform/fields.py", '    "meta.",\n    _field("on"', FIELD)
    return version


def test_a_migration_is_written_as_it_can_stay(checkout: NextVersion) -> None:
    """It is short, in order for `make lint`, and the new head. What stood in `extra` so far fills the column, and the
    same answer is the same scan as before."""
    number = f"{int(HEAD) + 1:04}"
    url = f"sqlite:///{checkout.folder}/scans.db"
    upgrade(url)
    with closing(Database(url)) as database:
        scan = scan_rows(1, meta={"on": "push", "novelty": "4711"})
        database.run_here(partial(load_scans, batch=[scan], run_id="old"))
    steps = (
        [".ci/migration.py", "add scan_meta.novelty"],
        ["-m", "ruff", "format", "--check", "migrations"],
        ["-m", "ruff", "check", "migrations"],
        ["-m", "etl", "db", "upgrade"],
        ["-m", "etl", "db", "check"],
        ["-m", "etl", "db", "downgrade", HEAD, "--yes"],
    )
    for step in steps:
        done = checkout.python(*step, url=url)
        assert done.returncode == 0, (step, done)
        if step[-1] == "upgrade":
            assert ask(url, text("SELECT novelty, extra FROM scan_meta")) == [("4711", None)]
            again = checkout.python("-c", LOAD_AGAIN, url)
            assert again.stdout == "4711 (0, 0, 1)\n", again
    assert ask(url, text("SELECT extra FROM scan_meta")) == [('{"novelty": "4711"}',)]
    written = (checkout.folder / "migrations" / "versions" / f"{number}_add_scan_meta_novelty.py").read_text()

    assert f'HEAD = "{number}"' in (checkout.folder / "etl" / "database" / "schema.py").read_text()
    assert 'add_column_from_extra("scan_meta", sa.Column("novelty", TEXT, nullable=True), "novelty", text)' in written
    assert 'op.add_column("workers", sa.Column("host", sa.String(length=64), nullable=True))' in written
    assert len(written.splitlines()) <= 24
