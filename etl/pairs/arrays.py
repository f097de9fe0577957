"""JSON arrays as a stream of their elements: in one line or many, whatever their size, one array after the other."""

import codecs
import json
import re
from collections.abc import Iterator

from etl.pairs.lines import MAX_LINE_BYTES, not_utf8

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BLANKS = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = len("-Infinity")  # nearer to the end of a block, a number or a word may go on in the next one
# Only the ends of elements are asked for. As text, no number is too long.
_decode = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


class BrokenArrayError(Exception):
    """The text stops being a JSON array, and nothing says where the next element begins."""


class Elements:
    """The elements of the arrays in a file, each as its text and the line on which it begins.

    A block and an element are in memory at a time. Iterating raises BrokenArrayError, whose place is `line` then, and
    ConfigError where the file can't be read on or isn't UTF-8.
    """

    def __init__(self, blocks: Iterator[bytes], name: str) -> None:
        self._texts = _decoded(blocks, name)
        self._text = ""
        self._at = 0  # what stands before it in the text is taken
        self.line = 1

    @property
    def taken(self) -> int:
        """How many lines, the last one perhaps in part."""
        return self.line - self._text[: self._at].endswith("\n")

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self._next():
            self._expect("[")
            if self._next() != "]":
                yield self._element()
                while self._next() == ",":
                    self._take(self._at + 1)
                    yield self._element()
            self._expect("]")

    def _take(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_on(self) -> bool:
        text = next(self._texts, "")
        if text:
            self._text, self._at = self._text[self._at :] + text, 0
        return bool(text)

    def _next(self) -> str:
        """Take the blanks, and return the character after them without taking it: "" at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            self._take(blanks.end() if blanks else self._at)
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        found = self._next()
        if found != character:
            raise BrokenArrayError(f"{found!r} instead of {character!r}" if found else "the array is cut off")
        self._take(self._at + 1)

    def _element(self) -> tuple[int, str]:
        self._next()
        is_all = False
        while (end := self._end_of_element(is_all=is_all)) is None:
            if len(self._text) - self._at > MAX_LINE_BYTES:
                raise BrokenArrayError(f"an element is longer than {MAX_LINE_BYTES} bytes")
            is_all = not self._read_on()
        line, element = self.line, self._text[self._at : end]
        self._take(end)
        return line, element

    def _end_of_element(self, *, is_all: bool) -> int | None:
        """None where that shows only in what follows. `is_all` says that nothing does."""
        sure = len(self._text) if is_all else len(self._text) - _LONGEST_TOKEN
        try:
            _, end = _decode(self._text, self._at)
        except RecursionError as error:
            raise BrokenArrayError("an element is nested too deeply") from error
        except json.JSONDecodeError as error:
            is_cut = self._text.startswith('"', error.pos) and not _STRING.match(self._text, error.pos)
            if error.pos > sure or (is_cut and not is_all):
                return None
            self._take(error.pos)
            is_cut = is_cut or error.pos == len(self._text)
            raise BrokenArrayError("the array is cut off" if is_cut else error.msg) from error
        return end if end <= sure else None


def _decoded(blocks: Iterator[bytes], name: str) -> Iterator[str]:
    lines_before = 0
    try:
        for text in codecs.iterdecode(blocks, "utf-8-sig"):
            yield text
            lines_before += text.count("\n")
    except UnicodeDecodeError as error:
        raise not_utf8(name, lines_before + 1 + error.object[: error.start].count(b"\n"), error) from error
