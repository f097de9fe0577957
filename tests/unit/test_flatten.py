"""Flattening: recorded answers to exact rows, odd answers without loss, anything without a traceback."""

import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Literal, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl.database import schema
from etl.errors import ItemError
from etl.model import Drift, Listing, Pair, ScanRows, StatItem
from etl.transform.fields import LANGUAGE, LISTED_FINDINGS, LISTING, MAX_DRIFT, META, SCAN, STATS, Level
from etl.transform.privacy import Privacy, key_from
from etl.transform.readers import KEY_MAX_CHARACTERS, text
from etl.transform.sanitize import MAX_DEPTH, decode
from etl.transform.scan import flatten
from etl.transform.stats import NAME_MAX_CHARACTERS

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

# The vendor's example of a scan in its webhook documentation.
WEBHOOK = b"""
{
    "deployment_id": 1,
    "enabled_products": [
        "sast",
        "sca",
        "secrets"
    ],
    "exit_code": null,
    "hashed_id": "Y4QdEwR2qPgK",
    "id": 27714135,
    "meta": {
        "app_block_override": null,
        "branch": "refs/pull/7/merge",
        "ci_job_url": "https://github.com/owasp/juice-shop/actions/runs/9999999",
        "commit": "4166d6fd19ce97e65cf3278ce85afe4f444a7842",
        "commit_author_image_url": "https://avatars.example.com/u/1",
        "commit_author_email": "user@example.com",
        "commit_author_name": "Semgrep User",
        "commit_author_username": "semgrepuser",
        "commit_timestamp": "2024-06-11T21:25:13",
        "commit_title": "random code changes",
        "is_code_scan": 0,
        "is_full_scan": 0,
        "is_sca_scan": 0,
        "is_secrets_scan": 0,
        "on": "pull_request",
        "org_id": "1000001",
        "pull_request_author_username": "semgrepuser",
        "pull_request_author_image_url": "https://avatars.example.com/u/1",
        "pull_request_id": "7",
        "pull_request_title": "random code changes",
        "renamed_paths": [],
        "repo_display_name": "owasp/juice-shop",
        "repo_id": "600593544",
        "repo_url": "https://github.com/owasp/juice-shop",
        "repository": "owasp/juice-shop",
        "scan_environment": "github-actions",
        "semgrep_version": "1.75.0",
        "version": "v1"
    },
    "repository_id": 158684,
    "started_at": "2024-06-11T21:26:22.844158+00:00",
    "completed_at": null,
    "stats": null,
    "tenant_name": "default"
}
"""

SCAN_FIELDS = tuple(field.name for field in SCAN.fields)
META_FIELDS = tuple(field.name for field in META.fields)
STATS_FIELDS = tuple(field.name for field in STATS.fields)
AUTHOR_FIELDS = [name for name in META_FIELDS if "_author_" in name]
TEXT_FIELDS = [field.name for field in META.fields if field.read is text]


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


def refusal(document: object) -> tuple[str, str]:
    with pytest.raises(ItemError) as caught:
        flat(document)
    return caught.value.kind, str(caught.value)


def nested(depth: int, wrap: str = "{") -> Any:
    """A value of so many levels."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if wrap == "{" else [value]
    return value


def test_the_documented_example_becomes_exact_rows() -> None:
    """The vendor's own example fills every column, and nothing of it is odd."""
    rows = flat(decode(DOCUMENTED))

    at = datetime(2023, 11, 18, 23, 28, 12, 391_000, tzinfo=UTC)
    assert rows == ScanRows(
        pair=PAIR,
        fetched_at=FETCHED_AT,
        final=True,
        content_hash=rows.content_hash,
        scan={
            "repository_id": 1234567,
            "started_at": at,
            "completed_at": at,
            "exit_code": 123,
            "has_logs": True,
            "extra": None,
        },
        products=("secrets",),
        meta=dict.fromkeys((*META.columns, "extra"))
        | {
            "trigger_event": "pull_request",
            "branch": "refs/heads/main",
            "commit_sha": "94c5be1312a9da03b7c4bfcc1c50b4379c83412",
            "config": "r/python",
            "repo_url": "https://github.com/semgrep/semgrep",
            "ci_job_url": "https://github.com/semgrep/semgrep/actions/runs/12345",
            "repository": "semgrep/semgrep",
            "commit_title": "fix(feature): Added XYZ component",
            "pull_request_id": "12345",
            "pull_request_title": "fix(feature): Added XYZ component",
            "commit_author_name": "Sven Greppe",
            "commit_author_email": "sven.greppe@semgrep.com",
            "commit_author_username": "SvenGreppe",
            "commit_author_image_url": "https://github.com/link/to/avatar.png",
            "pull_request_author_username": "SvenGreppe",
            "pull_request_author_image_url": "https://github.com/link/to/avatar.png",
        },
        stats={"findings": 5, "total_time_seconds": 100.0, "engine_requested": None, "extra": None},
        languages=(),
        items=(),
        drift=(),
    )
    assert len(bytes.fromhex(rows.content_hash)) == 16
    assert type(rows.stats["total_time_seconds"]) is float


def test_the_vendors_own_example_of_a_scan_is_known() -> None:
    """The example of the webhook documentation: each field has its column or is known, and nothing of it is drift."""
    rows = flatten(Pair(1, 27714135), decode(WEBHOOK), FETCHED_AT)

    assert rows.drift == ()
    assert (rows.final, rows.products, rows.languages, rows.items) == (False, ("sast", "sca", "secrets"), (), ())
    assert scan_of(rows) == dict.fromkeys(SCAN_FIELDS) | {
        "repository_id": 158684,
        "started_at": datetime(2024, 6, 11, 21, 26, 22, 844_158, tzinfo=UTC),
        "extra": {"hashed_id": "Y4QdEwR2qPgK", "tenant_name": "default"},
    }
    assert meta_of(rows) == dict.fromkeys(META_FIELDS) | {
        "on": "pull_request",
        "branch": "refs/pull/7/merge",
        "ci_job_url": "https://github.com/owasp/juice-shop/actions/runs/9999999",
        "commit": "4166d6fd19ce97e65cf3278ce85afe4f444a7842",
        "commit_author_image_url": "https://avatars.example.com/u/1",
        "commit_author_email": "user@example.com",
        "commit_author_name": "Semgrep User",
        "commit_author_username": "semgrepuser",
        "commit_timestamp": "2024-06-11T21:25:13",
        "commit_title": "random code changes",
        "is_full_scan": False,
        "pull_request_author_username": "semgrepuser",
        "pull_request_author_image_url": "https://avatars.example.com/u/1",
        "pull_request_id": "7",
        "pull_request_title": "random code changes",
        "repo_display_name": "owasp/juice-shop",
        "repo_url": "https://github.com/owasp/juice-shop",
        "repository": "owasp/juice-shop",
        "scan_environment": "github-actions",
        "semgrep_version": "1.75.0",
        "extra": {
            "is_code_scan": 0,
            "is_sca_scan": 0,
            "is_secrets_scan": 0,
            "org_id": "1000001",
            "renamed_paths": [],
            "repo_id": "600593544",
            "version": "v1",
        },
    }


