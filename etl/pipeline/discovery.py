"""Finding scans: walk the search call's list of each deployment, and queue what is new or not final.

No HTTP and no SQL here: what a walk needs is handed in as `Ports`.

The list goes back 30 days and is asked from an instant on, so a walk starts where the last complete one left off, less
an overlap: scans change their status after they were listed, and pages shift while they are read. A page holds 500
scans whatever it is asked for, so the overlap is as long as it costs nothing. Beyond it, a scan that is still open
costs a look at its details, unless walking back to it is cheaper. And on a night with news a small part of the
requests goes into walking back to those that the API calls never finished, for some of them finish after all.
"""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from etl.config.settings import Settings
from etl.errors import FatalError, ItemError, RefusedError, StoppedError, TransientError, foremost
from etl.model import PAGE_SIZE, RETENTION, SLACK, PreviousPasses
from etl.pipeline.repositories import ROOM, Repositories, known_repositories, list_repositories, walk_by_repository
from etl.pipeline.run_state import RunState
from etl.pipeline.walk import Ports, Start, Walker
from etl.telemetry.events import DeploymentStopped, RepositoriesUnread, WalkFailed

DEEPER_SHARE = 0.04
"""The part of the requests of a night with news that may go into pages for late changes. Whatever the size of the
deployment it reaches back 20 days: each scan of a day makes 0.06 pages of 30 days."""
NEEDS_REPOSITORY = frozenset({400, 422})
"""How a search refuses that wants a repository."""


async def discover(
    ports: Ports, deployments: Collection[int], settings: Settings, since: datetime | float | None, state: RunState
) -> None:
    """Walk the lists of these deployments, side by side. Those whose list wasn't walked to its end stay `unwalked`, and
    those that can't be asked are `halted`, as soon as that is known.

    `since` is an instant, or so many seconds ago; None goes on where the last walk left off. Raises what no deployment
    is to blame for: DatabaseError, but not a page that the database refuses, and bugs.
    """
    state.unwalked.update(deployments)
    state.walks.of.update(deployments)
    try:
        async with asyncio.TaskGroup() as tasks:
            for deployment_id in sorted(set(deployments)):
                tasks.create_task(_Discovery(ports, deployment_id, settings, since, state).run())
    except BaseExceptionGroup as group:
        raise foremost(group) from None


