"""The repositories that the sandbox lists, as the API's call for projects has them."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from etl.sandbox.world import (
    Deployment,
    World,
    deployment_of,
    exists,
    newest_id,
    repository_at,
    repository_index,
    started_at,
)

PAGE_SIZE_MOST = 100
KNOWN_BEFORE = timedelta(days=400)


class Projects:
    """The repositories of a world. It remembers the newest scan of each, for there is nowhere to look it up."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._looked_at = world.first_scan_id - 1
        self._latest: dict[int, dict[int, datetime]] = defaultdict(dict)  # by deployment and repository

    def page(self, deployment: Deployment, now: datetime, page: int, page_size: int) -> dict[str, Any]:
        """One page, from 0 on; empty behind the last one. Archived repositories are left out."""
        self._look(now)
        world, size = self._world, max(1, min(page_size, PAGE_SIZE_MOST))
        there = [index for index in range(world.repositories + world.idle_repositories) if exists(world, index, now)]
        return {"projects": [self._body(deployment, index, now) for index in there[page * size : (page + 1) * size]]}

    def _look(self, now: datetime) -> None:
        """Note the scans that have begun since the last look."""
        newest = newest_id(self._world, now)
        for scan_id in range(self._looked_at + 1, newest + 1):
            latest = self._latest[deployment_of(self._world, scan_id).id]
            latest[repository_index(self._world, scan_id)] = started_at(self._world, scan_id)
        self._looked_at = max(self._looked_at, newest)

    def _body(self, deployment: Deployment, index: int, now: datetime) -> dict[str, Any]:
        repository, latest = repository_at(self._world, index, now), self._latest[deployment.id].get(index)
        body: dict[str, Any] = {
            "id": repository.id,
            "name": repository.name,
            "url": repository.url,
            "tags": [f"team-{repository.name.split('/')[-1].split('-')[0]}"] if index % 3 else [],
            "created_at": str((self._world.opened_at or now) - KNOWN_BEFORE),
            "default_branch": "refs/heads/main",
        }
        if index % 4 == 0:
            body["primary_branch"] = "refs/heads/main"
        return body | ({"latest_scan_at": str(latest)} if latest else {})