@pytest.mark.parametrize(
    ("value", "column"), [(0, False), (1, True), (False, False), (True, True), ("true", True), ("false", False)]
)
def test_a_full_scan_is_a_truth_value_or_0_or_1(value: object, column: bool) -> None:
    """The server's example writes 0 where the scanner sends false."""
    rows = flat({"meta": {"is_full_scan": value}})

    assert (rows.meta["is_full_scan"], type(rows.meta["is_full_scan"]), rows.drift) == (column, bool, ())


@pytest.mark.parametrize("value", [2, -1, 0.0, "1", "yes", []])
def test_other_values_say_nothing_of_a_full_scan(value: object) -> None:
    """What is no truth value is kept as it came, and noted."""
    rows = flat({"meta": {"is_full_scan": value}})

    assert (rows.meta["is_full_scan"], meta_of(rows)["extra"]) == (None, {"is_full_scan": value})
    assert drift_of(rows) == {("meta.is_full_scan", "odd_type")}


def test_known_fields_without_a_column_are_kept_and_are_no_drift() -> None:
    """They stay in extra, but for nulls, which say nothing."""
    for level, wrap in ((SCAN, None), (META, "meta"), (STATS, "stats")):
        kept = level.known - {field.name for field in level.fields} - {"id", "deployment_id", "true", "meta", "stats"}
        kept -= {"enabled_products", "parse_rate"}
        document: dict[str, Any] = dict.fromkeys(sorted(kept), "x")
        rows = flat({wrap: document} if wrap else document)
        nulls = flat({wrap: dict.fromkeys(kept)} if wrap else dict.fromkeys(kept))

        assert unpacked(getattr(rows, wrap or "scan")["extra"]) == document
        assert (rows.drift, nulls) == ((), flat({}))


def test_each_field_has_its_column() -> None:
    """The lists of fields and the tables name the same columns, and the same limits."""
    key = {"deployment_id", "scan_id"}
    bookkeeping = {"content_hash", "first_fetched_at", "fetched_at", "changed_at", "run_id"}
    of_listing = {"listed_at", "details_gone_at", "expired_at", "dropped_at"}

    def columns(table: Any, *others: str) -> set[str]:
        return {column.name for column in table.c} - key - set(others)

    assert columns(schema.scans, *bookkeeping) == {*SCAN.columns, "extra"}
    assert columns(schema.scan_meta) == {*META.columns, "extra"}
    assert columns(schema.scan_stats) == {*STATS.columns, "extra"}
    assert columns(schema.scan_languages) == {"language", *LANGUAGE.columns}
    assert columns(schema.scan_stat_items) == set(StatItem._fields)
    assert columns(schema.scan_listings, *of_listing) == {*LISTING.columns, *LISTED_FINDINGS.columns, "extra"}
    assert {"pair", *columns(schema.scan_listings, *of_listing)} == set(Listing._fields)
    assert schema.KEY_TEXT_LENGTH == KEY_MAX_CHARACTERS
    assert schema.NAME_TEXT_LENGTH == NAME_MAX_CHARACTERS


# What is known of the API.


@pytest.mark.parametrize(
    ("meta", "trigger", "extra", "drift"),
    [
        ({"on": "push"}, "push", {}, set()),
        ({"true": "push"}, "push", {}, set()),
        ({"on": "push", "true": "push"}, "push", {}, set()),
        ({"true": "push", "on": None}, "push", {}, set()),
        ({"on": "push", "true": None}, "push", {}, set()),
        ({"true": "schedule", "on": "push"}, "push", {"true": "schedule"}, {("meta.true", "conflict")}),
        ({"on": "push", "true": [1]}, "push", {"true": [1]}, {("meta.true", "odd_type")}),
        ({"on": [1], "true": "push"}, "push", {"on": [1]}, {("meta.on", "odd_type")}),
        ({"on": True, "true": "x"}, "true", {"true": "x"}, {("meta.true", "conflict")}),
    ],
)
def test_the_trigger_is_read_by_both_its_names(
    meta: dict[str, Any], trigger: str, extra: dict[str, Any], drift: set[tuple[str, str]]
) -> None:
    """What triggered the scan is `on`, and `true` where YAML has eaten that word; a contradiction is kept."""
    rows = flat({"meta": meta})

    assert (meta_of(rows)["on"], meta_of(rows)["extra"], drift_of(rows)) == (trigger, extra, drift)


@pytest.mark.parametrize("field", ["commit_title", "pull_request_title"])
@pytest.mark.parametrize(
    ("title", "column"),
    [
        ("fix: it", "fix: it"),
        ({"fix": "it"}, "fix: it"),
        ({"Release": 7}, "Release: 7"),
        ({"Release": 2**70}, f"Release: {2**70}"),
        (7, "7"),
        (None, None),
    ],
)
def test_a_title_may_be_a_map_of_one_key(field: str, title: object, column: str | None) -> None:
    """A title that YAML has turned into a map reads as it was written."""
    rows = flat({"meta": {field: title}})

    assert (meta_of(rows)[field], meta_of(rows)["extra"]) == (column, {})