class _Discovery:
    """The walks of one deployment in this run."""

    def __init__(
        self,
        ports: Ports,
        deployment_id: int,
        settings: Settings,
        since: datetime | float | None,
        state: RunState,
    ) -> None:
        self.ports, self.deployment_id = ports, deployment_id
        self.settings, self.since, self.state = settings, since, state
        self.walker = Walker(ports, deployment_id, settings, state)

    async def run(self) -> None:
        """Find what is new; and if there is something, what has changed late. Then, however that ended, what was found
        may be fetched."""
        try:
            await self.find()
        except FatalError as error:
            self.state.halted[self.deployment_id] = error
            self.state.emit(DeploymentStopped(self.deployment_id, str(error)))
        except (TransientError, ItemError, RefusedError) as error:
            self.state.emit(WalkFailed(self.deployment_id, str(error)))
        except StoppedError:
            pass  # the stop has emitted its reason
        else:
            self.state.unwalked.discard(self.deployment_id)
        finally:
            self.state.walks.end(self.deployment_id)

    async def find(self) -> None:
        """Walk from where the last walk left off; then further back, where that may find late changes. Where the list
        of the deployment doesn't come, walk repository by repository."""
        previous, replaces = await self.previous_passes()
        since = None if replaces and self.since is None else await self.start(previous)
        start = Start(since, previous, self.since is not None, replaces)
        try:
            reading = await self.walker.read(start)
        except ItemError as error:
            if error.http_status not in NEEDS_REPOSITORY:
                raise
            await self.walk_after_refusal(start, error)
            return
        repositories = None if reading.listed else await self.repositories()
        if repositories is not None and (repositories.were_walked or repositories.newer(since)):
            await walk_by_repository(self.walker, start, repositories, "its list is empty")
            return
        queued = await self.walker.finish(reading)
        if previous is not None and self.since is None:
            deeper = start_of_deeper_walk(previous, since, queued)
            if deeper is not None:
                await self.walker.walk(Start(deeper, previous, partial=True))
        await self.name_repositories()

    async def walk_after_refusal(self, start: Start, refusal: ItemError) -> None:
        """Walk repository by repository. The refusal if there is none, for then it may have another reason."""
        try:
            repositories = await known_repositories(self.walker)
        except ItemError as error:
            raise ItemError(f"{refusal}; and the repositories: {error}", kind=error.kind) from error
        if not repositories.known:
            raise refusal
        await walk_by_repository(self.walker, start, repositories, str(refusal))

    async def repositories(self) -> Repositories | None:
        """The repositories, to compare an empty list with; None where the API doesn't list them."""
        try:
            return await known_repositories(self.walker)
        except ItemError as error:
            self.state.emit(RepositoriesUnread(self.deployment_id, str(error)))
            return None

    async def name_repositories(self) -> None:
        """List the repositories now and then. Where that fails the walk is as good."""
        if not await self.ports.wants_repositories(self.deployment_id):
            return
        try:
            await list_repositories(self.ports, self.deployment_id, lambda ask: ask())
        except (TransientError, ItemError, RefusedError, FatalError) as error:
            self.state.emit(RepositoriesUnread(self.deployment_id, str(error)))

    async def previous_passes(self) -> tuple[PreviousPasses | None, bool]:
        """What is known of the walks before, and whether this one replaces it: a watermark that is further ahead than
        two clocks may be apart, of the API's clock and of ours, was written by a wrong clock."""
        previous = await self.ports.previous_passes(self.deployment_id, ROOM)
        if previous is None or previous.walked_at <= datetime.now(UTC) + SLACK:
            return previous, False
        is_ahead = previous.walked_at > await self.walker.patiently(self.ports.api_time) + SLACK
        return (None, True) if is_ahead else (previous, False)

    async def start(self, previous: PreviousPasses | None) -> datetime | None:
        """Where the walk begins; None for all that the API has."""
        since = self.since
        if isinstance(since, datetime):
            return since
        seconds = since if since is not None else self.settings.discover.lookback_seconds
        if since is None and previous is not None:
            return start_of_walk(previous)
        if seconds >= RETENTION.total_seconds():
            return None
        return await self.walker.patiently(self.ports.api_time) - timedelta(seconds=seconds)


# Where a walk begins


def start_of_walk(previous: PreviousPasses) -> datetime:
    """Where the next walk begins, for as few requests as there can be; of two such starts it is the earlier one.
    What the first walk was told to leave out stays out.

    Each scan that is still open and older than the start costs a request for its details.
    """
    open_scans = [one for one in previous.unsettled if one.is_open]
    start, known, fewest = previous.base, previous.known, _pages(previous.known) + len(open_scans)
    for nth, one in enumerate(open_scans, 1):
        requests = _pages(one.place) + len(open_scans) - nth
        if requests <= fewest:
            start, known, fewest = _just_before(one.started_at), one.place, requests
    if known < ROOM:
        oldest = previous.base - RETENTION
        start = min(start, previous.room_at or oldest)
    return max(start, previous.complete_since)


def start_of_deeper_walk(previous: PreviousPasses, start: datetime | None, queued: int) -> datetime | None:
    """Where to walk back to for late changes, after `queued` pairs were found from `start` on; None if not at all."""
    pages = int(queued * DEEPER_SHARE)
    within = [one for one in previous.unsettled if one.place + queued <= pages * PAGE_SIZE]
    older = [one for one in within if start is not None and previous.complete_since < one.started_at <= start]
    return _just_before(older[-1].started_at) if older else None


def _pages(scans: int) -> int:
    return max(1, -(-scans // PAGE_SIZE))


def _just_before(at: datetime) -> datetime:
    return at - timedelta(seconds=1)
