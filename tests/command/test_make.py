"""What `make` does on a machine that lacks something."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

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
