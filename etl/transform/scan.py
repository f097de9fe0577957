"""From the API's answer about one scan to the rows that are stored. Pure: no clock, no network, no database.

Nothing is lost. A value goes to its column, product or item where its meaning is certain; everything else
stays, under its own name, in the `extra` of its level (scan, meta, stats). What came other than documented
is noted as drift.

An answer is read as it came. Only where its rows turn out to hold text that no database takes (NUL, a lone
surrogate) is it cleaned as a whole and read again, so that cleaning costs the others nothing. Numbers that no
JSON column takes (NaN, integers beyond 64 bits) are cleaned where they are left over, in `extra`.
"""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from etl.errors import ItemError
from etl.model import INT64_MAX, Drift, Pair, ScanRows
from etl.transform.fields import (
    DRIFT_CONFLICT,
    DRIFT_ODD_TYPE,
    DRIFT_UNKNOWN_FIELD,
    OddError,
    boolean,
    exact_float,
    instant,
    integer,
    seconds,
    text,
    to_json,
)
from etl.transform.sanitize import (
    BAD_TEXT,
    DRIFT_OUT_OF_RANGE,
    EXACT_INT,
    INT64_MIN,
    PATH_MAX_CHARACTERS,
    REPLACEMENT,
    Notes,
    clean,
    clean_number,
    clean_text,
    is_storable,
)

MAX_DRIFT = 50
"""Most drift entries of one scan: enough to see what has changed, whatever the answer holds."""
KEY_MAX_CHARACTERS = 128
"""Longest product and category; a test compares it with `schema.KEY_TEXT_LENGTH`, out of reach from here."""
NAME_MAX_CHARACTERS = 512
"""Longest name of an item; a test compares it with `schema.NAME_TEXT_LENGTH`."""

_CACHED_NAMES_MAX_CHARACTERS: Final = 10_000
_PLAIN: Final = {str, bool, type(None)}  # what never needs a look at its value

_Items = tuple[tuple[str, str, float], ...]


class _BadTextError(Exception):
    """A text in the answer can't be stored as it came."""


def _title(value: object) -> str:
    """As `text`, and a one-key map as `key: value`: YAML makes one of `fix(feature): Added`."""
    if type(value) is dict and len(value) == 1:
        (name,) = value
        if type(value[name]) is str or type(value[name]) is int:
            return f"{name}: {text(value[name])}"
    return text(value)


def _products(value: object) -> tuple[str, ...]:
    if type(value) is not list:
        raise OddError(DRIFT_ODD_TYPE)
    for product in value:
        if type(product) is not str:
            raise OddError(DRIFT_ODD_TYPE)
        if len(product) > KEY_MAX_CHARACTERS:
            raise OddError(DRIFT_OUT_OF_RANGE)
    return tuple(sorted(set(value)))


def _object(value: object) -> dict[str, Any]:
    if type(value) is dict:
        return value
    raise OddError(DRIFT_ODD_TYPE)


class _Level(NamedTuple):
    """The documented fields of an object.

    `ready` is the type of value that needs no reader, in any of the fields. `blank` is the object with all its
    fields null, in the order of the columns; those at its end that have no reader are known, but not stored.
    """

    prefix: str
    ready: type
    readers: tuple[Callable[[Any], Any], ...]
    blank: dict[str, None]


def _level(prefix: str, ready: type, readers: dict[str, Callable[[Any], Any]], *not_stored: str) -> _Level:
    return _Level(prefix, ready, tuple(readers.values()), dict.fromkeys((*readers, *not_stored)))


_SCAN: Final = _level(
    "",
    type(None),
    {
        "repository_id": integer,
        "started_at": instant,
        "completed_at": instant,
        "exit_code": integer,
        "has_logs": boolean,
        "enabled_products": _products,
        "meta": _object,
        "stats": _object,
    },
    "id",
    "deployment_id",
)
_META_FIELDS: Final = (
    "on branch commit config repo_url ci_job_url repository commit_title pull_request_id pull_request_title "
    "commit_author_name commit_author_email commit_author_username commit_author_image_url "
    "pull_request_author_username pull_request_author_image_url true"
).split()
_META: Final = _level("meta.", str, {name: _title if name.endswith("_title") else text for name in _META_FIELDS})
_STATS: Final = _level("stats.", type(None), {"findings": integer, "total_time": seconds})

_SCANNER_FIELDS: Final = frozenset(
    f"stats.{name}"
    for name in (
        "errors unsupported_exts lockfile_scan_info parse_rate engine_requested findings_by_product supply_chain_stats"
    ).split()
)
"""Not documented by the API, but by the scanner, which uploads them: nothing new when they come."""

