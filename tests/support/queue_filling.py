"""Fills a queue as `run FILE` and `enqueue` do."""

from collections.abc import Sequence
from functools import partial

from etl.database.connection import Database
from etl.model import Enqueued, Pair
from etl.store import enqueue as staging


def enqueue(database: Database, pairs: Sequence[Pair], *, batch: str | None = None, refresh: bool = False) -> Enqueued:
    """Stage pairs and queue them."""
    name = batch or "stage"
    stage(database, pairs, name)
    return database.run_here(partial(staging.merge, stage=name, valid=len(pairs), batch=batch, refresh=refresh))


def stage(database: Database, pairs: Sequence[Pair], name: str) -> None:
    """Make a stage, and put pairs into it."""
    database.run_here(partial(staging.open_stage, batch=name))
    database.run_here(partial(staging.stage, batch=name, pairs=pairs))
