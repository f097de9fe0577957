"""Answers of the API for tests of what becomes of them as rows."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from hypothesis import strategies as st

from etl.model import Pair, ScanRows
from etl.transform.fields import META, SCAN, STATS, Level
from etl.transform.privacy import Privacy, key_from
from etl.transform.readers import text
from etl.transform.scan import flatten

PAIR = Pair(120, 123)
FETCHED_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BAD = "\ufffd"

# The example of the vendor's page "Get scan details".
DOCUMENTED = b"""
{
  "completed_at": "2023-11-18T23:28:12.391Z",
  "deployment_id": 120,
  "enabled_products": [
    "secrets"
  ],
  "exit_code": 123,
  "has_logs": true,
  "id": 123,
  "meta": {
    "true": "pull_request",
    "branch": "refs/heads/main",
    "commit": "94c5be1312a9da03b7c4bfcc1c50b4379c83412",
    "config": "r/python",
    "repo_url": "https://github.com/semgrep/semgrep",
    "ci_job_url": "https://github.com/semgrep/semgrep/actions/runs/12345",
    "repository": "semgrep/semgrep",
    "commit_title": {
      "fix(feature)": "Added XYZ component"
    },
    "pull_request_id": 12345,
    "pull_request_title": {
      "fix(feature)": "Added XYZ component"
    },
    "commit_author_name": "Sven Greppe",
    "commit_author_image_url": "https://github.com/link/to/avatar.png",
    "commit_author_email": "sven.greppe@semgrep.com",
    "commit_author_username": "SvenGreppe",
    "pull_request_author_username": "SvenGreppe",
    "pull_request_author_image_url": "https://github.com/link/to/avatar.png"
  },
  "repository_id": 1234567,
  "started_at": "2023-11-18T23:28:12.391Z",
  "stats": {
    "findings": 5,
    "total_time": 100
  }
}
"""

SCAN_FIELDS = tuple(field.name for field in SCAN.fields)
META_FIELDS = tuple(field.name for field in META.fields)
STATS_FIELDS = tuple(field.name for field in STATS.fields)


KEY = key_from("0123456789abcdef")
Author = Literal["keep", "hash", "drop"]
AUTHORS: tuple[Author, ...] = get_args(Author)


def flat(document: object, author: Author = "keep") -> ScanRows:
    return flatten(PAIR, document, FETCHED_AT, Privacy(author, KEY))


def by_name(row: dict[str, Any], level: Level) -> dict[str, Any]:
    """A row by the API's names, its extra decoded."""
    assert tuple(row) == (*level.columns, "extra")
    values = {field.name: row[field.column] for field in level.fields}
    return values | {"extra": unpacked(row["extra"])}


def scan_of(rows: ScanRows) -> dict[str, Any]:
    return by_name(rows.scan, SCAN)


def meta_of(rows: ScanRows) -> dict[str, Any]:
    return by_name(rows.meta, META)


def stats_of(rows: ScanRows) -> dict[str, Any]:
    return by_name(rows.stats, STATS)


