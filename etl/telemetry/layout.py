"""Lays out tables and texts for a terminal of any width: no id, number, time or word is ever cut. Pure.

Long texts of a table that is too wide take several lines. Where that isn't enough, its rows become records, one under
another.
"""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from unicodedata import combining, east_asian_width

GAP = "  "
LONGEST_UNBROKEN = 24
"""Characters: only a longer text goes on in the next line of its cell."""

_wrapped = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)


class _Column(NamedTuple):
    name: str
    cells: Sequence[str]
    is_number: bool

    @property
    def natural_width(self) -> int:
        return max(places(text) for text in (self.name, *self.cells))

    @property
    def least_width(self) -> int:
        """With the name broken between words, and long texts, too."""
        return max(places(part) for text in (*self.name.split(), *self.cells) for part in _unbroken(text))


def table(title: str, rows: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """The lines of a table with a title, of rows of the same names. `width` is that of a terminal, None of a file."""
    if not rows:
        return text(f"{title}: none", width)
    columns = [_column(name, [row[name] for row in rows]) for name in rows[0]]
    natural = [column.natural_width for column in columns]
    if width is None or _total(natural) <= width:
        return [*text(title, width), *_table(columns, natural)]
    columns = [column for column in columns if any(column.cells)] or columns[:1]
    least = [column.least_width for column in columns]
    lines = _table(columns, _widened(columns, least, width)) if _total(least) <= width else _records(columns, width)
    return [*text(title, width), *lines]


def text(sentence: str, width: int | None) -> list[str]:
    """Each line of a text on as many lines as it needs, all but the first of these indented."""
    if width is None:
        return [sentence]
    return [piece for line in sentence.split("\n") for piece in _wrapped(line, width, subsequent_indent=GAP) or [""]]


def shown(name: str, value: Any) -> str:
    """A value as people read it: ids are plain, other numbers have separators, what is unknown is empty."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, int | float) and not name.endswith("_id"):
        return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items() if each not in (None, "", []))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "".join(character if character.isprintable() else " " for character in str(value))


def spoken(name: str) -> str:
    """A name as people read it."""
    return name.replace("_", " ")


def places(text: str) -> int:
    """How many places of a line it takes: letters of Chinese, Japanese and Korean and many symbols take two."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def _column(name: str, values: Sequence[Any]) -> _Column:
    is_number = any(isinstance(value, int | float) for value in values)
    return _Column(spoken(name), [shown(name, value) for value in values], is_number)


def _unbroken(cell: str) -> list[str]:
    """The pieces of a cell that stay in one line each."""
    return cell.split() if places(cell) > LONGEST_UNBROKEN else [cell]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widened(columns: Sequence[_Column], least: Sequence[int], width: int) -> list[int]:
    """What is left of the width goes to the columns that need most of it, fairly."""
    widths = list(least)
    for _ in range(width - _total(least)):
        lacking = [column.natural_width - given for column, given in zip(columns, widths, strict=True)]
        if max(lacking) <= 0:
            break
        widths[lacking.index(max(lacking))] += 1
    return widths


def _table(columns: Sequence[_Column], widths: Sequence[int]) -> list[str]:
    names = [column.name for column in columns]
    lines = []
    for row in (names, *zip(*(column.cells for column in columns), strict=True)):
        cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
        height = max(map(len, cells))
        for number in range(height):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append(GAP.join(map(_aligned, parts, widths, (column.is_number for column in columns))).rstrip())
    return lines


def _broken(cell: str, width: int) -> list[str]:
    return [cell] if places(cell) <= width else _wrapped(cell, width)


def _aligned(part: str, width: int, is_number: bool) -> str:
    blanks = " " * (width - places(part))
    return blanks + part if is_number else part + blanks


def _records(columns: Sequence[_Column], width: int) -> list[str]:
    """Each row as `name value, name value`, without what is empty."""
    names = [column.name for column in columns]
    rows = zip(*(column.cells for column in columns), strict=True)
    return [
        line
        for row in rows
        for line in _flowing([f"{name} {cell}" for name, cell in zip(names, row, strict=True) if cell], width)
    ]


def _flowing(pieces: Sequence[str], width: int) -> list[str]:
    """The pieces, with commas between them; none is broken unless it is longer than a line."""
    lines: list[str] = []
    for piece in (*(f"{piece}," for piece in pieces[:-1]), *pieces[-1:]):
        if lines and places(f"{lines[-1]} {piece}") <= width:
            lines[-1] += f" {piece}"
        else:
            lines += _wrapped(piece, width, initial_indent=GAP if lines else "", subsequent_indent=2 * GAP)
    return lines
