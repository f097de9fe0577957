"""What is logged of each event: its level, its name, and its sentence for people. docs/logs.md lists them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import asdict

from etl.model import Pair
from etl.telemetry.events import (
    AnotherSync,
    ApiAway,
    ApiBack,
    BadLine,
    DatabaseAway,
    DatabaseBack,
    DeadRevived,
    DeploymentStopped,
    Event,
    GateClosed,
    GateOpened,
    LeasedByOthers,
    LeasesLost,
    ListingSkipped,
    MetricsLost,
    MoreOfAKind,
    NothingNew,
    NotifyFailed,
    OutOfReach,
    PaceFallen,
    PaceRegained,
    PaceReserved,
    PairDied,
    Preparing,
    Progress,
    RepositoriesUnread,
    RunEnded,
    RunStarted,
    Stopping,
    TokenReadAgain,
    TokenUseless,
    Walked,
    WalkedByRepository,
    WalkFailed,
    WorkAwaited,
)


class Line(NamedTuple):
    """How an event is logged. Its name is what filters look for, so it stays as it is."""

    level: str
    event: str
    sentence: Callable[[Any], str]


def level_of(event: Event) -> str:
    """The level of an event's line."""
    return "warning" if isinstance(event, RunEnded) and event.exit_code else LINES[type(event)].level


def fields_of(event: Event) -> dict[str, Any]:
    """The fields of an event that have a value; a pair is `120/123`."""
    return {
        name: f"{value.deployment_id}/{value.scan_id}" if isinstance(value, Pair) else value
        for name, value in asdict(event).items()
        if value is not None
    }


def _of(event: Any) -> str:
    """Whose event it is, where a token without a name is for all deployments."""
    return "" if event.deployment_id is None else f"deployment {event.deployment_id}: "


def _ended(event: RunEnded) -> str:
    counts = f"{event.fetched:,} fetched, {event.dead:,} dead, {event.remaining:,} remaining"
    reason = f": {event.stop_reason}" if event.stop_reason else ""
    how = f"{event.command} ended with exit code {event.exit_code} after {event.duration_seconds:,.1f} s"
    return f"{how}, {counts}{reason}"


def _progress(event: Progress) -> str:
    left = "" if event.seconds_left is None else f", {event.seconds_left:,} s left"
    return f"{event.done:,} of {event.total:,} done, {event.per_second:g} a second{left}"


def _preparing(event: Preparing) -> str:
    return f"reading, {event.lines_read:,} lines" if event.lines_read else f"listing, {event.to_fetch:,} scans to fetch"


def _again(event: DeploymentStopped) -> str:
    return "" if event.again_in_seconds is None else f"; next try in {event.again_in_seconds:g} s"


def _read_again(event: TokenReadAgain) -> str:
    found = event.problem or ("it has changed" if event.is_new else "it is the same")
    return f"deployment {event.deployment_id} was halted and is tried again; its token was read again: {found}"


def _gap(event: OutOfReach) -> str:
    period = f"between {event.from_at} and {event.until_at}"
    return f"deployment {event.deployment_id}: scans that started {period} are no longer available from the API"


