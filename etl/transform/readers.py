"""Reads the values of known fields, in whichever of its forms each comes. Pure.

Ids and counts are numbers in one call and texts in the other (protobuf writes 64 bits as text); instants come in two
forms. What is none of them is an OddError, and its field is kept as it came.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Final

import msgspec

from etl.model import INT64_MAX
from etl.transform.sanitize import DRIFT_OUT_OF_RANGE, INT64_MIN, clean_number

DRIFT_UNKNOWN_FIELD = "unknown_field"  # not in `fields`; in `extra`, or among the items if it is a map in stats
DRIFT_ODD_TYPE = "odd_type"  # known with another type; in `extra`
DRIFT_BAD_TIME = "bad_time"  # a text that is no instant; in `extra`
DRIFT_NAIVE_TIME = "naive_time"  # an instant without an offset, taken as UTC
DRIFT_REFUSED = "refused_row"  # a value that the database refuses; nowhere
DRIFT_CONFLICT = "conflict"  # two answers, or two fields of one, that say different things

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,308}").fullmatch  # no float has more digits than 309
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,308})(\.[0-9]+)?([eE][+-]?[0-9]+)?").fullmatch
# datetime.fromisoformat alone won't do: it takes `23:28:12xZ`, and drops a NUL at the end.
_INSTANT: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
).fullmatch
FIRST_INSTANT, END_OF_INSTANTS = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""What comes from outside is believed from the one until before the other. No scan is older than the product, and
no program that runs now sees the next century: what lies outside is a zero or a slip, and sums with it leave the
calendar. The views begin with the year 2000, too."""
to_json: Final = msgspec.json.Encoder(order="sorted").encode
"""The JSON of a value, the names in each object sorted."""
KEY_MAX_CHARACTERS: Final = 128
"""Longest text in a key; a test compares it with `schema.KEY_TEXT_LENGTH`, out of reach from here."""
Reader = Callable[[Any], Any]
"""Gives a value as its column has it. Raises OddError for one of no known form."""


class OddError(Exception):
    """A known field isn't of a known form. `found` is what its column has even so; None: nothing."""

    def __init__(self, kind: str, found: object = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.found = found


def integer(value: object) -> int:
    """Of an integer, an integral float, or an integer's decimal text (protobuf's JSON form of 64 bits)."""
    if type(value) is int:
        number = value
    elif (type(value) is float and value.is_integer()) or (type(value) is str and _INTEGER(value)):
        number = int(value)
    else:
        raise OddError(DRIFT_ODD_TYPE)
    if INT64_MIN <= number <= INT64_MAX:
        return number
    raise OddError(DRIFT_OUT_OF_RANGE)


def boolean(value: object) -> bool:
    """Of a truth value, or of its JSON text."""
    if type(value) is bool:
        return value
    if value in ("true", "false"):
        return value == "true"
    raise OddError(DRIFT_ODD_TYPE)


def flag(value: object) -> bool:
    """Of a truth value, its JSON text, or 0 or 1, as the vendor's own example writes `is_full_scan`."""
    return bool(value) if type(value) is int and value in (0, 1) else boolean(value)


def seconds(value: object) -> float:
    """Of a number, or of a number's text."""
    if type(value) is str and _DECIMAL(value) and not _INTEGER(value):
        number: float | None = float(value)
    else:
        number = exact_float(value)
    if number is not None and isfinite(number):
        return number
    is_number = type(value) is int or (type(value) is str and _DECIMAL(value))
    raise OddError(DRIFT_OUT_OF_RANGE if is_number else DRIFT_ODD_TYPE)


def is_believable(at: datetime) -> bool:
    """Whether an instant from outside can be true at all."""
    return FIRST_INSTANT <= at < END_OF_INSTANTS


def instant(value: object) -> datetime:
    """In UTC, one that can be true; what is finer than a microsecond is cut off."""
    if type(value) is not str:
        raise OddError(DRIFT_ODD_TYPE)
    if not _INSTANT(value):
        raise OddError(DRIFT_BAD_TIME)
    try:
        found = datetime.fromisoformat(value)
    except ValueError as exc:  # a month 13, a second 60
        raise OddError(DRIFT_BAD_TIME) from exc
    is_naive = found.tzinfo is None
    found = found.replace(tzinfo=UTC) if is_naive else found
    if not is_believable(found):
        raise OddError(DRIFT_OUT_OF_RANGE)
    if is_naive:
        raise OddError(DRIFT_NAIVE_TIME, found)
    return found if found.tzinfo is UTC else found.astimezone(UTC)


def header_date(value: str) -> datetime | None:
    """Of a header's date, e.g. `Tue, 24 Nov 2026 10:00:00 GMT`; None if it says nothing that can be true."""
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return found if is_believable(found) else None


def text(value: object) -> str:
    """A number or a truth value as its JSON text."""
    if type(value) is str:
        return value
    if type(value) not in (int, float, bool):
        raise OddError(DRIFT_ODD_TYPE)
    storable = clean_number(value, "", {})
    return storable if type(storable) is str else to_json(storable).decode()


def exact_float(value: object) -> float | None:
    """The float that is exactly this number; None if there is none. The text of an integer is a number."""
    if type(value) is int or type(value) is float:
        number = value
    elif type(value) is str and _INTEGER(value):
        number = int(value)
    else:
        return None
    try:
        return float(number) if float(number) == number and isfinite(number) else None
    except OverflowError:
        return None


def title(value: object) -> str:
    """As `text`, and a one-key map as `key: value`: YAML makes one of `fix(feature): Added`."""
    if type(value) is dict and len(value) == 1:
        (name,) = value
        if type(value[name]) is str or type(value[name]) is int:
            return f"{name}: {text(value[name])}"
    return text(value)


def short_text(max_characters: int) -> Reader:
    """As `text`, of at most so many characters."""

    def read(value: object) -> str:
        found = text(value)
        if len(found) > max_characters:
            raise OddError(DRIFT_OUT_OF_RANGE)
        return found

    return read


def products(value: object) -> tuple[str, ...]:
    """Of a list of texts: each once, sorted."""
    if type(value) is not list:
        raise OddError(DRIFT_ODD_TYPE)
    for product in value:
        if type(product) is not str:
            raise OddError(DRIFT_ODD_TYPE)
        if len(product) > KEY_MAX_CHARACTERS:
            raise OddError(DRIFT_OUT_OF_RANGE)
    return tuple(sorted(set(value)))


def texts(value: object) -> list[str]:
    """Of a list of texts, as it is."""
    if type(value) is list and all(type(one) is str for one in value):
        return value
    raise OddError(DRIFT_ODD_TYPE)


def json_object(value: object) -> dict[str, Any]:
    """Of an object, as it is."""
    if type(value) is dict:
        return value
    raise OddError(DRIFT_ODD_TYPE)
