"""From the API's answer about one scan to the rows that are stored. Pure: no clock, no network, no database.

Nothing is lost. A value goes to its column, product, language or item where its meaning is certain; everything else
stays, under its own name, in the `extra` of its level (scan, meta, stats). What came other than known is noted as
drift. Which fields are known is said in `fields`.

An answer is read as it came. Only where its rows turn out to hold text that no database takes (NUL, a lone
surrogate) is it cleaned as a whole and read again, so that cleaning costs the others nothing. Numbers that no
JSON column takes (NaN, integers beyond 64 bits) are cleaned where they are left over, in `extra`.
"""

from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, cast

from etl.errors import ItemError
from etl.model import INT64_MAX, Drift, Pair, ScanRows
from etl.transform.fields import (
    AUTHORS,
    IDENTITY,
    MAX_DRIFT,
    META,
    PARTS,
    SCAN,
    STATS,
    TITLES,
    TRIGGER_OF_YAML,
    Level,
    leftovers,
    note_unknown,
    take,
)
from etl.transform.privacy import KEEP, Privacy, title_of
from etl.transform.readers import DRIFT_CONFLICT, OddError, integer, to_json
from etl.transform.sanitize import BAD_TEXT, INT64_MIN, REPLACEMENT, Notes, clean, clean_number, clean_text, is_storable
from etl.transform.stats import take_items, take_languages

_PLAIN: Final = {str, bool, type(None)}  # what never needs a look at its value


class _BadTextError(Exception):
    """A text in the answer can't be stored as it came."""


def flatten(pair: Pair, document: object, fetched_at: datetime, privacy: Privacy = KEEP) -> ScanRows:
    """Turn the decoded answer about `pair` into rows. What `privacy` hides is in none of them, nor in their hash.

    Raises ItemError, and nothing else, for an answer that isn't an object (kind `not_an_object`), that is
    about another scan (`wrong_scan`), or that is nested too deep (`too_deep`).
    """
    if type(document) is not dict:
        raise ItemError(f"$: the answer is {_shown(document)}, not an object", kind="not_an_object")
    _check_id("id", "scan", document.get("id"), pair.scan_id)
    _check_id("deployment_id", "deployment", document.get("deployment_id"), pair.deployment_id)
    notes: Notes = {}
    try:
        rows = _rows(document, privacy, notes, cleaned=False)
    except (_BadTextError, UnicodeEncodeError):
        notes.clear()
        cleaned: Any = clean(document, "", 1, notes, clean_text)
        rows = _rows(cleaned, privacy, notes, cleaned=True)
    return ScanRows(pair=pair, fetched_at=fetched_at, drift=privacy.drift(notes)[:MAX_DRIFT], **rows)


def _check_id(name: str, noun: str, got: object, asked: int) -> None:
    if got is None or (type(got) is int and got == asked):
        return
    try:
        same = integer(got) == asked
    except OddError:
        same = False
    if not same:
        message = f"$.{name}: expected {noun} {asked}, got {_shown(got)}"
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


def _rows(document: dict[str, Any], privacy: Privacy, notes: Notes, *, cleaned: bool) -> dict[str, Any]:
    """What `ScanRows` has of the answer itself."""
    extra = dict(document)
    take(extra, IDENTITY, {})
    scan, parts = take(extra, SCAN, notes), take(extra, PARTS, notes)
    extra = privacy.left_of(extra, SCAN.prefix)
    products = parts["enabled_products"] or ()
    contents = [_close(scan, extra, document, SCAN, notes), to_json(products)]
    meta, content = _meta(parts["meta"] or {}, privacy, notes)
    contents.append(content)
    source = parts["stats"] or {}
    extra = dict(source)
    stats = take(extra, STATS, notes)
    extra = privacy.left_of(extra, STATS.prefix)
    languages, items = take_languages(extra, notes), take_items(extra)
    contents += [_close(stats, extra, source, STATS, notes), to_json((languages, items))]
    # JSON has no line breaks of its own, so different rows never give the same content.
    content = b"\n".join(contents)
    # A NUL is written so. To look for any backslash first is quicker by far.
    if not cleaned and b"\\" in content and b"\\u0000" in content:
        raise _BadTextError
    return {
        "final": scan["completed_at"] is not None,
        "content_hash": _digest(content),
        "scan": scan,
        "products": products,
        "meta": meta,
        "stats": stats,
        "languages": languages,
        "items": items,
    }


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _close(row: dict[str, Any], left: dict[str, Any], source: dict[str, Any], level: Level, notes: Notes) -> bytes:
    """Put what is left of a level into the row's `extra`, and return the level's part of the content: its values that
    aren't null, by their names in the API, whether they have a column or not. So a column that is new, and takes a
    value out of `extra`, changes no hash.
    """
    note_unknown(source, level, notes)
    content = {name: value for name, value in zip(level.names, row.values(), strict=True) if value is not None}
    for name in level.as_sent:
        if name in content:
            content[name] = clean(source[name], "", 2, {}, clean_number)
    row["extra"] = None
    if left and (extra := _storable(leftovers(left, level), level, notes)):
        row["extra"] = to_json(extra).decode()
        content |= extra
    return to_json(content)


def _storable(extra: dict[str, Any], level: Level, notes: Notes) -> dict[str, Any]:
    """Without numbers that no JSON column takes."""
    depth = 2 if level.prefix else 1
    if _PLAIN.issuperset(map(type, extra.values())) or is_storable(extra, depth):
        return extra
    return cast(dict[str, Any], clean(extra, level.prefix[:-1], depth, notes, clean_number))


def _meta(source: dict[str, Any], privacy: Privacy, notes: Notes) -> tuple[dict[str, Any], bytes]:
    """The row, and its part of the content."""
    extra = dict(source)
    row, trigger = take(extra, META, notes), take(extra, TRIGGER_OF_YAML, notes)["true"]
    if row["trigger_event"] is None:
        row["trigger_event"] = trigger
    elif trigger is not None and trigger != row["trigger_event"]:
        extra["true"] = source["true"]
        notes[Drift("meta.true", DRIFT_CONFLICT)] = None
    if privacy.hides:
        row |= {column: privacy.person(row[column]) for column in AUTHORS if row[column] is not None}
        row |= {column: title_of(row[column]) or None for column in TITLES if row[column] is not None}
    return row, _close(row, privacy.left_of(extra, META.prefix), source, META, notes)
