"""What a run tells those who watch it: one mutable count, and a frozen event for each decision worth a line."""

from collections.abc import Callable

from msgspec import Struct, field

from etl.model import Pair
from etl.telemetry.histogram import Histogram


class RunCounts(Struct):
    """The counts of one run so far. The names are those of the summary and of the columns of `runs`."""

    requested: int = 0
    invalid: int = 0
    duplicate: int = 0
    already_final: int = 0
    discovered: int = 0
    requests: int = 0
    fetched: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    waiting: int = 0
    retried: int = 0
    rate_limited: int = 0
    dead: int = 0
    remaining: int = 0
    running: int = 0
    """Pairs that still run, and that this run has stored as seen. Not part of the summary."""
    died_running: int = 0
    """Pairs that this run has stored while they ran, and given up after that. Not part of the summary."""
    to_do: int = 0
    """Pairs that the run set out with: what a progress bar counts against. Not part of the summary."""
    request_seconds: Histogram = field(default_factory=Histogram)
    """How long the API took for each request. Not part of the summary."""


class RunStarted(Struct, frozen=True):
    """A run begins, with these settings: the first line of each."""

    command: str
    version: str
    database: str
    rate: float
    concurrency: int


class RunEnded(Struct, frozen=True):
    """A run is over: the last line of each. A warning where the exit code isn't 0."""

    command: str
    exit_code: int
    stop_reason: str | None
    duration_seconds: float
    discovered: int
    requests: int
    fetched: int
    waiting: int
    dead: int
    remaining: int


class Preparing(Struct, frozen=True):
    """What a run does before it fetches: `lines_read` of its files so far, or `to_fetch` of the scans listed so far."""

    lines_read: int
    to_fetch: int


class Progress(Struct, frozen=True):
    """How far a run is, every ten seconds, if that has changed. `done` are fetched or dead letters."""

    done: int
    total: int
    per_second: float
    retried: int
    rate_limited: int
    dead: int
    seconds_left: int | None


class BadLine(Struct, frozen=True):
    """A line of an input that names no pair. `text` is the whole sentence."""

    text: str


class GateClosed(Struct, frozen=True):
    """The API refuses requests: none is sent for `seconds`. Without `deployment_id` it is SEMGREP_APP_TOKEN."""

    deployment_id: int | None
    seconds: float


class GateOpened(Struct, frozen=True):
    """The wait is over, and requests go out again."""

    deployment_id: int | None


class PaceReserved(Struct, frozen=True):
    """Other workers have reserved the token's rate, or one of them was refused: no request is sent for `seconds`."""

    deployment_id: int | None
    seconds: float


class PaceFallen(Struct, frozen=True):
    """The API has refused so much that the pace is below a tenth of `[api] rate`."""

    deployment_id: int | None
    requests_per_second: float


class PaceRegained(Struct, frozen=True):
    """The pace is a tenth of `[api] rate` again, or more."""

    deployment_id: int | None
    requests_per_second: float


class WorkAwaited(Struct, frozen=True):
    """Nothing is due: the run waits `seconds` for `retrying` pairs that failed, or that other workers have leased."""

    seconds: float
    retrying: int
    leased: int


class LeasedByOthers(Struct, frozen=True):
    """The run ends, and leaves `count` pairs to other workers that have leased them. If one of those was killed, its
    pairs come back within `[queue] lease_seconds`, and the next run takes them."""

    count: int


class TokenUseless(Struct, frozen=True):
    """SEMGREP_APP_TOKEN sees no deployment. Deployments with a token of their own go on."""

    reason: str


class ApiAway(Struct, frozen=True):
    """What worked before fails, or the API shows no scan at all: one probe an interval is sent until it works again."""

    deployment_id: int | None
    reason: str


class ApiBack(Struct, frozen=True):
    """The API works again after `seconds`. No pair has spent an attempt on it."""

    deployment_id: int | None
    seconds: float


