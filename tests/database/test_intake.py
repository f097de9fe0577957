"""Pairs on their way from an input into the queue, while the database goes away."""

from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

import pytest
from command import Command
from cutting_proxy import cutting_proxy
from queue_filling import stage
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import Connection
from tables_of import count

from etl.app.intake import Reader, merge
from etl.database.connection import Database
from etl.database.schema import fetch_queue, scans
from etl.errors import DatabaseError
from etl.model import Pair
from etl.pipeline.run_state import RunRequest
from etl.telemetry.events import RunCounts

T = TypeVar("T")


@pytest.mark.parametrize(
    "words", [b"INSERT INTO staged_pairs", b"INSERT INTO staged_pieces", b"INSERT INTO fetch_queue"]
)
def test_a_run_whose_link_breaks_while_it_queues_goes_on(cli: Command, postgres_url: str, words: bytes) -> None:
    """It is patient with the database from its first pair on."""
    with running_sandbox(finished_world(20)) as sandbox, cutting_proxy(postgres_url) as proxy:
        (cli.folder / "pairs.txt").write_text(sandbox.pairs_text())
        proxy.trap(words, "cut after")
        variables = sandbox.environment(SCAN_ETL_DATABASE__URL=proxy.url(postgres_url))
        result = cli("run", "pairs.txt", environment=variables)

    assert result.exit_code == 0, result
    assert (proxy.sprung.is_set(), count(postgres_url, scans), count(postgres_url, fetch_queue)) == (True, 20, 0)


def test_whoever_cannot_know_whether_pairs_were_queued_says_so(sqlite_url: str) -> None:
    """The answer to the commit was lost, and what was staged is gone either way."""
    with closing(Database(sqlite_url)) as database:

        def twice(work: Callable[[Connection], T]) -> T:
            database.run_here(work)
            return database.run_here(work)

        stage(database, [Pair(120, 1)], "mine")
        counts = RunCounts(requested=1)
        with pytest.raises(DatabaseError, match="they may be queued: run the same command again"):
            merge(database, RunRequest("run"), Reader("mine", "token", twice), "mine", counts)