@pytest.mark.parametrize("title", [{}, {"a": "b", "c": "d"}, {"a": ["b"]}, {"a": True}, {"a": None}, ["a"]])
def test_other_maps_are_no_titles(title: object) -> None:
    """A title of any other form is kept as it came."""
    rows = flat({"meta": {"commit_title": title}})

    assert (meta_of(rows)["commit_title"], meta_of(rows)["extra"]) == (None, {"commit_title": title})
    assert drift_of(rows) == {("meta.commit_title", "odd_type")}


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), ("5", 5), (5.0, 5), (-1, -1), ("-1", -1), (0, 0), (2**63 - 1, 2**63 - 1), (str(-(2**63)), -(2**63))],
)
@pytest.mark.parametrize("field", ["repository_id", "exit_code", "stats.findings"])
def test_integers_come_as_numbers_and_as_texts(field: str, value: object, number: int) -> None:
    """64-bit integers are read in every form that JSON writers give them, negative ones too."""
    rows = flat({"stats": {"findings": value}} if "." in field else {field: value})
    found = stats_of(rows)["findings"] if "." in field else scan_of(rows)[field]

    assert (found, type(found), rows.drift) == (number, int, ())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12345"),
        ("12345", "12345"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (2**70, str(2**70)),
        ("", ""),
    ],
)
def test_numbers_and_truth_values_become_texts(value: object, text: str) -> None:
    """`pull_request_id` is documented as a text with a number for an example."""
    rows = flat({"meta": {"pull_request_id": value, "branch": value}})

    assert (meta_of(rows)["pull_request_id"], meta_of(rows)["branch"]) == (text, text)
    assert meta_of(rows)["extra"] == {}


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2023-11-18T23:28:12.391Z", datetime(2023, 11, 18, 23, 28, 12, 391_000, tzinfo=UTC)),
        ("2023-11-18 23:28:12.391807+00:00", datetime(2023, 11, 18, 23, 28, 12, 391_807, tzinfo=UTC)),
        ("2023-11-18 23:28:12.391807+00", datetime(2023, 11, 18, 23, 28, 12, 391_807, tzinfo=UTC)),
        ("2023-11-19T01:28:12+02:00", datetime(2023, 11, 18, 23, 28, 12, tzinfo=UTC)),
        ("2023-11-18T17:58:12.5-0530", datetime(2023, 11, 18, 23, 28, 12, 500_000, tzinfo=UTC)),
        ("2023-11-18T23:28:12.999999999Z", datetime(2023, 11, 18, 23, 28, 12, 999_999, tzinfo=UTC)),
        ("2023-11-18T23:28Z", datetime(2023, 11, 18, 23, 28, tzinfo=UTC)),
        ("1999-12-31T23:00:00-01:00", datetime(2000, 1, 1, tzinfo=UTC)),
        ("2100-01-01T00:00:00+00:01", datetime(2099, 12, 31, 23, 59, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("field", ["started_at", "completed_at"])
def test_instants_are_stored_in_utc(field: str, text: str, instant: datetime) -> None:
    """Both forms of timestamp are read, at any offset, to the microsecond; what is finer is cut off."""
    rows = flat({field: text})
    found = scan_of(rows)[field]

    assert (found, found.utcoffset(), rows.drift) == (instant, timedelta(0), ())
    assert rows.final is (field == "completed_at")


def test_an_instant_without_an_offset_is_utc() -> None:
    """A naive timestamp is read as UTC, and told as drift."""
    rows = flat({"started_at": "2023-11-18T23:28:12.391"})

    assert scan_of(rows)["started_at"] == datetime(2023, 11, 18, 23, 28, 12, 391_000, tzinfo=UTC)
    assert drift_of(rows) == {("started_at", "naive_time")}
    assert scan_of(rows)["extra"] == {}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("0001-01-01T00:00:00+05:00", "out_of_range"),
        ("9999-12-31T23:59:59-05:00", "out_of_range"),
        ("0001-01-01T00:00:00Z", "out_of_range"),
        ("1999-12-31T23:59:59.999999Z", "out_of_range"),
        ("2000-01-01T00:00:00+00:01", "out_of_range"),
        ("2100-01-01T00:00:00", "out_of_range"),
        ("2300-01-01 00:00:00+00:00", "out_of_range"),
        ("0000-01-01T00:00:00Z", "bad_time"),
        ("2023-13-01T00:00:00Z", "bad_time"),
        ("2023-11-18T23:59:60Z", "bad_time"),
        ("2023-11-18T23:28:12xZ", "bad_time"),
        ("2023-11-18T23:28:12 Z", "bad_time"),
        ("2023-11-18T23:28:12.5+24:00", "bad_time"),
        ("2023-11-18", "bad_time"),
        ("yesterday", "bad_time"),
        ("", "bad_time"),
        (1700350092, "odd_type"),
        (True, "odd_type"),
        (["2023-11-18T23:28:12Z"], "odd_type"),
    ],
)
def test_what_is_no_instant_is_kept(value: object, kind: str) -> None:
    """A timestamp that can't be read or be true leaves its column empty, the scan unfinished, and its text in extra."""
    rows = flat({"completed_at": value})

    assert (scan_of(rows)["completed_at"], scan_of(rows)["extra"]) == (None, {"completed_at": value})
    assert drift_of(rows) == {("completed_at", kind)}
    assert not rows.final


def test_maps_of_numbers_in_stats_become_items() -> None:
    """The scanner's own statistics are items, at any depth; what is no number stays at its place."""
    rows = flat(
        {
            "stats": {
                "findings": 4,
                "total_time": 17.32,
                "errors": ["timeout"],
                "engine_requested": "PRO_LANG",
                "unsupported_exts": {".xyz": 2},
                "lockfile_scan_info": {"a/package-lock.json": 7},
                "findings_by_product": {"sast": 3, "sca": 1},
                "supply_chain_stats": {"resolution": {"kind": "dynamic", "seconds": 2}, "empty": {}},
            }
        }
    )

    assert stats_of(rows) | {"extra": {}} == {
        "findings": 4,
        "total_time": 17.32,
        "engine_requested": "PRO_LANG",
        "extra": {},
    }
    assert rows.items == (
        ("findings_by_product", "sast", 3.0),
        ("findings_by_product", "sca", 1.0),
        ("lockfile_scan_info", "a/package-lock.json", 7.0),
        ("supply_chain_stats.resolution", "seconds", 2.0),
        ("unsupported_exts", ".xyz", 2.0),
    )
    assert all(type(value) is float for _, _, value in rows.items)
    assert stats_of(rows)["extra"] == {
        "errors": ["timeout"],
        "supply_chain_stats": {"resolution": {"kind": "dynamic"}, "empty": {}},
    }
    assert drift_of(rows) == set()


def test_each_language_has_its_row() -> None:
    """How much of a language was parsed is a row; what is new there is an item, what is odd stays in extra."""
    rows = flat(
        {
            "stats": {
                "parse_rate": {
                    "python": {"targets_parsed": 5, "num_targets": "6", "bytes_parsed": 10.0, "num_bytes": None},
                    "go": {"num_bytes": 0.5, "num_targets": 1, "seconds": 3},
                    "java": {"novel": 1},
                    "c" * 129: {"num_targets": 1},
                    "empty": {},
                    "odd": [1],
                }
            }
        }
    )

    none = dict.fromkeys(LANGUAGE.columns)
    assert rows.languages == (
        {"language": "go", **none, "num_targets": 1},
        {"language": "python", "targets_parsed": 5, "num_targets": 6, "bytes_parsed": 10, "num_bytes": None},
    )
    assert rows.items == (
        ("parse_rate.go", "num_bytes", 0.5),
        ("parse_rate.go", "seconds", 3.0),
        ("parse_rate.java", "novel", 1.0),
    )
    assert stats_of(rows)["extra"] == {"parse_rate": {"c" * 129: {"num_targets": 1}, "empty": {}, "odd": [1]}}
    assert drift_of(rows) == {("stats.parse_rate[].num_bytes", "odd_type")}


@pytest.mark.parametrize("value", [[], "x", 3, True])
def test_parse_rates_of_another_form_are_kept(value: object) -> None:
    """What is no map of languages stays in extra, and is noted."""
    rows = flat({"stats": {"parse_rate": value}})

    assert (rows.languages, stats_of(rows)["extra"]) == ((), {"parse_rate": value})
    assert drift_of(rows) == {("stats.parse_rate", "odd_type")}


