"""Files of pairs, written and read."""

import gzip
from functools import partial
from pathlib import Path

from etl.model import Pair
from etl.pairs.pairs_file import BadLine, read_pairs

packed = partial(gzip.compress, mtime=0)
"""Without the time of day, or a test would have another name in each process."""


def read(path: Path | str, *, chunk_size: int = 10_000) -> tuple[list[Pair], list[BadLine]]:
    chunks = list(read_pairs(str(path), chunk_size=chunk_size))
    return [pair for chunk in chunks for pair in chunk.pairs], [bad for chunk in chunks for bad in chunk.bad_lines]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
