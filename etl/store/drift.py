"""Counts how answers differ from what is documented, and from each other: the SQL of `schema_drift`.

Names come from outside, and may be made up without end. So only so many differences get rows of their own.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, literal, select

from etl.database.dialects import upsert
from etl.database.schema import schema_drift
from etl.database.types import add_seconds, utc_now
from etl.model import Drift, Pair


class DriftSeen(NamedTuple):
    """A difference that was met in the answer about `pair`, at `at`."""

    drift: Drift
    pair: Pair
    at: datetime


MOST_ROWS, MOST_NEW_ROWS = 1_000, 100
"""The most differences that are counted one by one; and the most that one batch adds to them. What comes then is
counted together, a row for each kind. Workers that add rows at the same moment may add a few more."""
OTHERS = "(others)"


def count_drift(connection: Connection, met: Iterable[DriftSeen]) -> None:
    """Add to the counts; the last one of a kind is its sample."""
    met = list(met)
    if not met:
        return
    counts: dict[Drift, int] = {}
    sample: dict[Drift, DriftSeen] = {}
    counted = _counted(connection, dict.fromkeys(one.drift for one in met))
    for one in met:
        drift = one.drift if one.drift in counted else Drift(OTHERS, one.drift.kind)
        counts[drift] = counts.get(drift, 0) + 1
        sample[drift] = one
    statement = upsert(
        connection,
        schema_drift,
        lambda new: {
            "count": schema_drift.c.count + new.count,
            "last_seen_at": new.last_seen_at,
            "sample_deployment_id": new.sample_deployment_id,
            "sample_scan_id": new.sample_scan_id,
        },
    )
    # Sorted, so that two workers lock the rows in the same order.
    connection.execute(
        statement,
        [
            {
                "path": drift.path,
                "kind": drift.kind,
                "count": counts[drift],
                "first_seen_at": sample[drift].at,
                "last_seen_at": sample[drift].at,
                "sample_deployment_id": sample[drift].pair.deployment_id,
                "sample_scan_id": sample[drift].pair.scan_id,
            }
            for drift in sorted(counts)
        ],
    )


def met(connection: Connection, new_seconds: float) -> list[dict[str, Any]]:
    """What has been met, the newest first. `is_new`: first within so many seconds, by the database's clock."""
    seen = schema_drift.c
    is_new = case((seen.first_seen_at > add_seconds(utc_now(), literal(-new_seconds)), 1), else_=0).label("is_new")
    found = connection.execute(select(schema_drift, is_new).order_by(seen.first_seen_at.desc(), seen.path, seen.kind))
    return [{**row, "is_new": bool(row["is_new"])} for row in found.mappings()]


def _counted(connection: Connection, met: Iterable[Drift]) -> set[Drift]:
    """Those of these differences that have a row of their own, or get one: the first of them, while there is room."""
    keys = select(schema_drift.c.path, schema_drift.c.kind).where(schema_drift.c.path != OTHERS)
    known = {Drift(*row) for row in connection.execute(keys)}
    new = [drift for drift in met if drift not in known]
    return known.union(new[: max(0, min(MOST_ROWS - len(known), MOST_NEW_ROWS))])