def test_the_supply_chain_is_counted() -> None:
    """Resolved and unresolved subprojects, and dependencies by ecosystem, are items; the list itself stays in extra."""
    subprojects = [
        {"resolved_stats": {"ecosystem": "npm", "dependency_count": 7, "resolution_method": "LockfileParsing"}},
        {"resolved_stats": {"ecosystem": "npm", "dependency_count": "5", "resolution_method": "DynamicResolution"}},
        {"resolved_stats": {"ecosystem": "pypi", "dependency_count": 0, "resolution_method": "LockfileParsing"}},
        {"resolved_stats": {"ecosystem": ["odd"], "dependency_count": 3}},
        {"resolved_stats": {"ecosystem": "gomod", "dependency_count": None}},
        {"unresolved_reason": "failed", "resolved_stats": None},
        {"unresolved_reason": "failed"},
        {"unresolved_reason": "skipped"},
        {"unresolved_reason": ["odd"]},
        {},
        "odd",
    ]
    rows = flat({"stats": {"supply_chain_stats": {"subprojects_stats": subprojects}}})

    assert rows.items == (
        ("supply_chain_stats.dependencies", "npm", 12.0),
        ("supply_chain_stats.dependencies", "pypi", 0.0),
        ("supply_chain_stats.subprojects", "resolved", 5.0),
        ("supply_chain_stats.unresolved", "failed", 2.0),
        ("supply_chain_stats.unresolved", "skipped", 1.0),
    )
    assert stats_of(rows)["extra"] == {"supply_chain_stats": {"subprojects_stats": subprojects}}
    assert rows.drift == ()


@pytest.mark.parametrize("value", [[], {"subprojects_stats": None}, {"subprojects_stats": {}}, "x"])
def test_another_supply_chain_is_kept(value: object) -> None:
    """Nothing is counted where there is no list of subprojects."""
    rows = flat({"stats": {"supply_chain_stats": value}})

    assert (rows.items, stats_of(rows)["extra"]) == ((), {"supply_chain_stats": value})


def test_unknown_fields_stay_in_the_extra_of_their_level() -> None:
    """The scanner's newer fields are kept by name, and each is told once, by the path of its first level."""
    rows = flat(
        {
            "shiny_new": {"deep": [1, None, {"x": True}]},
            "meta": {"mood": "good", "is_new": True, "nothing": None},
            "stats": {"novelty": 3, "map": {"n": 1}},
        }
    )

    assert scan_of(rows)["extra"] == {"shiny_new": {"deep": [1, None, {"x": True}]}}
    assert meta_of(rows)["extra"] == {"mood": "good", "is_new": True, "nothing": None}
    assert stats_of(rows)["extra"] == {"novelty": 3}
    assert rows.items == (("map", "n", 1.0),)
    assert drift_of(rows) == {
        (path, "unknown_field")
        for path in ("shiny_new", "meta.mood", "meta.is_new", "meta.nothing", "stats.novelty", "stats.map")
    }


def test_fields_that_are_named_like_columns_are_unknown_all_the_same() -> None:
    """Only the API's own names fill columns: a field named like one of ours has its place in extra."""
    rows = flat({"extra": 1, "meta.on": 2, "meta": {"trigger_event": "x", "commit_sha": "y", "extra": {}}})

    assert scan_of(rows)["extra"] == {"extra": 1, "meta.on": 2}
    assert meta_of(rows) == dict.fromkeys(META_FIELDS) | {
        "extra": {"trigger_event": "x", "commit_sha": "y", "extra": {}}
    }


@pytest.mark.parametrize("empty", [{}, {"meta": None, "stats": None}, {"meta": {}, "stats": {}}])
@pytest.mark.parametrize("ids", [{}, {"id": None, "deployment_id": None}, {"id": "123", "deployment_id": 120.0}])
def test_nothing_in_an_answer_is_required(empty: dict[str, Any], ids: dict[str, Any]) -> None:
    """Absent, null and empty are the same: rows without values, of a scan that hasn't finished."""
    rows = flat(empty | ids)

    assert {*rows.scan.values(), *rows.meta.values(), *rows.stats.values()} == {None}
    assert (rows.products, rows.languages, rows.items) == ((), (), ())
    assert (rows.final, rows.drift) == (False, ())


def test_every_documented_field_may_be_null() -> None:
    """Null in a documented field is as good as leaving it out, to the hash as well."""
    nulls = {
        **dict.fromkeys(SCAN_FIELDS),
        "enabled_products": None,
        "meta": dict.fromkeys((*META_FIELDS, "true")),
        "stats": dict.fromkeys(STATS_FIELDS),
    }

    assert flat(nulls) == flat({})


# Answers that are refused.


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "$: the answer is a list, not an object"),
        (None, "$: the answer is null, not an object"),
        ("scan", "$: the answer is 'scan', not an object"),
        (7, "$: the answer is 7, not an object"),
        (2**64, "$: the answer is an integer beyond 64 bits, not an object"),
        (True, "$: the answer is true, not an object"),
        (math.nan, "$: the answer is nan, not an object"),
    ],
)
def test_an_answer_that_is_no_object_is_refused(document: object, message: str) -> None:
    """Any other JSON value is an error of this pair, and named."""
    assert refusal(document) == ("not_an_object", message)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"id": 7}, "$.id: the answer is about scan 7, asked was 123"),
        ({"id": "7"}, "$.id: the answer is about scan '7', asked was 123"),
        ({"id": 123.5}, "$.id: the answer is about scan 123.5, asked was 123"),
        ({"id": True}, "$.id: the answer is about scan true, asked was 123"),
        ({"id": [123]}, "$.id: the answer is about scan a list, asked was 123"),
        ({"id": {"id": 123}}, "$.id: the answer is about scan an object, asked was 123"),
        ({"id": 2**64 + 123}, "$.id: the answer is about scan an integer beyond 64 bits, asked was 123"),
        ({"id": "x\0\ud800" + "y" * 99}, f"$.id: the answer is about scan 'x{BAD}{BAD}{'y' * 37}', asked was 123"),
        ({"id": 123, "deployment_id": 9}, "$.deployment_id: the answer is about deployment 9, asked was 120"),
    ],
)
def test_an_answer_about_another_scan_is_refused(ids: dict[str, Any], message: str) -> None:
    """Rows never get the key of a scan that they aren't about."""
    assert refusal(ids) == ("wrong_scan", message)


def test_one_is_not_true() -> None:
    """A truth value is no id, although Python says that `True == 1`."""
    with pytest.raises(ItemError, match="about scan true, asked was 1"):
        flatten(Pair(1, 1), {"id": True}, FETCHED_AT)


