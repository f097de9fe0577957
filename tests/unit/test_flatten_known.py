"""Flattening what scanners and servers send beyond the documented example: each field has its column or is known."""

from datetime import UTC, datetime
from typing import Any

import pytest
from flatten_answers import FETCHED_AT, META_FIELDS, SCAN_FIELDS, drift_of, flat, meta_of, scan_of, stats_of, unpacked

from etl.model import Pair
from etl.transform.fields import LANGUAGE, META, SCAN, STATS
from etl.transform.sanitize import decode
from etl.transform.scan import flatten

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
