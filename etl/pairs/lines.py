"""The lines of a file: opened, out of gzip, in UTF-8, and read as a stream whatever its size and theirs.

A few blocks of 64 KiB are in memory at a time.
"""

import codecs
import gzip
import io
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from etl.errors import ConfigError

MAX_LINE_BYTES = 65_536
"""No longer line is kept as it is: it is cut, somewhere past this. No more is read at once."""

# After blank lines and comments, the first four bytes, or those of an array up to its first element.
_TELLING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:#[^\n]*\n\s*)*(?:\[\s*\S|[^\s#\[].{3})", re.DOTALL)


@contextmanager
def opened(path: str, name: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, or of stdin for `-`, out of gzip. `name` is what errors call it. ConfigError if it can't be
    read."""
    with ExitStack() as stack:
        stream: io.BufferedReader
        stdin: Any = sys.stdin  # None in a process without one
        try:
            if path != "-":
                stream = stack.enter_context(Path(path).open("rb"))
            elif stdin is None:
                raise ValueError("it is closed")
            else:
                stream = io.BufferedReader(stdin.buffer)
                stack.callback(stream.detach)  # else stdin is closed together with the reader
            start = stream.peek(2)[:2]
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error
        # A pipe may hand over one byte first. That byte is enough: no text begins with it.
        if start and b"\x1f\x8b".startswith(start):
            yield stack.enter_context(gzip.GzipFile(fileobj=stream))
        else:
            yield stream


def _unreadable(name: str, error: OSError | ValueError) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else error
    return ConfigError(f"{name} can't be read ({why}): check its path and its permissions")


def read_blocks(stream: io.BufferedIOBase, name: str) -> Iterator[bytes]:
    """Yield the bytes as they come. ConfigError where they can't be read on."""
    try:
        # Not read(): that one loses the bytes just before a fault in compressed data.
        while block := stream.read1(MAX_LINE_BYTES):
            yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{name} is gzip data that is cut off or damaged: copy it again") from error
    except OSError as error:
        raise _unreadable(name, error) from error


def opening(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """As much of the text as it needs to tell what a file is, and all of its blocks. UTF-16 with its mark, as Excel's
    "Unicode text" and PowerShell write it, becomes UTF-8."""
    start = _start(blocks)
    blocks = chain([start], blocks)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        blocks = (text.encode() for text in codecs.iterdecode(blocks, "utf-16", "replace"))
        start = _start(blocks)
        blocks = chain([start], blocks)
    return start, blocks


def _start(blocks: Iterator[bytes]) -> bytes:
    """Take as many blocks as it needs to tell what a file is. A pipe may hand over a byte at a time."""
    start = b""
    while len(start) < MAX_LINE_BYTES and not _TELLING.match(start):
        block = next(blocks, b"")
        if not block:
            break
        start += block
    return start


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield some lines at a time, without the last line feed. A line that is too long is cut."""
    tail = b""
    for block in blocks:
        head, line_feed, rest = block.rpartition(b"\n")
        if line_feed:
            yield tail + head
            tail = rest
        else:
            # Too long a line must stay too long, even without its BOM and carriage return.
            tail = (tail + rest)[: MAX_LINE_BYTES + 8]
    if tail:
        yield tail


def _blocks_of_lines(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield some lines of UTF-8 at a time, parted by line feeds."""
    lines_before = 0
    for lines in _whole_lines(blocks):
        text = lines if lines_before else lines.removeprefix(codecs.BOM_UTF8)
        text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
        _check_utf8(text, name, lines_before)
        yield text
        lines_before += text.count(b"\n") + 1


def _check_utf8(text: bytes, name: str, lines_before: int) -> None:
    lines = [] if text.isascii() else text.split(b"\n")
    for number, line in enumerate(lines, lines_before + 1):
        try:
            if len(line) <= MAX_LINE_BYTES:  # a longer one may be cut within a character
                line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(name, number, error) from error


def not_utf8(name: str, line: int, error: UnicodeDecodeError) -> ConfigError:
    """What is wrong with that line of the file `name`, and what to do."""
    return ConfigError(f"{name}:{line}: not UTF-8 ({error.reason}): save it as UTF-8")


class Lines:
    """The lines of a file: taken one by one or a block at a time, with a look at those that follow.

    Whatever takes or looks raises ConfigError where the file can't be read on or isn't UTF-8.
    """

    def __init__(self, blocks: Iterator[bytes], name: str) -> None:
        self._blocks = _blocks_of_lines(blocks, name)
        self._window: deque[bytes] = deque()
        self.taken = 0  # how many, which is the number of the last one

    def _widen(self) -> bool:
        block = next(self._blocks, None)
        if block is None:
            return False
        self._window.extend(block.split(b"\n"))
        return True

    def __iter__(self) -> Iterator[bytes]:
        """Take the lines in the window."""
        window = self._window
        while window:
            self.taken += 1
            yield window.popleft()

    def plain_blocks(self, odd_line: re.Pattern[bytes]) -> Iterator[bytes]:
        """Take the blocks without an odd line, which is found by the line feed before it. The first other block goes
        into the window."""
        while not self._window:
            block = next(self._blocks, None)
            if block is None:
                return
            # Only a block's first line can be too long: the others have come in one read.
            if len(block.partition(b"\n")[0]) <= MAX_LINE_BYTES and not odd_line.search(b"\n" + block):
                self.taken += block.count(b"\n") + 1
                yield block
            else:
                self._window.extend(block.split(b"\n"))

    def ahead(self) -> Iterator[bytes]:
        """Yield the lines that follow, without taking them."""
        index = 0
        while index < len(self._window) or self._widen():
            yield self._window[index]
            index += 1

    def skip(self, count: int) -> None:
        """Take `count` of the lines that `ahead` has shown."""
        self.taken += count
        for _ in range(count):
            self._window.popleft()

    def first(self) -> bytes:
        """Take the lines that pass, and return the one after them without taking it: b"" if there is none."""
        while self._window or self._widen():
            if not passes(self._window[0]):
                return self._window[0]
            self.skip(1)
        return b""


def passes(line: bytes) -> bool:
    """Whether a line says nothing: it is blank, or begins with `#`."""
    return line.lstrip()[:1] in (b"", b"#")