@pytest.mark.parametrize("wrap", ["{", "["])
@pytest.mark.parametrize(
    ("path", "taken"),
    [(("x",), 1), (("meta", "x"), 2), (("stats", "x"), 2), (("exit_code",), 1), (("meta", "commit_author_name"), 2)],
)
def test_the_depth_of_an_answer_is_limited(wrap: str, path: tuple[str, ...], taken: int) -> None:
    """200 levels are kept wherever they are; one more is an error of this pair that says where."""

    def document(levels: int) -> Any:
        value = nested(levels - taken, wrap)
        for name in reversed(path):
            value = {name: value}
        return value

    kept = flat(document(MAX_DEPTH))
    kind, message = refusal(document(MAX_DEPTH + 1))

    assert list(leaves(document(MAX_DEPTH)))
    check_kept(document(MAX_DEPTH), kept)
    assert kind == "too_deep"
    assert message.startswith(f"$.{'.'.join(path)}")
    assert message.endswith(": the answer is nested more than 200 levels deep")
    assert len(message) < 300


def test_depth_is_limited_whatever_becomes_of_authors() -> None:
    """A value that would be dropped may not be deeper than one that is kept."""
    document = {"meta": {"commit_author_name": nested(MAX_DEPTH)}}

    for author in ("hash", "drop"):
        with pytest.raises(ItemError, match=r"^\$\.meta\.commit_author_name\.a.*nested more than 200 levels"):
            flat(document, author=author)


# Values of another kind than documented.

ODD_TYPE = "odd_type"
OUT_OF_RANGE = "out_of_range"


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("repository_id", True, ODD_TYPE),
        ("repository_id", 1.5, ODD_TYPE),
        ("repository_id", "007", ODD_TYPE),
        ("repository_id", " 7", ODD_TYPE),
        ("repository_id", "1_000", ODD_TYPE),
        ("repository_id", "\u0667", ODD_TYPE),
        ("repository_id", "", ODD_TYPE),
        ("repository_id", [7], ODD_TYPE),
        ("repository_id", str(2**63), OUT_OF_RANGE),
        ("exit_code", {"code": 1}, ODD_TYPE),
        ("exit_code", -0.5, ODD_TYPE),
        ("has_logs", 1, ODD_TYPE),
        ("has_logs", "True", ODD_TYPE),
        ("has_logs", ["true"], ODD_TYPE),
        ("enabled_products", "sast", ODD_TYPE),
        ("enabled_products", {"sast": True}, ODD_TYPE),
        ("enabled_products", ["sast", 1], ODD_TYPE),
        ("enabled_products", ["sast", None], ODD_TYPE),
        ("enabled_products", ["sast", "x" * 129], OUT_OF_RANGE),
        ("meta", [], ODD_TYPE),
        ("meta", "x", ODD_TYPE),
        ("meta", 0, ODD_TYPE),
        ("stats", [{"findings": 1}], ODD_TYPE),
        ("stats", False, ODD_TYPE),
    ],
)
def test_an_odd_value_of_the_scan_goes_to_its_extra(field: str, value: object, kind: str) -> None:
    """What a column can't hold is kept whole, under its own name, and told."""
    rows = flat({field: value})

    assert scan_of(rows) == dict.fromkeys(SCAN_FIELDS) | {"extra": {field: value}}
    assert (rows.products, rows.items) == ((), ())
    assert {*rows.meta.values(), *rows.stats.values()} == {None}
    assert drift_of(rows) == {(field, kind)}


@pytest.mark.parametrize("field", TEXT_FIELDS)
@pytest.mark.parametrize("value", [{}, {"a": "b"}, [], ["a"]])
def test_an_odd_value_of_meta_goes_to_its_extra(field: str, value: object) -> None:
    """Neither lists nor maps are texts."""
    rows = flat({"meta": {field: value}})

    assert meta_of(rows) == dict.fromkeys(META_FIELDS) | {"extra": {field: value}}
    assert drift_of(rows) == {(f"meta.{field}", ODD_TYPE)}


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("findings", {"code": 1}, ODD_TYPE),
        ("findings", "many", ODD_TYPE),
        ("total_time", {"seconds": 1}, ODD_TYPE),
        ("total_time", True, ODD_TYPE),
        ("total_time", "1:30", ODD_TYPE),
        ("total_time", "nan", ODD_TYPE),
        ("total_time", "1_0.5", ODD_TYPE),
        ("total_time", "1e999", OUT_OF_RANGE),
        ("total_time", 2**53 + 1, OUT_OF_RANGE),
        ("total_time", str(2**53 + 1), OUT_OF_RANGE),
    ],
)
def test_an_odd_value_of_stats_goes_to_its_extra(field: str, value: object, kind: str) -> None:
    """Neither of the two documented statistics is guessed from another form, nor rounded."""
    rows = flat({"stats": {field: value}})

    assert stats_of(rows) == dict.fromkeys(STATS_FIELDS) | {"extra": {field: value}}
    assert rows.items == ()
    assert drift_of(rows) == {(f"stats.{field}", kind)}


@pytest.mark.parametrize(
    ("value", "seconds"), [(100, 100.0), (17.32, 17.32), ("17.32", 17.32), ("100", 100.0), ("-1.5e1", -15.0), (0, 0.0)]
)
def test_seconds_are_read_from_numbers_and_their_texts(value: object, seconds: float) -> None:
    """`total_time` is a float in whatever form a number comes."""
    found = stats_of(flat({"stats": {"total_time": value}}))["total_time"]

    assert (found, type(found)) == (seconds, float)


@pytest.mark.parametrize(("value", "column"), [(True, True), (False, False), ("true", True), ("false", False)])
def test_truth_values_may_be_texts(value: object, column: bool) -> None:
    """`has_logs` is read in both forms, and told in neither."""
    rows = flat({"has_logs": value})

    assert (scan_of(rows)["has_logs"], rows.drift) == (column, ())


def test_products_are_a_sorted_set() -> None:
    """A product is one row, however often and in whatever order it is named."""
    rows = flat({"enabled_products": ["sca", "sast", "sca", "x" * 128]})

    assert (rows.products, rows.drift) == (("sast", "sca", "x" * 128), ())
    assert flat({"enabled_products": []}) == flat({})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (-3, -3.0),
        (0.25, 0.25),
        ("12", 12.0),
        ("-12", -12.0),
        (2**53, float(2**53)),
        (2**53 + 2, float(2**53 + 2)),
        (2**70, float(2**70)),
        (str(2**70), float(2**70)),
        (1e300, 1e300),
    ],
)
def test_numbers_in_stats_become_items(value: object, number: float) -> None:
    """Whatever a float holds exactly is an item, integers also in the text form of 64-bit numbers."""
    rows = flat({"stats": {"m": {"n": value}}})

    assert (rows.items, set(rows.stats.values())) == ((("m", "n", number),), {None})


