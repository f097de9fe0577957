"""Files that appear whole, at the end of all work: a reader, a full disk or a kill never leaves half of one.

They are written into a hidden folder beside their places, and renamed.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

UNFINISHED: Final = ".scan-etl-unfinished-"
ABANDONED_SECONDS: Final = 86_400.0
"""After so long without a new file in it, a hidden folder was left behind by a kill."""

Create = Callable[[Path], AbstractContextManager[BinaryIO]]
"""Opens a file to be written, which has this place in the end."""


@contextmanager
def replacing(folder: Path) -> Iterator[Create]:
    """What is created in the block takes its place when the block ends; after an error all is as it was before."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    hidden = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    hidden.mkdir()
    places: list[Path] = []

    @contextmanager
    def create(place: Path) -> Iterator[BinaryIO]:
        with (hidden / str(len(places))).open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        places.append(place)

    try:
        yield create
        for number, place in enumerate(places):
            place.parent.mkdir(parents=True, exist_ok=True)
            (hidden / str(number)).replace(place)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for hidden in folder.glob(f"{UNFINISHED}*"):
        if time.time() - hidden.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(hidden, ignore_errors=True)
