"""Which kind of search an API has, as `doctor` finds it out: by one scan and one page of the repositories."""

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from etl.app.finding import Finding
from etl.errors import UNAVAILABLE_EXIT, ApiError, FatalError, ItemError, TransientError
from etl.model import RETENTION, Listing, Repository
from etl.pipeline.discovery import NEEDS_REPOSITORY
from etl.semgrep.client import Semgrep
from etl.transform.repositories_page import read_deployments, read_repositories
from etl.transform.search_page import read_page

T = TypeVar("T")


async def ask_for_scans(semgrep: Semgrep, deployment_id: int) -> list[Finding]:
    """Ask for one scan of a deployment, and for a page of its repositories."""
    repositories = await _or_error(_repositories(semgrep, deployment_id))
    scans = await _or_error(_scans(semgrep, deployment_id))
    return [
        Finding(f"search of {deployment_id}", *search_kind(scans, repositories, datetime.now(UTC))),
        repositories_finding(deployment_id, repositories),
    ]


async def _or_error(call: Awaitable[T]) -> T | ApiError:
    try:
        return await call
    except (TransientError, ItemError, FatalError) as error:
        return error


async def _scans(semgrep: Semgrep, deployment_id: int) -> Sequence[Listing]:
    found = await semgrep.search(deployment_id, None, "", limit=1)
    return read_page(deployment_id, found.document).listings


async def _repositories(semgrep: Semgrep, deployment_id: int) -> Sequence[Repository]:
    said = read_deployments((await semgrep.deployments(deployment_id)).document)
    slug = next((one.slug for one in said if one.deployment_id == deployment_id), None)
    if not slug:
        raise ItemError(f"the API gives no slug for deployment {deployment_id}", kind="no_slug")
    found = await semgrep.repositories(deployment_id, slug, 0)
    return read_repositories(deployment_id, found.document).repositories


class Kind(NamedTuple):
    """What is known of a search, and the exit code of a run that could find nothing with it."""

    sentence: str
    exit_code: int = 0


def search_kind(
    scans: Sequence[Listing] | ApiError, repositories: Sequence[Repository] | ApiError, now: datetime
) -> Kind:
    """How a sync will find scans."""
    if isinstance(scans, ApiError):
        if scans.http_status not in NEEDS_REPOSITORY:
            return Kind(str(scans), scans.stop_code if isinstance(scans, FatalError) else UNAVAILABLE_EXIT)
        if isinstance(repositories, ApiError):
            return Kind(f"it wants a repository, and these aren't listed: {scans}", UNAVAILABLE_EXIT)
        return Kind(f"it wants a repository, so a sync walks repository by repository: {scans}")
    if scans:
        return Kind("it lists the whole deployment")
    known = () if isinstance(repositories, ApiError) else repositories
    newer = [one for one in known if one.latest_scan_at and one.latest_scan_at > now - RETENTION]
    if newer:
        return Kind(f"it lists nothing, so a sync walks repository by repository: {len(newer)} show scans")
    return Kind("it lists nothing, and no repository shows a scan of the last 30 days")


def repositories_finding(deployment_id: int, repositories: Sequence[Repository] | ApiError) -> Finding:
    """Whether the API lists the repositories."""
    name = f"repositories of {deployment_id}"
    if isinstance(repositories, ApiError):
        return Finding(name, f"not listed, so it is unknown which are never scanned: {repositories}", warning=True)
    return Finding(name, f"{len(repositories)} on the first page")
