"""What `make` does: on a machine that lacks something, and for whoever adds a column."""

import subprocess
import sys
from pathlib import Path

import pytest
from next_version import NextVersion, next_version

from etl.database.schema import HEAD

ROOT = Path(__file__).parents[1]

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
    """`scan_meta` and `workers` have each a column more."""
    version = next_version(tmp_path / "checkout")
    for table, column in (
        ("scan_meta", '_column("base_sha", _Text, "the commit that it is compared with", api="meta.base_sha")'),
        ("workers", '_column("host", String(64), "its machine")'),
    ):
        version.edit(
            "etl/database/schema.py",
            f'    "{table}",\n    metadata,\n',
            f'    "{table}",\n    metadata,\n    {column},\n',
        )
    return version


def test_a_migration_is_written_as_it_can_stay(checkout: NextVersion) -> None:
    """It is short, in order for `make lint`, and the new head; what stood in `extra` so far fills the column."""
    number = f"{int(HEAD) + 1:04}"
    url = f"sqlite:///{checkout.folder}/scans.db"
    steps = (
        [".ci/migration.py", "add scan_meta.base_sha"],
        ["-m", "ruff", "format", "--check", "migrations"],
        ["-m", "ruff", "check", "migrations"],
        ["-m", "etl", "db", "upgrade"],
        ["-m", "etl", "db", "check"],
        ["-m", "etl", "db", "downgrade", HEAD, "--yes"],
    )
    for step in steps:
        done = checkout.python(*step, url=url)
        assert done.returncode == 0, (step, done)
    written = (checkout.folder / "migrations" / "versions" / f"{number}_add_scan_meta_base_sha.py").read_text()

    assert f'HEAD = "{number}"' in (checkout.folder / "etl" / "database" / "schema.py").read_text()
    assert 'add_column_from_extra("scan_meta", sa.Column("base_sha", TEXT, nullable=True), "base_sha", text)' in written
    assert 'op.add_column("workers", sa.Column("host", sa.String(length=64), nullable=True))' in written
    assert len(written.splitlines()) <= 24
