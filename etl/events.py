"""What a run tells those who watch it: one mutable count, and a frozen event for each decision worth a line."""

from collections.abc import Callable
from dataclasses import dataclass, field

from etl.model import Pair


@dataclass(slots=True)
class Tally:
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
    to_do: int = field(default=0)
    """Pairs that the run set out with: what a progress bar counts against. Not part of the summary."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of an input that names no pair. `text` is the whole sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class GateClosed:
    """The API refuses: nothing is asked of it for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GateOpened:
    """The wait is over, and requests go out again."""


@dataclass(frozen=True, slots=True)
class TokenUseless:
    """SEMGREP_APP_TOKEN shows no deployment. Those that have tokens of their own go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class ApiAway:
    """What worked before fails now, or no scan is shown at all: one probe an interval, until it works again."""

    reason: str


@dataclass(frozen=True, slots=True)
class ApiBack:
    """The API works again after `seconds`. No pair has spent an attempt on it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DatabaseAway:
    """The database doesn't answer; work goes on when it does."""

    reason: str


@dataclass(frozen=True, slots=True)
class DatabaseBack:
    """The database answers again, after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PairDied:
    """A pair became a dead letter."""

    pair: Pair
    error_kind: str
    error: str


@dataclass(frozen=True, slots=True)
class DeploymentStopped:
    """Nothing more of this deployment is asked; its pairs stay queued."""

    deployment_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeasesLost:
    """Verdicts that came too late: another worker had taken the pairs over."""

    count: int


@dataclass(frozen=True, slots=True)
class Walked:
    """The list of a deployment has been walked to its end. `since` is None for all that the API has."""

    deployment_id: int
    since: str | None
    pages: int
    listed: int
    queued: int


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """Scans of before `until_at` that nobody has listed can't be had any more: since `from_at`, None for ever."""

    deployment_id: int
    from_at: str | None
    until_at: str


@dataclass(frozen=True, slots=True)
class WalkFailed:
    """The list of a deployment couldn't be walked to its end; the next walk starts where this one did."""

    deployment_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class NothingNew:
    """Page after page, always with another cursor, has brought nothing new: that is taken for the end of the list."""

    deployment_id: int
    pages: int


@dataclass(frozen=True, slots=True)
class AnotherSync:
    """Another sync is at work, and this one was told to leave then."""

    run_id: str
    started_at: str


@dataclass(frozen=True, slots=True)
class MetricsLost:
    """The metrics of this run couldn't be written into their file."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run ends early, for `reason`; what is in flight may still finish."""

    reason: str


Event = (
    BadLine
    | GateClosed
    | GateOpened
    | ApiAway
    | ApiBack
    | DatabaseAway
    | DatabaseBack
    | PairDied
    | DeploymentStopped
    | TokenUseless
    | LeasesLost
    | Walked
    | OutOfReach
    | WalkFailed
    | NothingNew
    | AnotherSync
    | MetricsLost
    | Stopping
)
Tell = Callable[[Event], None]