_RENAMED: Final = {"on": "trigger_event", "commit": "commit_sha", "total_time": "total_time_seconds"}
SCAN_COLUMNS = (*islice(_SCAN.blank, 5), "extra")
META_COLUMNS = (*(_RENAMED.get(name, name) for name in islice(_META.blank, 16)), "extra")
STATS_COLUMNS = (*(_RENAMED.get(name, name) for name in _STATS.blank), "extra")
"""What `ScanRows.scan`, `.meta` and `.stats` hold, in their order."""

_AUTHOR_SLOTS: Final = {name: slot for slot, name in enumerate(META_COLUMNS) if "_author_" in name}


def flatten(
    pair: Pair, document: object, fetched_at: datetime, author: Literal["keep", "hash", "drop"] = "keep"
) -> ScanRows:
    """Turn the decoded answer about `pair` into rows.

    `author` says what becomes of the names, e-mail addresses and pictures of the commit's and the pull
    request's author: `hash` keeps 32 hex digits of BLAKE2b over the text (JSON, where it isn't a text).
    Raises ItemError, and nothing else, for an answer that isn't an object (kind `not_an_object`), that is
    about another scan (`wrong_scan`), or that is nested too deep (`too_deep`).
    """
    if type(document) is not dict:
        raise ItemError(f"$: the answer is {_shown(document)}, not an object", kind="not_an_object")
    _check_id("id", "scan", document.get("id"), pair.scan_id)
    _check_id("deployment_id", "deployment", document.get("deployment_id"), pair.deployment_id)
    notes: Notes = {}
    try:
        rows = _rows(document, author, notes, cleaned=False)
    except (_BadTextError, UnicodeEncodeError):
        notes.clear()
        rows = _rows(clean(document, "", 1, notes, clean_text), author, notes, cleaned=True)
    return ScanRows._make((pair, fetched_at, *rows, tuple(notes)[:MAX_DRIFT]))


def _check_id(name: str, noun: str, got: object, asked: int) -> None:
    if got is None or (type(got) is int and got == asked):
        return
    try:
        same = integer(got) == asked
    except OddError:
        same = False
    if not same:
        message = f"$.{name}: the answer is about {noun} {_shown(got)}, asked was {asked}"
        raise ItemError(message, kind="wrong_scan")


def _shown(value: object) -> str:
    """A few words for an error message."""
    if type(value) is str:
        return f"'{BAD_TEXT.sub(REPLACEMENT, value[:40])}'"
    if type(value) is list or type(value) is dict:
        return "a list" if type(value) is list else "an object"
    if type(value) is int and not INT64_MIN <= value <= INT64_MAX:
        return "an integer beyond 64 bits"
    return "null" if value is None else str(value).lower()


def _rows(document: Any, author: str, notes: Notes, *, cleaned: bool) -> tuple[Any, ...]:
    """`ScanRows` from `final` to `items`."""
    row, rest = _read(document, _SCAN, notes)
    scan, products = row[:5], row[5] or ()
    meta, meta_extra = _meta(row[6] or {}, author, notes)
    stats, items, stats_extra = _stats(row[7] or {}, notes)
    scan_extra = _extra(rest, _SCAN, notes)
    # JSON has no line breaks of its own, so different rows never give the same content.
    content = b"\n".join((to_json((scan, products, meta, stats, items)), scan_extra, meta_extra, stats_extra))
    # A NUL is written so. To look for any backslash first is quicker by far.
    if not cleaned and b"\\" in content and b"\\u0000" in content:
        raise _BadTextError
    return (
        scan[2] is not None,
        _digest(content),
        (*scan, scan_extra.decode() or None),
        products,
        (*meta, meta_extra.decode() or None),
        (*stats, stats_extra.decode() or None),
        items,
    )


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _read(source: dict[str, Any], level: _Level, notes: Notes) -> tuple[list[Any], dict[str, Any]]:
    """The values of the documented fields, in the order of the columns, and all that has no place there.

    A documented field that is null is as good as absent.
    """
    prefix, ready, readers, blank = level
    whole: dict[str, Any] = blank | source  # the documented fields come first, in their order
    row = list(whole.values())
    extra = {}
    if len(row) > len(blank):
        extra = dict(islice(whole.items(), len(blank), None))
        names = tuple(extra)
        is_cacheable = len("".join(names)) <= _CACHED_NAMES_MAX_CHARACTERS
        notes.update((_unknown_fields if is_cacheable else _unknown_fields.__wrapped__)(prefix, names))
    del row[len(readers) :]
    for slot, value in enumerate(row):
        if type(value) is not ready and value is not None:
            try:
                row[slot] = readers[slot](value)
            except OddError as odd:
                name = tuple(blank)[slot]
                notes[Drift(prefix + name, odd.kind)] = None
                row[slot] = odd.found
                if odd.found is None:
                    extra[name] = value
    return row, extra


