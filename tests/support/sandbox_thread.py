"""A sandbox in a thread of its own, for tests that start the command and wait for it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from patience import PATIENCE_SECONDS

from etl.sandbox import Behaviour, Sandbox, World
from etl.sandbox.world import deployment_of

TOKEN = "sandbox-token"


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """A sandbox that listens at `base_url`, and what a command needs to know to use it."""

    sandbox: Sandbox
    base_url: str

    def environment(self, **additions: str) -> dict[str, str]:
        """The variables that point the command at this sandbox, quick enough for a test."""
        return {
            "SCAN_ETL_API__BASE_URL": self.base_url,
            "SCAN_ETL_API__RATE": "5000",
            "SCAN_ETL_QUEUE__BACKOFF_SECONDS": "0.1",
            "SEMGREP_APP_TOKEN": TOKEN,
            **additions,
        }

    def pairs_text(self) -> str:
        """All pairs of the world, as text lines."""
        world = self.sandbox.world
        ids = range(world.first_scan_id, world.first_scan_id + world.scans)
        return "".join(f"{deployment_of(world, scan_id).id} {scan_id}\n" for scan_id in ids)

    def details_requests(self) -> int:
        """How many requests for details it has seen."""
        return sum(count for (endpoint, _), count in self.sandbox.stats.requests.items() if endpoint == "details")


def finished_world(scans: int, **options: object) -> World:
    """Scans that were all over yesterday, so that their answers stay as they are."""
    opened_at = datetime.now(UTC) - timedelta(days=1)
    choices = {"never_finished_share": 0.0, "cancelled_share": 0.0, "scans_per_day": 1000.0, **options}
    return World(scans=scans, opened_at=opened_at, **choices)  # type: ignore[arg-type]  # the world checks them


def noting(instants: list[float]) -> Callable[[], datetime]:
    """A clock for the sandbox, which looks at it once a request: so `instants` says when each came."""

    def now() -> datetime:
        instants.append(time.monotonic())
        return datetime.now(UTC)

    return now


@contextmanager
def running_sandbox(
    world: World, behaviour: Behaviour | None = None, clock: Callable[[], datetime] | None = None, port: int = 0
) -> Iterator[RunningSandbox]:
    """Serve from another thread until the block ends, on a free port for port 0."""
    sandbox = Sandbox(world, behaviour, *([clock] if clock else []))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        base_url = asyncio.run_coroutine_threadsafe(sandbox.start(port=port), loop).result(PATIENCE_SECONDS)
        yield RunningSandbox(sandbox, base_url)
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.stop(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()
