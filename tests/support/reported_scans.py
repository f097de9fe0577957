"""Databases whose report is known: scans of two months before today, and what was listed of them."""

import random
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from scan_rows import document
from sqlalchemy import Connection, insert

from etl.database.connection import Database
from etl.database.schema import dead_letters, deployments, repositories, scan_listings
from etl.model import Pair, ScanRows
from etl.store.marks import mark
from etl.store.scans import load_scans
from etl.store.summaries import refresh_piece
from etl.transform.scan import flatten

MIDDAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
"""Of today. The day may change while a test runs: what it counts lies a day or more from where a period ends."""
NAMES = {120: "Acme Bank", 130: "Acme Labs"}
STALE_REPOSITORY, IDLE_REPOSITORY = 6, 99


def scan(scan_id: int, days_ago: int, *, deployment_id: int = 120, minutes: float = 2, **changes: Any) -> ScanRows:
    """A scan that began at midday so many days ago."""
    began_at = MIDDAY - timedelta(days=days_ago)
    ended_at = began_at + timedelta(minutes=minutes)
    times = {"started_at": str(began_at), "completed_at": str(ended_at)}
    pair = Pair(deployment_id, scan_id)
    return flatten(pair, document(pair, **{**times, **changes}), ended_at)


def two_months() -> list[ScanRows]:
    """Scans of two deployments with six repositories each. The last of these had none for a month."""
    chance = random.Random(7)
    return [_one(chance, number, days_ago) for number, days_ago in enumerate([*range(2, 28), *range(33, 57)] * 4, 1)]


def _one(chance: random.Random, number: int, days_ago: int) -> ScanRows:
    repository = chance.randrange(1, 6 if days_ago < 30 else 7)
    counts = {"sast": chance.randrange(9), "sca": chance.randrange(5), "secrets": chance.randrange(3)}
    return scan(
        number,
        days_ago,
        deployment_id=chance.choice(list(NAMES)),
        minutes=chance.uniform(0.5, 40),
        repository_id=repository,
        exit_code=chance.choice([0, 0, 0, 0, 1, 1, 2, 137]),
        enabled_products=["sast", "secrets"] if repository % 2 else ["sast", "sca"],
        meta={"repository": f"acme/repository-{repository}", "is_full_scan": chance.random() < 0.5},
        stats={"findings": sum(counts.values()) + chance.randrange(3), "findings_by_product": counts},
    )


def listing(scan_id: int, days_ago: int, deployment_id: int = 120) -> dict[str, Any]:
    began_at = MIDDAY - timedelta(days=days_ago)
    start = {"started_at": began_at, "started_day": began_at.date()}
    return {"deployment_id": deployment_id, "scan_id": scan_id, "listed_at": began_at, **start}


def load(url: str, scans: Sequence[ScanRows], listed: Sequence[dict[str, Any]] = (), dead: Sequence[int] = ()) -> None:
    """Write the scans and the listings, bury some, name the deployments, and count all of it."""
    with closing(Database(url)) as database:
        database.run_here(lambda connection: _write(connection, scans, listed, dead))
        while database.run_here(refresh_piece):
            pass


def _write(
    connection: Connection, scans: Sequence[ScanRows], listed: Sequence[dict[str, Any]], dead: Sequence[int]
) -> None:
    load_scans(connection, scans, "run")
    seen = {"first_seen_at": MIDDAY, "seen_at": MIDDAY}
    for deployment_id, name in NAMES.items():
        connection.execute(insert(deployments).values(deployment_id=deployment_id, slug="acme", name=name, **seen))
    idle = {"deployment_id": 120, "repository_id": IDLE_REPOSITORY, "name": "acme/idle", **seen}
    connection.execute(insert(repositories).values(**idle))
    if listed:
        connection.execute(insert(scan_listings), listed)
    for scan_id in dead:
        values = {"deployment_id": 120, "scan_id": scan_id, "died_at": MIDDAY, "due_at": MIDDAY}
        connection.execute(insert(dead_letters).values(**values))
    mark(connection, [Pair(row["deployment_id"], row["scan_id"]) for row in listed])