@pytest.mark.parametrize(
    "value",
    [
        "many",
        "1.5",
        "007",
        "-0",
        "",
        " 1",
        "1\n",
        True,
        None,
        [1, 2],
        {},
        [{"n": 1}],
        2**53 + 1,
        str(2**53 + 1),
        "9" * 309,
        "9" * 5000,
    ],
)
def test_what_is_no_number_in_stats_stays_at_its_place(value: object) -> None:
    """What an item can't say exactly is kept in extra, under the same keys."""
    rows = flat({"stats": {"m": {"n": value, "one": 1}}})

    assert rows.items == (("m", "one", 1.0),)
    assert stats_of(rows)["extra"] == {"m": {"n": value}}


@pytest.mark.parametrize(
    ("stats", "items", "extra"),
    [
        ({"a": {"x" * 512: 1}}, [("a", "x" * 512, 1.0)], {}),
        ({"a": {"x" * 513: 1, "y": 2}}, [("a", "y", 2.0)], {"a": {"x" * 513: 1}}),
        ({"a" * 128: {"x": 1}}, [("a" * 128, "x", 1.0)], {}),
        ({"a" * 129: {"x": 1}}, [], {"a" * 129: {"x": 1}}),
        (
            {"a" * 126: {"b": {"x": 1, "y": {"z": 2}}}},
            [("a" * 126 + ".b", "x", 1.0)],
            {"a" * 126: {"b": {"y": {"z": 2}}}},
        ),
        ({"": {"": 1}}, [("", "", 1.0)], {}),
    ],
)
def test_items_have_keys_that_an_index_holds(
    stats: dict[str, Any], items: list[tuple[str, str, float]], extra: dict[str, Any]
) -> None:
    """Numbers under names that are too long for a key stay in extra."""
    rows = flat({"stats": stats})

    assert (list(rows.items), stats_of(rows)["extra"]) == (items, extra)


def test_two_numbers_of_one_name_are_both_kept() -> None:
    """Of two paths that give the same category and name, the first by name is the item, in any order of the answer."""
    stats = {"a": {"b": {"c": 2, "d": 3}}, "a.b": {"c": 1, "e": 4}}
    rows, again = (flat({"stats": dict(order)}) for order in (stats.items(), reversed(stats.items())))

    assert rows.content_hash == again.content_hash
    assert rows.items == (("a.b", "c", 2.0), ("a.b", "d", 3.0), ("a.b", "e", 4.0))
    assert stats_of(rows)["extra"] == {"a.b": {"c": 1}}


# What no database takes.


def test_bad_text_is_replaced() -> None:
    """NUL and lone surrogates become U+FFFD in values and names, at every place that is stored."""
    rows = flat(
        {
            "shiny\0": "\ud800x",
            "enabled_products": ["a\0"],
            "meta": {"branch": "ma\0in", "commit_title": {"f\udfff": "x"}, "x": [{"\0": "\0"}]},
            "stats": {"m\0": {"n\ud800": 1, "t": "\0"}},
        }
    )

    assert scan_of(rows)["extra"] == {f"shiny{BAD}": f"{BAD}x"}
    assert rows.products == (f"a{BAD}",)
    assert (meta_of(rows)["branch"], meta_of(rows)["commit_title"]) == (f"ma{BAD}in", f"f{BAD}: x")
    assert meta_of(rows)["extra"] == {"x": [{BAD: BAD}]}
    assert rows.items == ((f"m{BAD}", f"n{BAD}", 1.0),)
    assert stats_of(rows)["extra"] == {f"m{BAD}": {"t": BAD}}
    assert {path for path, kind in drift_of(rows) if kind == "bad_text"} == {
        f"shiny{BAD}",
        "enabled_products[]",
        "meta.branch",
        f"meta.commit_title.f{BAD}",
        f"meta.x[].{BAD}",
        f"stats.m{BAD}",
        f"stats.m{BAD}.n{BAD}",
        f"stats.m{BAD}.t",
    }


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "C:\\temp", "\ufffd", "😀", '"\n\t\x7f'])
def test_good_text_stays_as_it_is(text: str) -> None:
    """What only looks like an escape of a NUL is a text like any other."""
    document = {"shiny": {text: text}, "meta": {"branch": text}, "stats": {"m": {text: 1}}}
    rows = flat(document)

    assert scan_of(rows)["extra"] == {"shiny": {text: text}}
    assert (meta_of(rows)["branch"], rows.items) == (text, (("m", text, 1.0),))
    assert {kind for _, kind in drift_of(rows)} == {"unknown_field"}


def test_a_float_beyond_what_integers_are_exact_is_kept_as_its_text() -> None:
    """PostgreSQL's JSONB would give back an integer that isn't quite the same number."""
    rows = flat({"repository_id": 1e300, "stats": {"findings": 1e19, "m": {"n": 1e19}}, "x": [2.0**53, -(2.0**53) * 2]})

    assert scan_of(rows)["extra"] == {"repository_id": "1e+300", "x": [2.0**53, "-1.8014398509481984e+16"]}
    assert stats_of(rows)["extra"] == {"findings": "1e+19"}
    assert rows.items == (("m", "n", 1e19),)
    assert ("x[]", "big_number") in drift_of(rows)


def test_names_that_become_equal_by_cleaning_all_survive() -> None:
    """U+FFFD is added until each name is its own; a name that was good stays as it is."""
    names = dict(zip(["\0", BAD, "\ud800", "\ud801"], [1, 2, 3, 4], strict=True))
    rows, again = (flat({"x": dict(order)}) for order in (names.items(), reversed(names.items())))

    assert scan_of(rows)["extra"] == {"x": {BAD: 2, BAD * 2: 1, BAD * 3: 3, BAD * 4: 4}}
    assert rows.content_hash == again.content_hash


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**300])
def test_integers_beyond_64_bits_become_texts(number: int) -> None:
    """Their digits are kept, and the change is told."""
    rows = flat({"repository_id": number, "x": [{"y": number}], "meta": {"z": number}, "stats": {"w": number}})

    assert scan_of(rows)["repository_id"] is None
    assert scan_of(rows)["extra"] == {"repository_id": str(number), "x": [{"y": str(number)}]}
    assert (meta_of(rows)["extra"], stats_of(rows)["extra"]) == ({"z": str(number)}, {"w": str(number)})
    assert drift_of(rows) >= {
        ("repository_id", "out_of_range"),
        ("repository_id", "big_number"),
        ("x[].y", "big_number"),
        ("meta.z", "big_number"),
        ("stats.w", "big_number"),
    }


def test_integers_of_any_size_are_survived() -> None:
    """An integer of more digits than Python prints is kept all the same."""
    digits = "1" + "0" * 5000
    rows = flat({"x": 10**5000, "meta": {"branch": 10**5000}, "stats": {"m": {"n": 10**5000}}})

    assert scan_of(rows)["extra"] == {"x": digits}
    assert meta_of(rows)["branch"] == digits
    assert (rows.items, stats_of(rows)["extra"]) == ((), {"m": {"n": digits}})


