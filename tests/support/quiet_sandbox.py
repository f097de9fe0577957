"""A sandbox in which nothing happens: how much there is to find doesn't hang on the time of day."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sandbox_client import Time
from sandbox_thread import RunningSandbox, finished_world, running_sandbox

from etl.sandbox import Behaviour, World
from etl.sandbox.world import newest_id, scan


@contextmanager
def quiet_sandbox(
    scans: int, behaviour: Behaviour | None = None, **options: Any
) -> Iterator[tuple[RunningSandbox, int]]:
    """A sandbox whose time stands still at an instant at which no scan runs, and how many scans there are by then."""
    world = finished_world(scans, scans_per_day=60.0, **options)
    assert world.opened_at
    now = world.opened_at
    while not all(is_over(world, number, now) for number in latest(world, now)):
        now += timedelta(minutes=10)
    with running_sandbox(world, behaviour, Time(now)) as sandbox:
        yield sandbox, newest_id(world, now)


def is_over(world: World, scan_id: int, now: datetime) -> bool:
    return (scan(world, scan_id).completed_at or now) <= now


def latest(world: World, now: datetime) -> range:
    newest = newest_id(world, now)
    return range(max(1, newest - 50), newest + 1)
