"""Runs against a sandbox that misbehaves."""

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from command import Command, CommandResult
from sandbox_thread import TOKEN, RunningSandbox
from sqlalchemy import Table, select

from etl.database.connection import Database
from etl.database.schema import scans
from etl.model import Pair
from etl.sandbox.faults import chosen_fault
from etl.transform.scan import flatten

SCANS = 20
QUICK = {
    "SCAN_ETL_API__RATE": "5000",
    "SCAN_ETL_API__RETRIES": "0",
    "SCAN_ETL_API__MAX_BODY_BYTES": "500000",
    "SCAN_ETL_QUEUE__MAX_ATTEMPTS": "2",
    "SCAN_ETL_QUEUE__BACKOFF_SECONDS": "0.05",
    "SCAN_ETL_DATABASE__FLUSH_SECONDS": "0.1",
    "SEMGREP_APP_TOKEN": TOKEN,
}
ONCE = {**QUICK, "SCAN_ETL_QUEUE__MAX_ATTEMPTS": "1"}
"""With these a pair that spends an attempt is dead."""


def rows(url: str, table: Table) -> list[dict[str, Any]]:
    with closing(Database(url)) as database:
        return database.run_here(
            lambda connection: [
                dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
            ]
        )


def scan_ids(url: str, table: Table) -> set[int]:
    return {row["scan_id"] for row in rows(url, table)}


def run(cli: Command, base_url: str, url: str, pairs: Sequence[Pair], **variables: str) -> CommandResult:
    environment = {"SCAN_ETL_API__BASE_URL": base_url, "SCAN_ETL_DATABASE__URL": url, **variables}
    text = "".join(f"{pair.deployment_id} {pair.scan_id}\n" for pair in pairs)
    return cli("run", "-", "--json", stdin=text, environment=environment)


def pairs_of(sandbox: RunningSandbox) -> list[Pair]:
    return [Pair(120, number) for number in range(1, sandbox.sandbox.world.scans + 1)]


def hit_by(sandbox: RunningSandbox, *, times: int) -> set[int]:
    """The scans whose first try has a fault that comes so many times; 0 is always."""
    world, faults = sandbox.sandbox.world, sandbox.sandbox.behaviour.faults
    first = {number: chosen_fault(world.seed, faults, "details", number, 1) for number in range(1, world.scans + 1)}
    return {number for number, fault in first.items() if fault is not None and fault.times == times}


def truth(sandbox: RunningSandbox, scan_ids: set[int]) -> dict[int, str]:
    """The content hashes of the scans, as a sound API gives them."""
    now = datetime.now(UTC)
    return {
        number: flatten(Pair(120, number), sandbox.sandbox.truth(number), now).content_hash
        for number in sorted(scan_ids)
    }


def hashes(url: str) -> dict[int, str]:
    return {row["scan_id"]: row["content_hash"] for row in rows(url, scans)}


def as_it_was(queued: list[dict[str, Any]]) -> bool:
    """Whether pairs in the queue have no lease and have spent nothing."""
    return all(row["lease_token"] is None and row["attempts"] == 0 for row in queued)
