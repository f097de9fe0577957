"""A folder of files that are read as one table, in subfolders as Hive has them: `deployment=120/year_month=2026-11`.

No column has the name of a subfolder: readers make columns of these, and where there are two of a name, pandas fails
and DuckDB takes the text of the folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import BinaryIO, Final

from etl.errors import ConfigError
from etl.files.replacing import UNFINISHED, Create, replacing

LABEL: Final = ".scan-etl-export-"
"""So begins the name of an empty file that says of which export a folder is: readers of datasets skip such files."""


def part_path(deployment_id: int, month: date | None, suffix: str) -> Path:
    """The place of a deployment's rows of one month. None: nobody knows which."""
    year_month = f"{month:%Y-%m}" if month else "unknown"
    return Path(f"deployment={deployment_id}") / f"year_month={year_month}" / f"part-0.{suffix}"


@contextmanager
def replacing_dataset(folder: Path, label: str) -> Iterator[Create]:
    """What is created in the block takes the place of the files that an export with the same label left in the folder.

    ConfigError if the folder holds anything else.
    """
    _claim(folder, label)
    created: set[Path] = set()
    with replacing(folder) as create:

        @contextmanager
        def create_inside(place: Path) -> Iterator[BinaryIO]:
            created.add(folder / place)
            with create(folder / place) as file:
                yield file

        yield create_inside
    for stale in {*folder.glob("part-0.*"), *folder.glob("*=*/*=*/part-0.*")} - created:
        stale.unlink()
        for parent in stale.relative_to(folder).parents:
            with suppress(OSError):  # others are in it
                (folder / parent).rmdir()


def _claim(folder: Path, label: str) -> None:
    """Put the label on an empty folder; find it on one that isn't empty."""
    mark = folder / f"{LABEL}{label}"
    if mark.exists():
        return
    others = [one.name for one in folder.iterdir() if not one.name.startswith(UNFINISHED)] if folder.exists() else []
    labels = [name.removeprefix(LABEL) for name in others if name.startswith(LABEL)]
    if others:
        what = f"another export, {labels[0]}" if labels else "something else"
        raise ConfigError(f"{folder} holds {what}: give {label} a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
