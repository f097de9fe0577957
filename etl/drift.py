"""Counts how answers differ from what is documented, and from each other: the SQL of `schema_drift`."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from etl.database import upsert
from etl.model import Drift, Pair
from etl.schema import schema_drift


class Met(NamedTuple):
    """A difference that was met in the answer about `pair`, at `at`."""

    drift: Drift
    pair: Pair
    at: datetime


def count_drift(connection: Connection, met: Iterable[Met]) -> None:
    """Add to the counts; the last one of a kind is its sample."""
    counts: dict[Drift, int] = {}
    sample: dict[Drift, Met] = {}
    for one in met:
        counts[one.drift] = counts.get(one.drift, 0) + 1
        sample[one.drift] = one
    if not counts:
        return
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
