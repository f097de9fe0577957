"""Flattened scans for the tests of what writes them."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table

from etl.database.schema import scan_languages, scan_meta, scan_products, scan_stat_items, scan_stats, scans
from etl.model import Pair, ScanRows
from etl.transform.scan import flatten

SCAN_TABLES: tuple[Table, ...] = (scans, scan_products, scan_meta, scan_stats, scan_languages, scan_stat_items)
BOOKKEEPING = ("first_fetched_at", "fetched_at", "changed_at", "run_id", "started_day", "duration_seconds")
"""What depends on when a scan is fetched, and not on what the API says of it; and what follows from other columns."""
BEGAN_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def document(pair: Pair, **changes: Any) -> dict[str, Any]:
    """An answer of the API about a finished scan, in the scanner's shape."""
    return {
        "id": pair.scan_id,
        "deployment_id": pair.deployment_id,
        "repository_id": 7,
        "started_at": "2026-03-01 12:00:00.000001+00:00",
        "completed_at": "2026-03-01 12:01:30.250001+00:00",
        "exit_code": 0,
        "has_logs": True,
        "enabled_products": ["sast", "secrets"],
        "meta": {"on": "push", "branch": "main", "repository": "acme/pay", "is_full_scan": True, "mood": "good"},
        "stats": {
            "findings": 3,
            "total_time": 90.25,
            "engine_requested": "OSS",
            "findings_by_product": {"sast": 2, "secrets": 1},
            "parse_rate": {"go": {"targets_parsed": 9, "num_targets": 10, "num_bytes": 2**40}},
        },
        **changes,
    }


def scan_rows(scan_id: int, *, deployment_id: int = 120, minutes: int = 0, **changes: Any) -> ScanRows:
    """The rows of `document`, fetched so many minutes after the scan began."""
    pair = Pair(deployment_id, scan_id)
    return flatten(pair, document(pair, **changes), BEGAN_AT + timedelta(minutes=minutes))


def rows_by_table(truth: Iterable[ScanRows]) -> dict[str, list[dict[str, Any]]]:
    """What the tables hold of these scans, but for the bookkeeping: each row by its columns."""
    found: dict[str, list[dict[str, Any]]] = {table.name: [] for table in SCAN_TABLES}
    for one in truth:
        key = one.pair._asdict()
        found["scans"].append({**key, **_with_extra(one.scan), "content_hash": one.content_hash})
        found["scan_products"] += [{**key, "product": product} for product in one.products]
        found["scan_meta"].append({**key, **_with_extra(one.meta)})
        found["scan_stats"].append({**key, **_with_extra(one.stats)})
        found["scan_languages"] += [{**key, **language} for language in one.languages]
        found["scan_stat_items"] += [{**key, **item._asdict()} for item in one.items]
    return found


def _with_extra(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"extra": json.loads(row["extra"] or "null")}
