"""A deployment's prefetcher: what is put into one is worked off by those who wait at it, who leave when it closes."""

import asyncio
from datetime import UTC, datetime

from patience import PATIENCE_SECONDS

from etl.model import Lease, Pair
from etl.pipeline.prefetch import Prefetcher


def lease(scan_id: int) -> Lease:
    return Lease(Pair(120, scan_id), 0, datetime(2026, 1, 1, tzinfo=UTC))


async def fetch_all(prefetcher: Prefetcher, found: list[Lease]) -> None:
    while prefetcher.todo or await prefetcher.has_more():
        found.append(prefetcher.todo.popleft())
        await asyncio.sleep(0)


async def test_each_lease_is_taken_once_in_its_order_however_many_wait() -> None:
    """Those that come while all wait, and those that come while all are at work."""
    prefetcher, found = Prefetcher(3, 100), list[Lease]()
    leases = [lease(number) for number in range(1, 8)]
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(fetch_all(prefetcher, found))
        await asyncio.sleep(0)
        for one in leases[:1]:
            prefetcher.put(one)
        await asyncio.sleep(0.01)
        for one in leases[1:]:
            prefetcher.put(one)
        await asyncio.sleep(0.01)
        before_the_end = list(found)
        prefetcher.close()

    assert before_the_end == found == leases
    assert (prefetcher.undone, prefetcher.held) == (7, 7)


async def test_a_closed_lane_is_worked_off_before_anyone_leaves() -> None:
    """What was put there before is still done; then nobody waits any more, nor begins to."""
    prefetcher, found = Prefetcher(1, 100), list[Lease]()
    prefetcher.put(lease(1))
    prefetcher.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await prefetcher.has_more()
        await fetch_all(prefetcher, found)
        assert not await prefetcher.has_more()

    assert found == [lease(1)]
