"""Writes the next migration: what `etl/database/schema.py` says beyond what the migrations so far make.

Call it by `make migration MESSAGE="add scans.engine"`, then read and mend what it wrote: it doesn't see
views, server defaults or CHECK constraints.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from etl.database.engine import make_engine
from etl.database.migrate import upgrade

ROOT = Path(__file__).parents[1]


def write_migration(message: str) -> None:
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    newest = ScriptDirectory.from_config(config).get_current_head() or "0"
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/scans.db"
        upgrade(url)
        engine = make_engine(url)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=f"{int(newest) + 1:04}")
        engine.dispose()


if __name__ == "__main__":
    write_migration(sys.argv[1])
