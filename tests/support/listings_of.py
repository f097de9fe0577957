"""Entries of the search call, for the tests of what reads and stores them."""

from typing import Any

from etl.model import Listing, Pair
from etl.transform.search_page import read_page


def entry(scan_id: int, **changes: Any) -> dict[str, Any]:
    """What the search call says of a finished scan, 64-bit integers as texts."""
    return {
        "id": str(scan_id),
        "deployment_id": "120",
        "repository_id": "7",
        "status": "SCAN_STATUS_COMPLETED",
        "started_at": "2026-03-01T12:00:00.000Z",
        "completed_at": "2026-03-01T12:01:30.250Z",
        "branch": "main",
        "commit": "94c5be1",
        "enabled_products": ["sast"],
        "exit_code": "0",
        "is_full_scan": True,
        "total_time": 90.25,
        "findings_counts": {"total": "3", "code": "2", "supply_chain": "0", "secrets": "1"},
        **changes,
    }


def listing(scan_id: int = 1, deployment_id: int = 120, **changes: Any) -> Listing:
    """The same, read. A change to None leaves the field out."""
    return read_page(deployment_id, {"scans": [entry(scan_id, deployment_id=deployment_id, **changes)]}).listings[0]


def running(scan_id: int = 1, **changes: Any) -> Listing:
    """A scan that hasn't ended."""
    open_ = {"status": "SCAN_STATUS_RUNNING", "completed_at": None, "exit_code": None, "total_time": None}
    return listing(scan_id, **(open_ | changes))


PAIR = Pair(120, 1)