@lru_cache(maxsize=256)  # the same few names come with every scan
def _unknown_fields(prefix: str, names: tuple[str, ...]) -> Notes:
    paths = [(prefix + name)[:PATH_MAX_CHARACTERS] for name in names[:MAX_DRIFT]]
    return {Drift(path, DRIFT_UNKNOWN_FIELD): None for path in paths if path not in _SCANNER_FIELDS}


def _extra(extra: dict[str, Any], level: _Level, notes: Notes) -> bytes:
    """As JSON; nothing if it is empty."""
    if not extra:
        return b""
    depth = 2 if level.prefix else 1
    if not _PLAIN.issuperset(map(type, extra.values())) and not is_storable(extra, depth):
        return to_json(clean(extra, level.prefix[:-1], depth, notes, clean_number))
    return to_json(extra)


def _meta(meta: dict[str, Any], author: str, notes: Notes) -> tuple[list[Any], bytes]:
    row, extra = _read(meta, _META, notes)
    # The published page calls `on` by the name `true`, as YAML reads that word; the scanner sends `on`.
    other = row.pop()
    if row[0] is None:
        row[0] = other
    elif other is not None and other != row[0]:
        extra["true"] = meta["true"]
        notes[Drift("meta.true", DRIFT_CONFLICT)] = None
    if author != "keep":
        _hide_authors(row, extra, author)
    return row, _extra(extra, _META, notes)


def _hide_authors(row: list[Any], extra: dict[str, Any], author: str) -> None:
    """Hide, in place, what is about authors: the columns, and what isn't in them only for its odd type."""
    for name, slot in _AUTHOR_SLOTS.items():
        if row[slot] is not None:
            row[slot] = _pseudonym(row[slot], name) if author == "hash" else None
        elif name in extra:
            pseudonym = _pseudonym(extra.pop(name), name)
            if author == "hash":
                extra[name] = pseudonym


def _pseudonym(value: object, name: str) -> str:
    """Of the clean value: whether the rest of the answer needs cleaning makes no difference."""
    for clean_leaf in (clean_text, clean_number):
        value = clean(value, f"meta.{name}", 3, {}, clean_leaf)
    return _digest(value.encode() if type(value) is str else to_json(value))


def _stats(stats: dict[str, Any], notes: Notes) -> tuple[list[Any], _Items, bytes]:
    row, extra = _read(stats, _STATS, notes)
    if not extra:
        return row, (), b""
    odd = {name: extra.pop(name) for name in _STATS.blank if name in extra}
    numbers: dict[str, dict[str, float]] = {}
    rest = _take_below(extra, "", numbers)
    items = []
    for category in sorted(numbers):
        of_category = numbers[category]
        for name in sorted(of_category):
            items.append((category, name, of_category[name]))
    return row, tuple(items), _extra(rest | odd, _STATS, notes)


def _take_below(node: dict[str, Any], prefix: str, numbers: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Put the numbers in the objects inside `node` into `numbers`, by category and name; return a copy of the rest.

    `{"a.b": {"c": 1}, "a": {"b": {"c": 2}}}` wants one item twice: the first has it in the order of the names, not
    in that of the answer, so that the same content always gives the same rows. The longest category ends the descent.
    """
    rest = dict(node)
    for name in sorted([name for name, value in node.items() if type(value) is dict and value]):
        category = prefix + name
        if len(category) <= KEY_MAX_CHARACTERS:
            left = _take_numbers(node[name], category, numbers)
            if left:
                left = _take_below(left, category + ".", numbers)
            if left:
                rest[name] = left
            else:
                del rest[name]
    return rest


def _take_numbers(node: dict[str, Any], category: str, numbers: dict[str, dict[str, float]]) -> dict[str, Any]:
    rest = {}
    taken = numbers.get(category, {})
    for name, value in node.items():
        if type(value) is int and -EXACT_INT <= value <= EXACT_INT:  # `exact_float` does this too, but not as fast
            number: float | None = float(value)
        else:
            number = exact_float(value)
        if number is None or name in taken or len(name) > NAME_MAX_CHARACTERS:
            rest[name] = value
        else:
            taken[name] = number
    if taken:
        numbers[category] = taken
    return rest