def test_a_number_never_becomes_a_product() -> None:
    """A list with an integer beyond 64 bits is no list of texts, although that integer is kept as one."""
    rows = flat({"enabled_products": ["sast", 2**63], "x\0": 1})

    assert rows.products == ()
    assert scan_of(rows)["extra"] == {"enabled_products": ["sast", str(2**63)], f"x{BAD}": 1}
    assert drift_of(rows) == {
        ("enabled_products", ODD_TYPE),
        ("enabled_products[]", "big_number"),
        (f"x{BAD}", "bad_text"),
        (f"x{BAD}", "unknown_field"),
    }


@pytest.mark.parametrize(("number", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_numbers_that_are_not_finite_become_texts(number: float, text: str) -> None:
    """They are kept by name, and no column, item or extra has them as numbers."""
    rows = flat(
        {
            "exit_code": number,
            "meta": {"branch": number, "x": [number]},
            "stats": {"total_time": number, "m": {"n": number}},
        }
    )

    assert scan_of(rows)["extra"] == {"exit_code": text}
    assert (meta_of(rows)["branch"], meta_of(rows)["extra"]) == (text, {"x": [text]})
    assert (rows.items, stats_of(rows)["extra"]) == ((), {"total_time": text, "m": {"n": text}})
    assert ("meta.x[]", "out_of_range") in drift_of(rows)


def test_drift_is_bounded() -> None:
    """However odd an answer is, its drift stays small: few entries, short paths, each once."""
    names = [f"{number:05}{'x' * 400}\0" for number in range(200)]
    for document in ({name[:-1]: 1 for name in names}, dict.fromkeys(names, 1), {"meta": {"x": names}}):
        rows = flat(document)

        assert len(rows.drift) <= MAX_DRIFT
        assert len(set(rows.drift)) == len(rows.drift)
        assert all(len(drift.path) <= 200 for drift in rows.drift)
        assert "\0" not in "".join(drift.path for drift in rows.drift)


def test_a_path_is_told_once_for_fields_that_look_alike() -> None:
    """A field `meta.x` of the scan and a field `x` of meta have the same path: one entry."""
    assert flat({"meta.x": 1, "meta": {"x": 1}}).drift == (Drift("meta.x", "unknown_field"),)


# Privacy.


def blake(text: str) -> str:
    return blake2b(text.casefold().encode(), digest_size=16, key=KEY).hexdigest()


def test_authors_can_be_hashed() -> None:
    """Each of the author fields becomes 32 hex digits of its text and the key; everything else stays."""
    document = json.loads(DOCUMENTED)
    kept, hashed = meta_of(flat(document)), meta_of(flat(document, author="hash"))

    assert hashed == kept | {name: blake(kept[name]) for name in AUTHOR_FIELDS}
    assert len(AUTHOR_FIELDS) == 6


def test_authors_can_be_dropped() -> None:
    """None of the author fields is stored; everything else stays."""
    document = json.loads(DOCUMENTED)
    kept, dropped = meta_of(flat(document)), meta_of(flat(document, author="drop"))

    assert dropped == kept | dict.fromkeys(AUTHOR_FIELDS)


@pytest.mark.parametrize("value", [{"name": "Sven"}, ["Sven"]])
def test_an_odd_author_is_hidden_as_well(value: object) -> None:
    """The value of an author field is never stored in extra, where its type would have brought it."""
    document = {"meta": {"commit_author_name": value, "x": 1}}
    kept, hashed, dropped = (flat(document, author=author) for author in ("keep", "hash", "drop"))
    text = json.dumps(value, separators=(",", ":"))

    assert meta_of(kept)["extra"] == {"commit_author_name": value, "x": 1}
    assert meta_of(hashed)["extra"] == {"commit_author_name": blake(text), "x": 1}
    assert meta_of(dropped)["extra"] == {"x": 1}
    assert "Sven" not in repr((hashed, dropped))
    assert kept.drift == hashed.drift == dropped.drift


@pytest.mark.parametrize("name", ["Sv\0en", "Sv\ud800en", ["Sv\0en"], ["Sv\ud800en"]])
def test_an_author_has_one_hash(name: object) -> None:
    """The hash of an author doesn't depend on what else is in the answer."""
    plain = flat({"meta": {"commit_author_name": name}}, author="hash")
    dirty = flat({"meta": {"commit_author_name": name, "branch": "\0"}}, author="hash")

    found = [
        meta_of(rows)["commit_author_name"] or meta_of(rows)["extra"]["commit_author_name"] for rows in (plain, dirty)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 32


def test_a_number_for_an_author_is_hashed_as_its_text() -> None:
    """A user name that came as a number has the hash of its digits."""
    rows = flat({"meta": {"commit_author_username": 7, "commit_author_email": None}}, author="hash")

    assert meta_of(rows)["commit_author_username"] == blake("7")
    assert meta_of(rows)["commit_author_email"] is None


# The content hash.


@pytest.mark.parametrize(
    "change",
    [
        {"repository_id": 8},
        {"completed_at": "2023-11-18T23:28:12.392Z"},
        {"has_logs": False},
        {"enabled_products": ["secrets", "sast"]},
        {"meta": {}},
        {"stats": {"findings": 5, "total_time": 100.5}},
        {"stats": {"findings": 5, "total_time": 100, "m": {"n": 1}}},
        {"stats": {"findings": 5, "total_time": 100, "x": 1}},
        {"x": None},
    ],
)
def test_any_change_changes_the_hash(change: dict[str, Any]) -> None:
    """Each table has its part in the content hash."""
    document = json.loads(DOCUMENTED)

    assert flat(document | change).content_hash != flat(document).content_hash


def test_the_hash_is_about_the_rows_alone() -> None:
    """Neither the time of the fetch nor another way to write the same values changes the content hash."""
    document = json.loads(DOCUMENTED)
    other = document | {"id": "123", "exit_code": "123", "stats": {"total_time": "100", "findings": 5.0}}
    later = flatten(PAIR, other, FETCHED_AT + timedelta(days=1))

    assert later.content_hash == flat(document).content_hash
    assert later.fetched_at == FETCHED_AT + timedelta(days=1)


# Reading JSON.


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, "x", true, null]}', {"a": [1, 2.5, "x", True, None]}),
        (b"\xef\xbb\xbf {}\n", {}),
        (rb'["\ud800", "\udc00x", "\ud83d\ude00"]', ["\ud800", "\udc00x", "😀"]),
        (rb'{"\ud800": "\u0000"}', {"\ud800": "\0"}),
        (b"[NaN, Infinity, -Infinity]", ["NaN", "Infinity", "-Infinity"]),
        (b"[1e400, -1e400, 1e-400]", ["1e400", "-1e400", 0.0]),
        (b"18446744073709551616", 2**64),
        (b"[1" + b"0" * 5000 + b"]", ["1" + "0" * 5000]),
        (b"[NaN, 1" + b"0" * 4000 + b"]", ["NaN", 10**4000]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"9007199254740993", 2**53 + 1),
    ],
)
def test_json_of_lenient_writers_is_read(body: bytes, value: object) -> None:
    """Surrogates, NaN and numbers past any limit come through without a loss of digits."""
    assert decode(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf",
        b'{"a":',
        b'{"a": 1',
        b"{} {}",
        b"{'a': 1}",
        b"<html></html>",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"a\nb"',
        b"[01]",
        b"nan",
        b"[" * 100,
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    """A broken body is told from a bad scan: it may be whole the next time."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is the parser's
        decode(body)

    assert str(caught.value)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000, b"[NaN," + b"[" * 100_000]
)
def test_a_body_of_endless_depth_is_no_traceback(body: bytes) -> None:
    """Nesting past what the parser bears is an error of this pair."""
    with pytest.raises(ItemError) as caught:
        decode(body)

    assert caught.value.kind == "too_deep"


# Properties.

LETTERS = "ab.01-:TZ \u00e9\0\ud800\udfff\ufffd\\u\U0001f600"
texts = st.text(st.sampled_from(LETTERS), max_size=6) | st.text(max_size=6)
integers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 10**400])
instants = st.datetimes(timezones=st.timezones() | st.none()).map(str)
scalars = st.none() | st.booleans() | integers | st.floats() | texts | integers.map(str) | instants
names = texts | st.sampled_from([*SCAN_FIELDS, *META_FIELDS, *STATS_FIELDS, "true", "meta", "stats", "id"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
deep_values = st.builds(nested, st.integers(100, 260), st.sampled_from("{["))


def objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of the documented fields, and a few of their own."""
    known = st.fixed_dictionaries({}, optional=fields)
    own_names = texts.filter(lambda name: name not in ("id", "deployment_id"))
    return st.builds(lambda some, others: some | others, st.dictionaries(own_names, values, max_size=3), known)


languages = st.dictionaries(
    texts, st.dictionaries(st.sampled_from([*LANGUAGE.columns, "m"]), values) | values, max_size=3
)
stats_objects = objects(
    dict.fromkeys(STATS_FIELDS, values)
    | {"m": st.dictionaries(texts, values, max_size=5), "parse_rate": languages | values}
)
meta_objects = objects(
    dict.fromkeys((*META_FIELDS, "true"), texts | values)
    | {"commit_title": st.dictionaries(texts, scalars, max_size=2)}
)
documents = objects(
    dict.fromkeys(SCAN_FIELDS, values)
    | {
        "started_at": instants | values,
        "enabled_products": st.lists(texts, max_size=3) | values,
        "meta": meta_objects | values,
        "stats": stats_objects | values,
        "id": st.sampled_from([123, "123", 123.0, None]),
    }
)


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


def check_storable(value: Any) -> None:
    """Fail for what some database refuses or changes."""
    if isinstance(value, str):
        assert value == replaced(value)
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, datetime):
        assert value.utcoffset() == timedelta(0)
    elif isinstance(value, dict):
        check_storable([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for member in value:
            check_storable(member)


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list):
        return [shuffled(member, chance) for member in value]
    if not isinstance(value, dict):
        return value
    order = list(value)
    chance.shuffle(order)
    return {name: shuffled(value[name], chance) for name in order}


@settings(max_examples=150)
@given(documents)
@example({"meta": {"on": 5, "true": "5"}})
@example({"\ud800": 2**63, "enabled_products": [2**63]})
@example({"stats": {"a.": {"b": 1}, "a": {"": {"b": 2}, "\0": {"b": 3}}}})
def test_every_leaf_is_found_again(document: dict[str, Any]) -> None:
    """No value of an answer is lost, whatever its type and wherever it stands."""
    check_kept(document, flat(document))


@settings(max_examples=100)
@given(documents, st.sampled_from(AUTHORS))
def test_rows_hold_only_what_every_database_takes(document: dict[str, Any], author: Author) -> None:
    """No NUL, no lone surrogate, no NaN, no integer beyond 64 bits, no key that is too long or there twice."""
    rows = flat(document, author=author)

    extras = [scan_of(rows)["extra"], meta_of(rows)["extra"], stats_of(rows)["extra"]]
    check_storable([rows.scan, rows.meta, rows.stats, rows.products, rows.languages, rows.items, rows.drift, extras])
    keys = [(category, name) for category, name, _ in rows.items]
    assert keys == sorted(set(keys))
    assert list(rows.products) == sorted(set(rows.products))
    assert all(len(category) <= 128 and len(name) <= 512 for category, name in keys)
    assert rows.final is (rows.scan["completed_at"] is not None)


@settings(max_examples=100)
@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_names_changes_nothing(document: dict[str, Any], chance: random.Random) -> None:
    """Two answers that differ only in the order of their names give the same rows and the same hash."""
    rows, again = flat(document), flat(shuffled(document, chance))

    assert again._replace(drift=()) == rows._replace(drift=())
    assert drift_of(again) == drift_of(rows) or len(rows.drift) == MAX_DRIFT


@settings(max_examples=100)
@given(values | deep_values | st.dictionaries(names, values | deep_values, max_size=4))
def test_any_json_value_becomes_rows_or_one_sentence(document: object) -> None:
    """Nothing that JSON can say ends in a traceback."""
    error = outcome(document)

    assert error is None or error.kind in {"not_an_object", "wrong_scan", "too_deep"}
    assert error is None or str(error).startswith("$")
    check_storable(str(error))


def outcome(document: object) -> ItemError | None:
    try:
        flat(document)
    except ItemError as error:
        return error
    return None


@settings(max_examples=100)
@given(values)
def test_what_was_written_is_read(value: object) -> None:
    """Reading gives back what any writer of JSON was given; NaN and Infinity as their texts."""
    read = decode(json.dumps({"x": value}).encode())

    assert json.dumps(read) == json.dumps({"x": finite(value)})


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: finite(member) for name, member in value.items()}
    if isinstance(value, list):
        return [finite(member) for member in value]
    return storable(value) if isinstance(value, float) and not math.isfinite(value) else value


@settings(max_examples=150)
@given(
    st.binary(max_size=40)
    | st.text(st.sampled_from('{}[]",:0123456789.eE+-\\ud8adNaNInfinitytrue \0\ufeff')).map(str.encode)
    | st.builds(lambda value, end: json.dumps(value).encode()[:end], values, st.integers(0, 60))
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Whatever a server sends is no JSON, or a value that becomes rows or is refused in one sentence."""
    try:
        refused = outcome(decode(body))
    except ValueError:
        refused = None

    assert refused is None or refused.kind in {"not_an_object", "wrong_scan", "too_deep"}