def unpacked(extra: str | None) -> dict[str, Any]:
    """The extra of a level; `{}` where there is none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} isn't JSON")

    if extra is None:
        return {}
    value = json.loads(extra, parse_constant=refuse)
    assert isinstance(value, dict)
    assert value, "an empty extra is None"
    return value


def drift_of(rows: ScanRows) -> set[tuple[str, str]]:
    return {(drift.path, drift.kind) for drift in rows.drift}


def nested(depth: int, wrap: str = "{") -> Any:
    """A value of so many levels."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if wrap == "{" else [value]
    return value


# Values of another kind than documented.

ODD_TYPE = "odd_type"


# Properties.

LETTERS = "ab.01-:TZ \u00e9\0\ud800\udfff\ufffd\\u\U0001f600"
texts = st.text(st.sampled_from(LETTERS), max_size=6) | st.text(max_size=6)
names = texts | st.sampled_from([*SCAN_FIELDS, *META_FIELDS, *STATS_FIELDS, "true", "meta", "stats", "id"])


def replaced(text: str) -> str:
    return "".join(BAD if letter == "\0" or "\ud800" <= letter <= "\udfff" else letter for letter in text)


def storable(leaf: Any) -> Any:
    """What a leaf is in JSON that every database takes."""
    if isinstance(leaf, str):
        return replaced(leaf)
    if isinstance(leaf, float) and not math.isfinite(leaf):
        return "NaN" if math.isnan(leaf) else "Infinity" if leaf > 0 else "-Infinity"
    if isinstance(leaf, float) and abs(leaf) > 2**53:
        return repr(leaf)
    if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
        return str(leaf)
    return leaf


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every scalar and every empty container, with the way there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        yield path, value
    for step, member in inner:
        yield from leaves(member, (*path, step))


def is_within(extra: Any, path: tuple[str | int, ...], leaf: Any) -> bool:
    """Whether the leaf is in `extra` by the same path; a name may have got replacement characters at its end."""
    if not path:
        wanted = storable(leaf)
        return type(extra) is type(wanted) and bool(extra == wanted)
    step = path[0]
    if isinstance(step, int):
        return isinstance(extra, list) and step < len(extra) and is_within(extra[step], path[1:], leaf)
    good = replaced(step)
    return isinstance(extra, dict) and any(
        name.startswith(good) and not name[len(good) :].strip(BAD) and is_within(member, path[1:], leaf)
        for name, member in extra.items()
    )


def says(column: Any, leaf: Any) -> bool:
    """Whether the value of a column is the leaf, in the column's type."""
    if leaf is None or column is None:
        return leaf is None
    if isinstance(column, datetime):
        instant = datetime.fromisoformat(leaf)
        return column == (instant if instant.tzinfo else instant.replace(tzinfo=UTC))
    if isinstance(column, str):
        return column == storable(leaf) or (not isinstance(leaf, str) and bool(json.loads(column) == leaf))
    if isinstance(column, bool):
        return leaf is column or leaf == str(column).lower()
    if isinstance(column, dict):
        return not leaf
    return not isinstance(leaf, bool) and bool(column == (float_or_int(leaf) if isinstance(leaf, str) else leaf))


def float_or_int(text: str) -> float | int:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def is_item(rows: ScanRows, path: tuple[str | int, ...], leaf: Any) -> bool:
    """Whether one of the items is this leaf of stats."""
    if len(path) < 2 or isinstance(leaf, bool) or not isinstance(leaf, int | float | str):
        return False
    steps = [replaced(str(step)) for step in path]
    return any(
        category.replace(BAD, "") == ".".join(steps[:-1]).replace(BAD, "")
        and name.startswith(steps[-1])
        and not name[len(steps[-1]) :].strip(BAD)
        and says(value, leaf)
        for category, name, value in rows.items
    )


def is_kept(rows: ScanRows, path: tuple[str | int, ...], leaf: Any) -> bool:
    field, inside = str(path[0]), path[1:]
    scan = scan_of(rows)
    if field in ("id", "deployment_id") or is_within(scan["extra"], path, leaf):
        return True
    if field == "enabled_products":
        return not leaf or (len(inside) == 1 and replaced(leaf) in rows.products)
    if field in ("meta", "stats") and inside:
        return (is_kept_of_meta if field == "meta" else is_kept_of_stats)(rows, str(inside[0]), inside, leaf)
    return field in (*SCAN_FIELDS, "meta", "stats") and not inside and says(scan.get(field, {}), leaf)


def is_kept_of_meta(rows: ScanRows, field: str, path: tuple[str | int, ...], leaf: Any) -> bool:
    meta = meta_of(rows)
    column = "on" if field == "true" else field
    if is_within(meta["extra"], path, leaf):
        return True
    if column.endswith("_title") and len(path) == 2:
        return bool(meta.get(column) == f"{replaced(str(path[1]))}: {storable(leaf)}")
    return column in META_FIELDS and len(path) == 1 and says(meta[column], leaf)


def is_language(rows: ScanRows, path: tuple[str | int, ...], leaf: Any) -> bool:
    """Whether a leaf of stats is in the row of a language."""
    if len(path) != 3 or path[0] != "parse_rate":
        return False
    return any(row["language"] == path[1] and says(row.get(str(path[2])), leaf) for row in rows.languages)


def is_kept_of_stats(rows: ScanRows, field: str, path: tuple[str | int, ...], leaf: Any) -> bool:
    if leaf is None and (field in STATS.known or field == "parse_rate"):
        return True
    stats = stats_of(rows)
    if is_language(rows, path, leaf):
        return True
    is_column = field in STATS_FIELDS and len(path) == 1 and says(stats[field], leaf)
    return is_column or is_within(stats["extra"], path, leaf) or is_item(rows, path, leaf)


def check_kept(document: dict[str, Any], rows: ScanRows) -> None:
    """Fail unless every leaf is found again in a column, an item, a product or an extra."""
    for path, leaf in leaves(document):
        assert not path or is_kept(rows, path, leaf), (path, leaf)


TEXT_FIELDS = [field.name for field in META.fields if field.read is text]
