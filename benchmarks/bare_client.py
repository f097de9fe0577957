"""The floor of what a client can cost: GET each scan, read the body, throw it away.

bare_client.py BASE_URL SCANS WORKERS
"""

import asyncio
import sys
from collections.abc import Iterator

import aiohttp
import uvloop

DEPLOYMENT_ID = 120


async def fetch_all(base_url: str, scans: int, workers: int) -> None:
    """`workers` requests in flight over one iterator of ids: the cheapest way to bound them."""
    ids = iter(range(1, scans + 1))
    prefix = f"{base_url}/api/v1/deployments/{DEPLOYMENT_ID}/scan/"
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),  # aiohttp's timer for each request costs 15 us
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": "Bearer benchmark"},
            raise_for_status=True,
        ) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(workers):
            tasks.create_task(_fetch(session, prefix, ids))


async def _fetch(session: aiohttp.ClientSession, prefix: str, ids: Iterator[int]) -> None:
    for scan_id in ids:
        async with session.get(f"{prefix}{scan_id}") as response:
            await response.read()


if __name__ == "__main__":
    uvloop.run(fetch_all(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