LINES: dict[type[Event], Line] = {
    RunStarted: Line("info", "run started", lambda e: f"{e.command} started, into {e.database}"),
    RunEnded: Line("info", "run ended", _ended),
    Preparing: Line("info", "preparing", _preparing),
    Progress: Line("info", "progress", _progress),
    BadLine: Line("warning", "line skipped", lambda e: f"skipped: {e.text}"),
    GateClosed: Line("warning", "rate limited, waiting", lambda e: f"{_of(e)}rate limited, waiting {e.seconds:g} s"),
    GateOpened: Line("info", "rate limit over", lambda e: f"{_of(e)}the rate limit is over"),
    PaceReserved: Line(
        "info",
        "the token's rate is reserved by other workers, waiting",
        lambda e: f"{_of(e)}other workers have reserved the token's rate, waiting {e.seconds:g} s",
    ),
    PaceFallen: Line(
        "warning",
        "the API has refused more: the pace is below a tenth of [api] rate",
        lambda e: f"{_of(e)}the API refuses requests, the rate is down to {e.requests_per_second:g} a second",
    ),
    PaceRegained: Line(
        "info",
        "the pace is a tenth of [api] rate again, or more",
        lambda e: f"{_of(e)}the rate is back at {e.requests_per_second:g} requests a second",
    ),
    WorkAwaited: Line(
        "info",
        "nothing is due, waiting for retries and leases to end",
        lambda e: (
            f"nothing is due for {e.seconds:g} s: {e.retrying:,} pairs await a retry, {e.leased:,} are leased by others"
        ),
    ),
    LeasedByOthers: Line(
        "info",
        "pairs left to other workers, which have leased them",
        lambda e: f"{e.count:,} pairs are left to other workers, which have leased them",
    ),
    ApiAway: Line(
        "warning", "API unavailable, waiting", lambda e: f"{_of(e)}the API is unavailable, waiting: {e.reason}"
    ),
    ApiBack: Line(
        "info", "API available again", lambda e: f"{_of(e)}the API is available again, after {e.seconds:g} s"
    ),
    DatabaseAway: Line(
        "warning", "database unavailable, waiting", lambda e: f"the database is unavailable, waiting: {e.reason}"
    ),
    DatabaseBack: Line(
        "info", "database available again", lambda e: f"the database is available again, after {e.seconds:g} s"
    ),
    PairDied: Line(
        "warning",
        "dead letter",
        lambda e: f"{e.pair.deployment_id}/{e.pair.scan_id} is a dead letter ({e.error_kind}): {e.error}",
    ),
    DeadRevived: Line(
        "info",
        "dead letters whose reason may have passed are tried again",
        lambda e: f"{e.count:,} dead letters are tried again, their reason may have passed",
    ),
    DeploymentStopped: Line(
        "error",
        "deployment halted, its pairs stay queued",
        lambda e: f"deployment {e.deployment_id} is halted, its pairs stay queued: {e.reason}{_again(e)}",
    ),
    TokenReadAgain: Line("info", "asking again for a deployment that was halted, its token was read anew", _read_again),
    TokenUseless: Line(
        "error",
        "a token shows no deployment",
        lambda e: f"SEMGREP_APP_TOKEN shows no deployment: {e.reason}",
    ),
    LeasesLost: Line(
        "warning",
        "leases lost to another worker, nothing written for them",
        lambda e: f"{e.count:,} pairs took too long: other workers have them now",
    ),
    Walked: Line(
        "info",
        "list walked",
        lambda e: f"deployment {e.deployment_id}: list walked, {e.listed:,} scans, {e.queued:,} to fetch",
    ),
    WalkedByRepository: Line(
        "info",
        "the search doesn't list the deployment, walking repository by repository",
        lambda e: f"deployment {e.deployment_id}: walking {e.due:,} of {e.repositories:,} repositories: {e.reason}",
    ),
    RepositoriesUnread: Line(
        "warning",
        "repositories not listed, scans are found all the same",
        lambda e: f"deployment {e.deployment_id}: repositories not listed, scans are found all the same: {e.reason}",
    ),
    OutOfReach: Line(
        "warning",
        "discovery gap: scans started in this period are no longer available from the API",
        _gap,
    ),
    WalkFailed: Line(
        "error",
        "list not walked to its end, the next walk starts from the same watermark",
        lambda e: f"deployment {e.deployment_id}: list not walked to its end, so the watermark stays: {e.reason}",
    ),
    ListingSkipped: Line(
        "error",
        "the database refuses what the list says of a scan, skipped",
        lambda e: f"the listing of {e.pair.deployment_id}/{e.pair.scan_id} is skipped: {e.reason}",
    ),
    NothingNew: Line(
        "warning",
        "cursors repeat without new scans, taken for the end of the list",
        lambda e: f"deployment {e.deployment_id}: {e.pages:,} pages had nothing new, taken for the end of the list",
    ),
    AnotherSync: Line(
        "info",
        "another sync is at work, leaving it to that one",
        lambda e: (
            f"another sync has been at work since {e.started_at} ({e.other_run_id}), the work is left to that one"
        ),
    ),
    MetricsLost: Line(
        "error",
        "the metrics can't be written: check [observe] metrics_file",
        lambda e: f"the metrics can't be written into {e.file} ({e.reason}): check [observe] metrics_file",
    ),
    NotifyFailed: Line(
        "error",
        "nobody could be told: check [notify]",
        lambda e: f"the notification couldn't be sent ({e.reason}): check [notify]",
    ),
    MoreOfAKind: Line("info", "enough of a kind", lambda e: f"more of these are logged at level debug: {e.of}"),
    Stopping: Line("warning", "stopping", lambda e: f"stopping: {e.reason}"),
}
