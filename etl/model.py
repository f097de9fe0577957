"""The frozen data that every floor shares, and no more behaviour than it needs. No imports from the floors above.

Tuples are what become rows or keys; a lease and an outcome are structs, which take a quarter of the time to make.
"""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct

INT64_MAX = 2**63 - 1
LAST_INSTANT = datetime.max.replace(tzinfo=UTC)
RETENTION = timedelta(days=30)
"""How long the API shows a scan after its start, as far as is known."""
SLACK = timedelta(days=1)
"""By so much two clocks may be apart, and both be right."""


def retention_end(started_at: datetime) -> datetime:
    """When the API forgets a scan that began then; at the end of all time if that is sooner."""
    return started_at + min(RETENTION, LAST_INSTANT - started_at)


NO_DEPLOYMENT = 0
"""No deployment has this id: whoever asks for its token gets the one for all."""
PAGE_SIZE = 500
"""The most scans that the search call puts on a page."""
STILL_RUNNING = "still_running"
"""The `error_kind` of a queue row whose scan had not finished when it was looked at or listed."""


RUN_COUNTS = {
    "requested": "lines of the input",
    "invalid": "lines that name no pair",
    "duplicate": "pairs that were named before",
    "already_final": "scans that were stored and final before, or that another process has stored meanwhile",
    "discovered": "pairs that discovery queued",
    "requests": "HTTP requests sent",
    "fetched": "scans stored: inserted, updated and unchanged",
    "inserted": "scans that were new",
    "updated": "scans that had changed",
    "unchanged": "scans that were as they are stored",
    "waiting": "scans that still run, to be looked at again",
    "retried": "requests that were repeated, at once or later",
    "rate_limited": "requests that were answered with 429",
    "dead": "pairs that became dead letters",
    "remaining": "pairs that are still to be fetched",
}
"""The counts in the summary of a run, in the order in which they are shown, and what each counts. Each is a column of
`runs`."""


class ColumnType(StrEnum):
    """What a column holds, in one word whatever the database calls it. Instants are UTC with microseconds."""

    BIGINT = "bigint"
    DOUBLE = "double"
    BOOLEAN = "boolean"
    DATE = "date"
    TIMESTAMP = "timestamp"
    TEXT = "text"
    JSON = "json"


class Pair(NamedTuple):
    """What is asked of the API: one scan of one deployment. Both ids are 1 to 2^63-1."""

    deployment_id: int
    scan_id: int


class Drift(NamedTuple):
    """A difference between the documented answer and what came.

    `path` has the form `meta.scan_environment`; `kind` is one of the `DRIFT_*` words in `readers` and `sanitize`.
    """

    path: str
    kind: str


class StatItem(NamedTuple):
    """One number of a map inside `stats`."""

    category: str
    name: str
    value: float


class ScanRows(NamedTuple):
    """One answer, flattened: the values of every row it becomes, by column.

    `scan`, `meta` and `stats` have the columns of their list in `transform/fields.py`, in its order, and `extra`, which
    is JSON text with sorted keys, or None. The key and the bookkeeping columns aren't in them. `final` means that the
    scan has completed; `content_hash` is 32 hex digits over all values that aren't null, so equal hashes mean equal
    rows.
    """

    pair: Pair
    fetched_at: datetime
    final: bool
    content_hash: str
    scan: dict[str, Any]
    products: tuple[str, ...]
    meta: dict[str, Any]
    stats: dict[str, Any]
    languages: tuple[dict[str, Any], ...]
    items: tuple[StatItem, ...]
    drift: tuple[Drift, ...]


class Listing(NamedTuple):
    """What the search call says of one scan. `extra` holds what has no column."""

    pair: Pair
    status: str | None
    is_full_scan: bool | None
    findings_total: int | None
    findings_code: int | None
    findings_supply_chain: int | None
    findings_secrets: int | None
    total_time_seconds: float | None
    branch: str | None
    commit_sha: str | None
    repository_id: int | None
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None
    extra: dict[str, Any] | None


class Deployment(NamedTuple):
    """What the API says of a deployment. `extra` holds what has no column."""

    deployment_id: int
    slug: str | None
    name: str | None
    extra: dict[str, Any] | None


class Repository(NamedTuple):
    """What the API says of a repository. `extra` holds what has no column."""

    repository_id: int
    name: str | None
    url: str | None
    tags: list[str] | None
    default_branch: str | None
    primary_branch: str | None
    created_at: datetime | None
    latest_scan_at: datetime | None
    extra: dict[str, Any] | None


