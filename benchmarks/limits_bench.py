"""How a run fares against an API that limits or fails: time against the ideal, and the share of refused requests.

    make bench-limits
    .venv/bin/python benchmarks/limits_bench.py [--rate R] [--seconds S] [--only PART-OF-A-NAME]

The real `scan-etl run`, with a ceiling of four times what the server allows, against servers of several kinds, a few
at the same time. The ideal time is that of a client which knows the limit: scans / R. In the cases without a limit the
ceiling is R, and the ideal time has what the trouble costs at best. The machine should be quiet.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from limiting_server import (
    HEADERS,
    Cap,
    Counts,
    FixedWindow,
    Limit,
    SlidingWindow,
    TokenBucket,
    Trouble,
    Unlimited,
    limiting,
    no_trouble,
)

AT_ONCE = 4
LIMITS: dict[str, Callable[[float], Limit]] = {
    "fixed window of 1 s": FixedWindow,
    "fixed window of 10 s": partial(FixedWindow, seconds=10.0),
    "sliding window of 1 s": SlidingWindow,
    "sliding window of 10 s": partial(SlidingWindow, seconds=10.0),
    "bucket of 1 s": TokenBucket,
    "bucket of 0.2 s": partial(TokenBucket, saved_seconds=0.2),
    "number at a time": Cap,
}


Odd = web.StreamResponse | str | None


def _503(retry_after: int) -> Odd:
    return web.Response(status=503, headers={"Retry-After": str(retry_after)})


def _away(answer: Callable[[], Odd], _: object, seconds: float, __: int) -> Odd:
    return answer() if 3 <= seconds < 13 else None


def _half_resets(*_: object) -> str | None:
    return "reset" if random.random() < 0.5 else None  # noqa: S311 - chance is what is played


def _slow(*_: object) -> str:
    return "slow"


def _a_few_503(_: object, __: float, number: int) -> Odd:
    return _503(1) if number % 200 == 100 else None


def _nothing_more(_: int, __: float) -> float:
    return 0.0


def _ten_seconds(_: int, __: float) -> float:
    return 10.0


TROUBLES: dict[str, tuple[Trouble, Callable[[int, float], float]]] = {
    "10 s of 500": (partial(_away, lambda: web.Response(status=500)), _ten_seconds),
    "10 s of 503, Retry-After 2": (partial(_away, lambda: _503(2)), _ten_seconds),
    "10 s of resets": (partial(_away, lambda: "reset"), _ten_seconds),
    "half of the answers resets": (_half_resets, lambda scans, rate: scans / rate),
    "bodies that take half a second": (_slow, _nothing_more),
    "one 503 in 200, Retry-After 1": (_a_few_503, lambda scans, _: scans / 200),
}
"""What goes wrong, and the seconds that it costs at best, by the scans and the rate."""


class Case(NamedTuple):
    """One run: `ceiling` is its rate, `ideal_seconds` what it would take at best."""

    name: str
    limit: Limit
    says: str
    trouble: Trouble
    scans: int
    ceiling: float
    ideal_seconds: float


def cases(rate: float, seconds: float) -> list[Case]:
    """All of them, for a server that allows `rate` and a run of `seconds`."""
    scans = round(rate * seconds)
    found = [
        Case(f"{name}, {says}", make(rate), says, no_trouble, scans, 4 * rate, scans / rate)
        for name, make in LIMITS.items()
        for says in HEADERS
    ]
    return found + [
        Case(name, Unlimited(), "none", trouble, scans, rate, scans / rate + lost_seconds(scans, rate))
        for name, (trouble, lost_seconds) in TROUBLES.items()
    ]


async def play(case: Case, at_once: asyncio.Semaphore) -> tuple[Counts, dict[str, Any]]:
    """Run it, and return what the server has seen and the summary of the run."""
    async with at_once, limiting(case.limit, case.says, case.trouble) as (base_url, counts):
        with tempfile.TemporaryDirectory() as folder:
            pairs = Path(folder) / "pairs.txt"
            pairs.write_text("".join(f"120 {number}\n" for number in range(1, case.scans + 1)))
            # Nothing of what the shell sets for a run: the settings measured are those here.
            others = ("SCAN_ETL_", "SEMGREP_")
            environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "etl", "run", str(pairs), "--json", "--log-level", "error"),
                *("--rate", str(case.ceiling), "--concurrency", "32"),
                cwd=folder,
                env={**environment, "SCAN_ETL_API__BASE_URL": base_url, "SEMGREP_APP_TOKEN": "bench"},
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
    return counts, json.loads(output)


async def main() -> None:
    """Play all cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--only", default="", help="a part of the names")
    given = parser.parse_args()
    at_once = asyncio.Semaphore(AT_ONCE)
    chosen = [case for case in cases(given.rate, given.seconds) if given.only in case.name]
    print(f"{chosen[0].scans:,} scans, {given.rate:g} a second allowed, a ceiling of {4 * given.rate:g}")
    print(f"{'server, what a refusal says':42} {'time/ideal':>10} {'429':>7} {'requests/scan':>14} {'lost':>5}")
    for case, task in [(case, asyncio.create_task(play(case, at_once))) for case in chosen]:
        counts, summary = await task
        lost = case.scans - summary["fetched"]
        print(
            f"{case.name:42} {counts.seconds / case.ideal_seconds:10.2f} {counts.refused / counts.requests:7.2%}"
            f" {counts.requests / case.scans:14.3f} {lost:5}",
            flush=True,
        )


if __name__ == "__main__":
    asyncio.run(main())
