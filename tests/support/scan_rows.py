"""Flattened scans for the tests of what writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from etl.model import Pair, ScanRows
from etl.transform.scan import flatten

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
        "meta": {"on": "push", "branch": "main", "repository": "acme/pay", "is_full_scan": True},
        "stats": {"findings": 3, "total_time": 90.25, "findings_by_product": {"sast": 2, "secrets": 1}},
        **changes,
    }


def scan_rows(scan_id: int, *, deployment_id: int = 120, minutes: int = 0, **changes: Any) -> ScanRows:
    """The rows of `document`, fetched so many minutes after the scan began."""
    pair = Pair(deployment_id, scan_id)
    return flatten(pair, document(pair, **changes), BEGAN_AT + timedelta(minutes=minutes))
