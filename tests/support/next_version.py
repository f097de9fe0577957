"""The next version of scan-etl: a copy of this checkout, which a test changes as somebody who develops it would."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("etl", "migrations", ".ci", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class NextVersion:
    """The copy in `folder`; its programs run in processes of their own."""

    folder: Path

    def python(self, *words: str, url: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python to the end."""
        with self.start(*words, url=url) as process:
            stdout, stderr = process.communicate(timeout=100)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    @contextmanager
    def start(self, *words: str, url: str = "") -> Iterator[subprocess.Popen[str]]:
        """A running Python, which is killed at the end if it still runs."""
        with subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env={
                # What the copy runs isn't measured: it is no part of this checkout.
                **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
                "PYTHONDONTWRITEBYTECODE": "1",  # a file that changes twice in a second would be taken from the cache
                "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT / 'tests' / 'support'}",
                "SCAN_ETL_DATABASE__URL": url,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def edit(self, path: str, before: str, after: str) -> None:
        """Put a text in the place of another one, which is there once."""
        file = self.folder / path
        text = file.read_text()
        assert text.count(before) == 1, (path, before)
        file.write_text(text.replace(before, after))


def next_version(folder: Path) -> NextVersion:
    """A copy without changes."""
    folder.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)  # with what is compiled: a start takes half as long
        else:
            shutil.copy(ROOT / name, folder / name)
    return NextVersion(folder)
