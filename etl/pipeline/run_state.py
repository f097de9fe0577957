"""What is asked of a run, and how it stands: what all of its parts share."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from etl.errors import FatalError
from etl.pipeline.stop import Stop
from etl.telemetry.events import EventSink, RunCounts


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the command line asks of a run. Without `files` it drains what is due in the queue.

    One that `discovers` does so first, and then drains what no run of files at work has. `since` is an instant,
    or so many seconds ago; None goes on where the last walk left off.
    """

    command: str
    files: tuple[str, ...] = ()
    refresh: bool = False
    strict: bool = False
    limit: int | None = None
    max_failures: int | None = None
    deadline_seconds: float | None = None
    forever: bool = False
    discovers: bool = False
    drains: bool = True
    since: datetime | float | None = None
    single: bool = False


class OpenWalks:
    """The deployments `of` which the lists are walked now, so that nothing of them is fetched yet; `NO_DEPLOYMENT` is
    among them until all walks are over. `news` is set whenever one is."""

    def __init__(self) -> None:
        self.of = set[int]()
        self.news = asyncio.Event()

    def end(self, *deployments: int) -> None:
        """The walks of these are over; without any, all are."""
        self.of.difference_update(deployments or set(self.of))
        self.news.set()


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands. Each of its parts looks at it and adds to it; where events go is here, too.

    `halted` has the deployments of which nothing is asked, and why; `unwalked` those whose list isn't walked to its
    end.
    """

    counts: RunCounts
    emit: EventSink
    stop: Stop = field(default_factory=Stop)
    halted: dict[int, FatalError] = field(default_factory=dict)
    unwalked: set[int] = field(default_factory=set)
    walks: OpenWalks = field(default_factory=OpenWalks)
