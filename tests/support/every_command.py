"""All that one may do with a database, command by command, and what it holds afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from command import Command
from sandbox_client import Time
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from sqlalchemy import select, text
from stored_rows import loaded
from tables_of import ask

from etl.database.schema import dead_letters, fetch_queue, repositories, runs, scan_listings
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault

ALL = (
    "db upgrade",
    "db current",
    "doctor",
    "enqueue -",
    "plan -",
    "run",
    "run - --refresh",
    "sync",
    "discover",
    "status",
    "status --by-repository",
    "failures list",
    "failures requeue --all",
    "queue drop --all --yes",
    "run -",
    "failures drop --all --yes",
    "run -",
    "runs",
    "drift",
    "forget --username dev-44 --yes",
    "prune --scans-older-than 31d --dead-letters-older-than 31d --yes",
    "db check",
)
"""In this order."""
_dead, _listed, _of = dead_letters.c, scan_listings.c, repositories.c
_HELD = {
    "dead": select(_dead.scan_id, _dead.error_kind, _dead.error, _dead.attempts).order_by(_dead.scan_id),
    "queued": select(fetch_queue.c.scan_id).order_by(fetch_queue.c.scan_id),
    "listed": select(_listed.scan_id, _listed.status, _listed.started_at, _listed.extra).order_by(_listed.scan_id),
    "repositories": select(_of.repository_id, _of.name, _of.latest_scan_at, _of.tags).order_by(_of.repository_id),
    "runs": select(runs.c.command, runs.c.requested, runs.c.fetched, runs.c.dead).order_by(runs.c.started_at),
    "bi_repository": text(
        "SELECT repository_id, scans, products, last_outcome FROM bi_repository ORDER BY repository_id"
    ),
    "bi_coverage": text("SELECT repository_id, listed, lost_percent FROM bi_coverage ORDER BY day, repository_id"),
    "bi_scan": text("SELECT scan_id, repository, branch, outcome FROM bi_scan ORDER BY scan_id"),
}


@contextmanager
def still_sandbox() -> Iterator[RunningSandbox]:
    """A sandbox whose time stands still, so that each use of it is the same. Some of its scans are gone."""
    world = finished_world(60, scans_per_day=60.0)
    assert world.opened_at
    behaviour = Behaviour(faults=(Fault("status-404", 0.1, times=0),))
    with running_sandbox(world, behaviour, Time(world.opened_at + timedelta(hours=12))) as sandbox:
        yield sandbox


def use(cli: Command, sandbox: RunningSandbox, url: str, **variables: str) -> dict[str, Any]:
    """Give all commands, and return what the database holds after that, but for what depends on when it was.

    AssertionError where one ends as it doesn't if all is well.
    """
    environment = sandbox.environment(SCAN_ETL_DATABASE__URL=url, **variables)
    for words in ALL:
        result = cli(*words.split(), stdin=sandbox.pairs_text(), environment=environment)
        has_dead_letters = words.startswith("run -") or words in ("run", "sync")
        assert result.exit_code == (1 if has_dead_letters else 0), (words, result)
        assert "Warning" not in result.stderr, (words, result)
    return {**loaded(url), **{name: [tuple(row) for row in ask(url, rows)] for name, rows in _HELD.items()}}