class DatabaseAway(Struct, frozen=True):
    """The database doesn't answer; work goes on when it does."""

    reason: str


class DatabaseBack(Struct, frozen=True):
    """The database answers again, after `seconds`."""

    seconds: float


class PairDied(Struct, frozen=True):
    """A pair became a dead letter: a line for the first of each kind of error, the others at level debug."""

    pair: Pair
    error_kind: str
    error: str


class DeadRevived(Struct, frozen=True):
    """`count` dead letters are tried again, for their reason may have passed."""

    count: int


class DeploymentStopped(Struct, frozen=True):
    """No more requests are sent for this deployment; its pairs stay queued. A worker tries again in
    `again_in_seconds`."""

    deployment_id: int
    reason: str
    again_in_seconds: float | None = None


class TokenReadAgain(Struct, frozen=True):
    """It is time to ask again for a deployment that was refused. Its token was read again: whether that is a new one,
    and what is wrong where it couldn't be read."""

    deployment_id: int
    is_new: bool
    problem: str | None = None


class LeasesLost(Struct, frozen=True):
    """Outcomes that came too late: another worker had taken the pairs over."""

    count: int


class Walked(Struct, frozen=True):
    """The list of a deployment was walked to its end. Without `since` that was all the API has."""

    deployment_id: int
    since: str | None
    pages: int
    listed: int
    queued: int


class WalkedByRepository(Struct, frozen=True):
    """The search doesn't list the deployment, for `reason`: of its repositories those that are due are walked."""

    deployment_id: int
    due: int
    repositories: int
    reason: str


class RepositoriesUnread(Struct, frozen=True):
    """The repositories of a deployment couldn't be listed. Its scans are found all the same."""

    deployment_id: int
    reason: str


class OutOfReach(Struct, frozen=True):
    """Scans that started from `from_at` to `until_at` were never listed, and are no longer available."""

    deployment_id: int
    from_at: str
    until_at: str


class WalkFailed(Struct, frozen=True):
    """The list of a deployment couldn't be walked to its end; the next walk starts where this one did."""

    deployment_id: int
    reason: str


class ListingSkipped(Struct, frozen=True):
    """The database refuses the listing of a scan even without its `extra`. The walk goes on without it."""

    pair: Pair
    reason: str


class NothingNew(Struct, frozen=True):
    """Page after page, each with another cursor, had no new scan: that is taken for the end of the list."""

    deployment_id: int
    pages: int


class AnotherSync(Struct, frozen=True):
    """Another sync is at work, and this one has `--single`."""

    other_run_id: str
    started_at: str


class MetricsLost(Struct, frozen=True):
    """The metrics of this run couldn't be written into their file."""

    file: str
    reason: str


class NotifyFailed(Struct, frozen=True):
    """The notification of [notify] couldn't be sent. The next run tries again."""

    reason: str


class MoreOfAKind(Struct, frozen=True):
    """The event named `of` was logged often enough for an hour: further ones are at level debug."""

    of: str


class Stopping(Struct, frozen=True):
    """The run ends early, for `reason`; what is in flight may still finish."""

    reason: str


Event = (
    RunStarted
    | RunEnded
    | Preparing
    | Progress
    | BadLine
    | GateClosed
    | GateOpened
    | PaceReserved
    | PaceFallen
    | PaceRegained
    | WorkAwaited
    | ApiAway
    | ApiBack
    | DatabaseAway
    | DatabaseBack
    | PairDied
    | DeadRevived
    | DeploymentStopped
    | TokenReadAgain
    | LeasedByOthers
    | TokenUseless
    | LeasesLost
    | Walked
    | WalkedByRepository
    | RepositoriesUnread
    | OutOfReach
    | WalkFailed
    | ListingSkipped
    | NothingNew
    | AnotherSync
    | MetricsLost
    | NotifyFailed
    | MoreOfAKind
    | Stopping
)
EventSink = Callable[[Event], None]
