"""The dbt package of deploy/, and a real dbt that runs a copy of it against a database."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sqlalchemy.engine import make_url

PACKAGE = Path(__file__).parents[2] / "deploy" / "dbt"
_PROGRAM = Path(sys.prefix) / "dbt" / "bin" / "dbt"


def dbt_problem() -> str | None:
    """Why dbt can't be run; None where it can."""
    if _PROGRAM.exists():
        return None
    return "The tests of the dbt package are left out: `make dbt-test` gets it, in an environment of its own."


def run_dbt(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with the package's own profile. A warning, of what is about to be removed say, is an error."""
    if not folder.exists():
        shutil.copytree(PACKAGE, folder)
    given = make_url(url)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "SCANS_HOST": str(given.host),
        "SCANS_PORT": str(given.port),
        "SCANS_USER": str(given.username),
        "DBT_ENV_SECRET_SCANS_PASSWORD": given.password or "",
        "SCANS_DATABASE": str(given.database),
        "SCANS_SSLMODE": "disable",
    }
    command = [str(_PROGRAM), "--warn-error", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
