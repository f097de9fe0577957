"""Reads JSON of any writer, and cleans what no database takes. Pure, and the same for every database.

NUL and lone surrogates in texts and names become U+FFFD. Numbers that some database wouldn't give back exactly
(NaN, Infinity, integers beyond 64 bits, floats beyond 2^53, which PostgreSQL's JSONB turns into integers) become
their text.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from math import inf, isfinite
from typing import Any, Final

import msgspec

from etl.errors import ItemError
from etl.model import INT64_MAX, Drift

DRIFT_OUT_OF_RANGE = "out_of_range"  # more than its column holds, in `extra`; or NaN or Infinity, now a text
DRIFT_BAD_TEXT = "bad_text"  # NUL or a lone surrogate in a text or a name, now U+FFFD
DRIFT_BIG_NUMBER = "big_number"  # an integer beyond 64 bits, or a float beyond 2^53, now its text

MAX_DEPTH = 200
"""Most levels of nesting in an answer; the answer itself is the first. SQLite's JSON ends at 1,000."""
PATH_MAX_CHARACTERS = 200
INT64_MIN: Final = -INT64_MAX - 1
EXACT_INT: Final = 2**53  # up to here every integer is a float
REPLACEMENT: Final = "\ufffd"
BAD_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_from_json: Final = msgspec.json.Decoder().decode

Notes = dict[Drift, None]
"""The drift met, each once, in its order."""
CleanLeaf = Callable[[Any, str, Notes], Any]


def decode(body: bytes) -> object:
    """Read JSON, also such as only lenient writers produce.

    Numbers that no float holds, integers past Python's digit limit, NaN and Infinity come back as their
    literal text. Lone surrogates stay as they are. A byte order mark is skipped; a key that comes twice has
    its last value. Raises ValueError where it isn't JSON in UTF-8, ItemError (`too_deep`) for deep nesting.
    """
    try:
        try:
            return _from_json(body)
        except ValueError:
            text = body.decode("utf-8-sig")
            return json.loads(text, parse_int=_literal_int, parse_float=_literal_float, parse_constant=str)
    except RecursionError as exc:
        raise too_deep("$") from exc


def _literal_int(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return text


def _literal_float(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) else text


def too_deep(path: str) -> ItemError:
    """The error for an answer that is nested deeper than any real one."""
    return ItemError(f"{path}: the answer is nested more than {MAX_DEPTH} levels deep", kind="too_deep")


def is_storable(value: object, depth: int) -> bool:
    """Whether all numbers can be stored as they are, and nothing is nested too deep.

    `depth` is the level of the value, if it is an object or a list. Texts aren't looked at: the encoder refuses
    lone surrogates, and a NUL shows in what it writes.
    """
    if type(value) is int:
        return INT64_MIN <= value <= INT64_MAX
    if type(value) is float:
        return -EXACT_INT <= value <= EXACT_INT
    if type(value) is dict or type(value) is list:
        if depth > MAX_DEPTH:
            return False
        for member in value.values() if type(value) is dict else value:
            if not is_storable(member, depth + 1):
                return False
    return True


def clean(value: object, path: str, depth: int, notes: Notes, clean_leaf: CleanLeaf) -> object:
    """A copy with clean leaves and names. `depth` is the value's level; the path of a list's member ends in `[]`."""
    if type(value) is not dict and type(value) is not list:
        return clean_leaf(value, path, notes)
    if depth > MAX_DEPTH:
        raise too_deep(f"$.{path}")
    if type(value) is list:
        members: list[object] = []
        for member in value:  # a comprehension would be a second frame for each level
            members.append(clean(member, f"{path}[]"[:PATH_MAX_CHARACTERS], depth + 1, notes, clean_leaf))
        return members
    cleaned: dict[str, object] = {}
    # Good names first, so that they stay as they are whatever the bad ones become.
    for name in sorted(value, key=lambda name: (BAD_TEXT.search(name) is not None, name)):
        inside = BAD_TEXT.sub(REPLACEMENT, f"{path}.{name}" if path else name)[:PATH_MAX_CHARACTERS]
        good = clean_leaf(name, inside, notes)
        while good in cleaned:
            good += REPLACEMENT
        cleaned[good] = clean(value[name], inside, depth + 1, notes, clean_leaf)
    return cleaned


def clean_text(value: Any, path: str, notes: Notes) -> Any:
    """A text without what databases refuse; anything else as it is."""
    if type(value) is str and BAD_TEXT.search(value):
        notes[Drift(path, DRIFT_BAD_TEXT)] = None
        return BAD_TEXT.sub(REPLACEMENT, value)
    return value


def clean_number(value: Any, path: str, notes: Notes) -> Any:
    """A number that isn't exact everywhere as its text; anything else as it is."""
    if type(value) is int and not INT64_MIN <= value <= INT64_MAX:
        notes[Drift(path, DRIFT_BIG_NUMBER)] = None
        return str(Decimal(value))  # str(int) refuses more than 4,300 digits
    if type(value) is float and EXACT_INT < abs(value) < inf:
        notes[Drift(path, DRIFT_BIG_NUMBER)] = None
        return repr(value)
    if type(value) is float and not isfinite(value):
        notes[Drift(path, DRIFT_OUT_OF_RANGE)] = None
        return {inf: "Infinity", -inf: "-Infinity"}.get(value, "NaN")
    return value
