"""`scans` in partitions on PostgreSQL, by the statements of docs/retention.md."""

import re
from datetime import timedelta
from pathlib import Path

from command import Command
from sandbox_client import Time
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import delete, text
from tables_of import ask, change, count

from etl.database.schema import dead_letters, scans

DOCS = Path(__file__).parents[2] / "docs" / "retention.md"
FIRST, SECOND = 600, 900
"""The scan ids at which partitions end: the page has its own."""


def blocks() -> list[list[str]]:
    """The statements of each block of SQL in the page, with our bounds."""
    found = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    sized = (block.replace("10000000", str(FIRST)).replace("20000000", str(SECOND)) for block in found)
    return [[statement for statement in block.split(";\n") if statement.strip()] for block in sized]


def test_partitions_change_nothing_for_the_commands(cli: Command, postgres_url: str) -> None:
    """Nights, a refresh, people and retention go on; `db check` is content; an empty partition can go."""
    settings, who_holds, conversion, drop = blocks()
    world = finished_world(1_200, scans_per_day=30.0)
    assert world.opened_at
    at = Time(world.opened_at - timedelta(days=25))
    with running_sandbox(world, None, at) as sandbox:
        given = sandbox.environment(SCAN_ETL_DATABASE__URL=postgres_url)
        words = [("sync",), ("db", "downgrade", "0002", "--yes")]
        before = [cli(*each, environment=given).exit_code for each in words]
        change(postgres_url, *map(text, [*settings, *who_holds, *conversion]))
        at.now = world.opened_at
        words = [("db", "upgrade"), ("db", "check"), ("sync",), ("run", "-", "--refresh")]
        words += [("forget", "--username", "dev-4", "--yes"), ("db", "refresh", "--all")]
        after = [cli(*each, stdin=sandbox.pairs_text(), environment=given).exit_code for each in words]
    parts = ask(postgres_url, text("SELECT tableoid::regclass::text, count(*) FROM scans GROUP BY 1 ORDER BY 1"))
    counted = ask(postgres_url, text("SELECT SUM(scans) FROM bi_scan_daily"))[0][0]

    assert (before, after) == ([0] * 2, [0] * 6)
    assert [tuple(part) for part in parts] == [("scans_1", 599), ("scans_2", 300), ("scans_rest", 301)]
    assert (int(counted), count(postgres_url, dead_letters)) == (1_200, 0)

    pruned = cli("prune", "--scans-older-than", "31d", "--yes", "--json", environment=given).json()["removed"]["scans"]
    assert 0 < pruned == 1_200 - count(postgres_url, scans)
    change(postgres_url, delete(scans).where(scans.c.scan_id < FIRST), *map(text, drop))
    assert count(postgres_url, scans) == 601
    assert cli("db", "check", environment=given).exit_code == 0