class WalkedRepository(NamedTuple):
    """A repository as it is known: by the last pass over all of them, and by the last walk of its scans.

    `walked_at`, `walked_latest_scan_at` and `newest_started_at` are of that walk, None where there was none. `room_at`
    is the start of the listed scan at the place that was asked for, None where there are fewer.
    """

    repository_id: int
    latest_scan_at: datetime | None
    gone_at: datetime | None
    walked_at: datetime | None
    walked_latest_scan_at: datetime | None
    newest_started_at: datetime | None
    room_at: datetime | None


class SearchResponse(NamedTuple):
    """The decoded answer of a search, and the time by the API's clock; by ours where it doesn't say."""

    document: object
    at: datetime


class Unsettled(NamedTuple):
    """A listed scan whose outcome may still change. `display_url` counts from the newest listing, which has 1."""

    pair: Pair
    started_at: datetime
    place: int
    is_open: bool


class PreviousPasses(NamedTuple):
    """Where the last complete walk left off: `base` is where the next one starts at the latest, `complete_since` at the
    earliest.

    `known` scans are listed after it; `room_at` is the start of the scan at the place that was asked for, None where
    there are fewer. `unsettled` ones started before it, the newest first.
    """

    walked_at: datetime
    base: datetime
    complete_since: datetime
    known: int
    room_at: datetime | None
    unsettled: tuple[Unsettled, ...]


class ListingPass(NamedTuple):
    """A walk that has reached the end of the list. `since` is None for all that the API has. It began at `walked_at`,
    and its last page came at `ended_at`.

    A `partial` one was told where to begin: it moves the watermark only if it left nothing out. One that `replaces` the
    watermark has found it further ahead than any clock: nothing that it says counts. With a `repository` it is that
    one's list, with a watermark of its own.
    """

    deployment_id: int
    since: datetime | None
    walked_at: datetime
    ended_at: datetime
    newest_started_at: datetime | None
    partial: bool
    to_wake: tuple[Pair, ...]
    replaces: bool = False
    repository: WalkedRepository | None = None


class WatermarkMove(NamedTuple):
    """What became of the watermark. Scans that started from `from_at` to `until_at` were never listed, and are
    no longer available. Before the first walk nobody could list any: that is no gap."""

    moved: bool
    from_at: datetime | None
    until_at: datetime | None


class Lease(Struct, frozen=True):
    """A pair that this process may work on until the lease ends. `attempts` counts the failures so far.

    After `expires_at` the API doesn't know the scan any more; it may be gone earlier.
    """

    pair: Pair
    attempts: int
    expires_at: datetime


class Complete(Struct, frozen=True):
    """Outcome: the answer is stored, and nothing is left to do for this pair. `again`: this run has counted the scan
    already, when it stored it as one that still ran."""

    rows: ScanRows
    again: bool = False


class Snooze(Struct, frozen=True):
    """Outcome: the answer is stored, but the scan still runs: look again in `delay_seconds`.

    After `expires_at` the API doesn't know the scan any more.
    """

    rows: ScanRows
    delay_seconds: float
    expires_at: datetime
    again: bool = False


class Retry(Struct, frozen=True):
    """Outcome: nothing is stored; look at this pair again in `delay_seconds`. `attempts` is its new count."""

    pair: Pair
    delay_seconds: float
    attempts: int
    error_kind: str | None
    error: str | None


class Discard(Struct, frozen=True):
    """Outcome: give up on this pair and keep the reason. Where that may pass, the pair is tried again in
    `again_in_seconds`, if its scan hasn't expired by then."""

    pair: Pair
    attempts: int
    error_kind: str
    error: str
    http_status: int | None
    again_in_seconds: float | None = None


class Release(Struct, frozen=True):
    """Outcome: the pair goes back to the queue as it was."""

    pair: Pair


Outcome = Complete | Snooze | Retry | Discard | Release


def pair_of(outcome: Outcome) -> Pair:
    """The pair that an outcome is about."""
    return outcome.rows.pair if isinstance(outcome, (Complete, Snooze)) else outcome.pair


class Settled(NamedTuple):
    """What a batch of outcomes changed. `lost` counts outcomes whose lease had passed to another worker."""

    inserted: int
    updated: int
    unchanged: int
    waiting: int
    later: int
    dead: int
    released: int
    lost: int


class Enqueued(NamedTuple):
    """What became of the pairs of one input: `valid` = duplicate + already_final + queued."""

    valid: int
    duplicate: int
    already_final: int
    queued: int
