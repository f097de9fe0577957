"""An API that refuses and fails, and what is tried with it."""

import asyncio

from semgrep_client import Asking

from etl.model import Pair

ONE = Pair(120, 1)
EARLY_SECONDS = 0.05
"""How much earlier than asked for a request may seem to come: the two sides read the clock at different moments."""


async def tried(asking: Asking, pair: Pair) -> BaseException | None:
    """The error that a scan ends with, or None."""
    return (await asyncio.gather(asking.semgrep.scan(pair), return_exceptions=True))[0]  # type: ignore[return-value]  # or the answer


async def errors_of(asking: Asking, *scan_ids: int) -> list[BaseException | object]:
    """What becomes of scans that are asked for at the same time."""
    scans = [asking.semgrep.scan(Pair(120, number)) for number in scan_ids]
    return list(await asyncio.gather(*scans, return_exceptions=True))
