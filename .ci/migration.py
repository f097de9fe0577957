"""Writes the next migration: what `etl/database/schema.py` says beyond what the migrations so far make.

Call it by `make migration MESSAGE="add scans.engine"`, then read and fix what it wrote: it doesn't see
views, server defaults or CHECK constraints.
"""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from etl.database.engine import make_engine
from etl.database.migrate import upgrade
from etl.transform.fields import LISTING, META, SCAN, STATS

ROOT: Final = Path(__file__).parents[1]
LEVELS: Final = {"scans": SCAN, "scan_meta": META, "scan_stats": STATS, "scan_listings": LISTING}
"""The lists of fields, by table."""
_ADD: Final = re.compile(r"op\.add_column\('(\w+)', (sa\.Column\('(\w+)', .*\))\)")


def write_migration(message: str) -> None:
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    newest = ScriptDirectory.from_config(config).get_current_head() or "0"
    number = f"{int(newest) + 1:04}"
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/scans.db"
        upgrade(url)
        engine = make_engine(url)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=number)
        engine.dispose()
    for file in (ROOT / "migrations" / "versions").glob(f"{number}_*.py"):
        file.write_text(fill_from_extra(file.read_text("utf-8")), "utf-8")
        _tidy(file)
    schema = ROOT / "etl" / "database" / "schema.py"
    schema.write_text(re.sub(r'(?m)^HEAD = "\w+"$', f'HEAD = "{number}"', schema.read_text("utf-8")), "utf-8")


def fill_from_extra(script: str) -> str:
    """A column of a field is filled with what stood in `extra` so far, and its values go back there."""
    for added in _ADD.finditer(script):
        table, column, name = added.groups()
        for field in LEVELS[table].fields if table in LEVELS else ():
            if field.column == name:
                what = f"'{table}', {column}, '{field.name}'"
                script = script.replace(added[0], f"add_column_from_extra({what}, {field.read.__name__})")
                script = script.replace(f"op.drop_column('{table}', '{name}')", f"drop_column_into_extra({what})")
    return script


def _tidy(file: Path) -> None:
    """Without what Alembic says of itself, and the imports of the template that it doesn't need."""
    file.write_text(re.sub(r"(?m)^ *# ###.*\n", "", file.read_text("utf-8")), "utf-8")
    ruff = partial(subprocess.run, cwd=ROOT, check=True)
    ruff([sys.executable, "-m", "ruff", "check", "--fix", "--quiet", file])
    ruff([sys.executable, "-m", "ruff", "format", "--quiet", file])


if __name__ == "__main__":
    write_migration(sys.argv[1])
