"""Flattening: recorded answers to exact rows, odd answers without loss, anything without a traceback."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flatten_answers import (
    DOCUMENTED,
    FETCHED_AT,
    META_FIELDS,
    PAIR,
    SCAN_FIELDS,
    STATS_FIELDS,
    drift_of,
    flat,
    meta_of,
    scan_of,
    stats_of,
)

from etl.database import schema
from etl.model import Listing, ScanRows, StatItem
from etl.transform.fields import LANGUAGE, LISTED_FINDINGS, LISTING, META, SCAN, STATS
from etl.transform.readers import KEY_MAX_CHARACTERS
from etl.transform.sanitize import decode
from etl.transform.stats import NAME_MAX_CHARACTERS


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


def test_each_field_has_its_column() -> None:
    """The lists of fields and the tables name the same columns, and the same limits."""
    key = {"deployment_id", "scan_id"}
    bookkeeping = {
        "started_day",
        "duration_seconds",
        "content_hash",
        "first_fetched_at",
        "fetched_at",
        "changed_at",
        "run_id",
    }
    of_listing = {"started_day", "listed_at", "details_gone_at", "expired_at", "dropped_at"}

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
