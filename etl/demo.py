"""The whole job against the sandbox: what `make demo` shows."""

import csv
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from etl.config import load_settings, load_tokens
from etl.database import Database
from etl.job import Order, run
from etl.sandbox import Sandbox
from etl.sandbox.faults import Behaviour, Fault
from etl.sandbox.world import World, deployment_of

SAMPLE = text(
    "SELECT scan_id, repository, branch, trigger_event, started_at, duration_seconds, outcome, findings"
    " FROM bi_scan WHERE completed_at IS NOT NULL ORDER BY scan_id DESC LIMIT 3"
)


async def demo(*, scans: int, rate: float, database_url: str, interactive: bool) -> dict[str, Any]:
    """Fetch `scans` scans of a made-up deployment; a few of the answers fail at first. Returns the summary.

    The world is the same all day, so that a second run finds everything fetched.
    """
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    world = World(scans=scans, scans_per_day=max(scans / 30, 1), opened_at=midnight)
    faults = (Fault("status-503", 0.005), Fault("reset", 0.002), Fault("status-404", 0.001, times=0))
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.csv"
        write_pairs(pairs, world)
        async with Sandbox(world, replace(Behaviour(), faults=faults)) as base_url:
            settings = load_settings(
                config_file=None,
                flags={
                    "api.base_url": base_url,
                    "api.rate": rate,
                    "database.url": database_url,
                    "queue.backoff_seconds": 0.5,
                },
                environ={},
                directory=Path(folder),
            )
            tokens = load_tokens({"SEMGREP_APP_TOKEN": "sandbox-token"})
            return await run(Order("demo", (str(pairs),)), settings, tokens, interactive=interactive)


def write_pairs(path: Path, world: World) -> None:
    """A pairs file of all scans that a sandbox world starts with."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("deployment_id", "scan_id"))
        for scan_id in range(world.first_scan_id, world.first_scan_id + world.scans):
            writer.writerow((deployment_of(world, scan_id).id, scan_id))


def sample(database_url: str) -> list[Mapping[str, Any]]:
    """Three rows as a dashboard sees them."""

    def work(connection: Connection) -> list[Mapping[str, Any]]:
        return [{**row, "started_at": str(row["started_at"])[:16]} for row in connection.execute(SAMPLE).mappings()]

    with closing(Database(database_url)) as opened:
        return opened.run_here(work)
