"""Many nights of `sync`, simulated: what could be had is there, final and equal, for as few requests as there can be.

`make soak` plays a whole year; SCAN_ETL_SOAK_SEED repeats the choices of a run.
"""

import os
import random
import sys
from typing import Literal

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sandbox_thread import running_sandbox
from simulated_nights import OPENED_AT, Nights, TickingTime, reckon

from etl.sandbox import Behaviour, World

IS_SOAK = "SCAN_ETL_SOAK_SECONDS" in os.environ
NIGHTS = 365 if IS_SOAK else 20


def live_through(nights: Nights, count: int, draw: random.Random) -> None:
    """Nights of all kinds, with one time of 40 days in the middle in which nobody calls."""
    for number in range(count):
        nights.sleep(hours=24, minutes=draw.uniform(-30, 30))
        if number == count // 2:
            nights.sleep(days=40)
        chance = draw.random()
        if chance < 0.05:
            nights.sleep(hours=draw.uniform(2, 60))
        elif chance < 0.1 and number:
            nights.away()
        elif chance < 0.2:
            nights.killed_sync(draw.uniform(0, 0.8))
        elif chance < 0.25:
            nights.sync()
            nights.sync()
        else:
            nights.sync()
    nights.sync()


@pytest.mark.slow
@pytest.mark.timeout(0 if IS_SOAK else 4 * PATIENCE_SECONDS)
@pytest.mark.parametrize("kind", ["whole", "refused", "empty"])
def test_what_could_be_had_is_there_and_what_is_lost_is_reported(
    cli: Command, sqlite_url: str, kind: Literal["whole", "refused", "empty"]
) -> None:
    """After outages, kills, shifting pages and late outcomes each scan is stored, final and equal to the server's;
    lost is only what the server no longer listed, and the gaps say so; and requests are nearly the fewest possible.
    So it is where the search lists a deployment, and where it lists but repositories, which come, go and are renamed.
    """
    seed = int(os.environ.get("SCAN_ETL_SOAK_SEED", random.randrange(10_000)))
    sys.stderr.write(f"SCAN_ETL_SOAK_SEED={seed}\n")
    draw, clock = random.Random(seed), TickingTime()
    world = World(
        seed=seed,
        scans=450,
        scans_per_day=15,
        opened_at=OPENED_AT,
        repositories=10,
        late_share=0.02,
        late_days=3,
        new_share=0.2,
        renamed_share=0.2,
        archived_share=0.2,
        changes_days=NIGHTS + 40,
    )
    behaviour = Behaviour(details_days=30, offset_cursors=True, search=kind)
    with running_sandbox(world, behaviour, clock) as sandbox:
        nights = Nights(sandbox, clock, cli, sqlite_url, behaviour)
        live_through(nights, NIGHTS, draw)
        found = reckon(nights)

    assert (found.missing, found.different, found.still_queued, found.made_up) == (set(), set(), set(), set())
    assert found.lost
    assert found.reported_lost == found.lost
    assert found.requests <= 1.1 * found.least_requests
