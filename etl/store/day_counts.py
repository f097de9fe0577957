"""What is counted of a deployment's scans of one day, for the rows of `scan_days`, `scan_groups`, `author_days`,
`coverage_days` and `deployment_days`."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from sqlalchemy import Table

from etl.database.summaries import (
    KEY_LENGTH,
    OUTCOMES,
    PRODUCTS,
    STATES,
    author_days,
    coverage_days,
    deployment_days,
    scan_days,
    scan_groups,
)

FINDINGS = "findings"
LARGEST_BELIEVED = 2**53 - 1
"""No scan has more findings: what goes beyond isn't summed up."""


class Fact(NamedTuple):
    """A scan that is stored, as `bi_scan` shows it, or else a listing, of which `outcome` is None."""

    repository_id: int | None
    repository: str | None
    scan_id: int
    started_at: datetime | None
    fetched_at: datetime | None
    outcome: str | None
    exit_code: int | None
    trigger_event: str | None
    is_pull_request: bool
    is_full_scan: bool | None
    duration_seconds: float | None
    findings: int | None
    findings_code: int | None
    findings_supply_chain: int | None
    findings_secrets: int | None
    products: str | None
    commit_author_username: str | None
    semgrep_version: str | None
    is_listed: bool
    has_end: bool
    is_queued: bool
    is_dead: bool
    is_gone: bool
    is_expired: bool
    is_dropped: bool

    def repository_key(self) -> str:
        """What a repository is within its deployment: its number, or else its name."""
        if self.repository_id is not None:
            return f"id:{self.repository_id}"
        return f"name:{self.repository or ''}"[:KEY_LENGTH]

    def state(self) -> str:
        """What became of a scan that was listed, or `stored_unlisted`."""
        if self.outcome is not None and not self.is_listed:
            return "stored_unlisted"
        if self.outcome is not None and (self.has_end or not self.is_queued):
            return "stored"
        if self.is_dropped and not (self.is_queued or self.is_dead or self.outcome):
            return "dropped"
        if self.is_expired:
            return "expired"
        if self.is_queued:
            return "waiting"
        return "dead" if self.is_dead or self.is_gone else "missing"


Row = dict[str, Any]
Duration = tuple[bool, float]
"""Whether a scan was a full one, and how many seconds it took."""


class DayCounts(NamedTuple):
    """The rows of one day by table, without their deployment and day, the durations of its scans, and since when one of
    them runs."""

    rows: dict[Table, list[Row]]
    durations: list[Duration]
    running_since: datetime | None


def count_day(facts: Iterable[Fact], day: date | None) -> DayCounts:
    """Count what there is of a day, one fact after the other; None: of no day that is believed."""
    repositories: dict[str, _Repository] = defaultdict(_Repository)
    groups: dict[tuple[Any, ...], _Sums] = defaultdict(_Sums)
    authors: dict[str | None, Counter[str]] = defaultdict(Counter)
    durations: list[Duration] = []
    running_since: datetime | None = None
    for fact in facts:
        repository = repositories[fact.repository_key()]
        repository.add_state(fact)
        if fact.outcome is None:
            continue
        repository.add_scan(fact)
        groups[_group(fact)].add(fact)
        authors[fact.commit_author_username][fact.outcome] += 1
        if fact.duration_seconds is not None:
            durations.append((bool(fact.is_full_scan), fact.duration_seconds))
        if fact.outcome == "running":
            running_since = min(filter(None, (running_since, _since(fact, day))), default=None)
    of_each = [{"repository_key": key, "started_day": day, **of.states_row()} for key, of in repositories.items()]
    scanned = {key: of for key, of in repositories.items() if of.sums.scans}
    rows = {
        scan_days: [{"repository_key": key, **of.scans_row(day)} for key, of in scanned.items()],
        scan_groups: [{**dict(zip(_GROUP, key, strict=True)), **sums.row()} for key, sums in groups.items()],
        author_days: [{"commit_author_username": name, **_author(outcomes)} for name, outcomes in authors.items()],
        coverage_days: of_each,
        deployment_days: [{name: sum(row[name] for row in of_each) for name in STATES}] if of_each else [],
    }
    return DayCounts(rows, durations, running_since)


def _since(fact: Fact, day: date | None) -> datetime | None:
    """Since when a scan runs; one without a start that is believed has done so when it was fetched, or before that."""
    return fact.started_at if day else fact.fetched_at


_GROUP = ("trigger_event", "is_pull_request", "is_full_scan", "outcome", "exit_code")


def _group(fact: Fact) -> tuple[Any, ...]:
    return (
        fact.trigger_event,
        bool(fact.is_pull_request),
        bool(fact.is_full_scan),
        fact.outcome,
        fact.exit_code,
    )


def _author(outcomes: Counter[str]) -> Row:
    return {"scans": outcomes.total(), "with_findings": outcomes[FINDINGS], "failed": outcomes["failed"]}


def _believed(findings: int | None) -> int | None:
    return findings if findings is not None and abs(findings) <= LARGEST_BELIEVED else None


@dataclass(slots=True)
class _Sums:
    """What adds up."""

    scans: int = 0
    findings: int = 0
    duration_seconds: float = 0.0

    def add(self, fact: Fact) -> None:
        self.scans += 1
        self.findings += _believed(fact.findings) or 0
        self.duration_seconds += fact.duration_seconds or 0.0

    def row(self) -> Row:
        return {"scans": self.scans, "findings": self.findings, "duration_seconds_total": self.duration_seconds}


_Age = tuple[datetime, int]
_NEVER = datetime.min.replace(tzinfo=UTC)
_NOBODY: tuple[_Age, None] = (_NEVER, -1), None


@dataclass(slots=True)
class _Repository:
    """A repository's scans of a day: what became of them, the counts, and those that say how it stands, each of these
    with its age."""

    states: Counter[str] = field(default_factory=Counter)
    without_end: int = 0
    gone: int = 0
    repository_id: int | None = None
    sums: _Sums = field(default_factory=_Sums)
    outcomes: Counter[str | None] = field(default_factory=Counter)
    products: set[str | None] = field(default_factory=set)
    full_scans: int = 0
    timed: int = 0
    longest_seconds: float | None = None
    fetched_at: datetime | None = None
    named: tuple[_Age, Fact | None] = _NOBODY
    first: tuple[_Age, Fact] | None = None
    last: tuple[_Age, Fact | None] = _NOBODY
    full: tuple[_Age, Fact | None] = _NOBODY

    def add_state(self, fact: Fact) -> None:
        state = fact.state()
        self.states[state] += 1
        self.repository_id = fact.repository_id
        if state == "stored" and not fact.has_end:
            self.without_end += 1
        if fact.outcome is None and fact.is_gone:
            self.gone += 1

    def add_scan(self, fact: Fact) -> None:
        self.sums.add(fact)
        self.outcomes[fact.outcome] += 1
        self.products.add(fact.products)
        if fact.is_full_scan:
            self.full_scans += 1
        if (seconds := fact.duration_seconds) is not None:
            self.timed += 1
            self.longest_seconds = seconds if self.longest_seconds is None else max(self.longest_seconds, seconds)
        if self.fetched_at is None or (fact.fetched_at and fact.fetched_at > self.fetched_at):
            self.fetched_at = fact.fetched_at
        self._place((fact.started_at or _NEVER, fact.scan_id), fact)

    def _place(self, age: _Age, fact: Fact) -> None:
        """Keep the first scan, the newest one, the newest that has a name, and the newest full one that ended well."""
        if fact.repository is not None and age > self.named[0]:
            self.named = age, fact
        if fact.started_at is None:
            return
        if self.first is None or age < self.first[0]:
            self.first = age, fact
        if age > self.last[0]:
            self.last = age, fact
        if fact.is_full_scan and fact.outcome in ("passed", FINDINGS) and age > self.full[0]:
            self.full = age, fact

    def _names(self) -> Row:
        named = self.named[1]
        return {"repository_id": self.repository_id, "repository": named and named.repository}

    def states_row(self) -> Row:
        return {
            **self._names(),
            **{name: self.states[name] for name in STATES},
            "listed": self.states.total() - self.states["stored_unlisted"],
            "stored_without_end": self.without_end,
            "details_gone": self.gone,
        }

    def scans_row(self, day: date | None) -> Row:
        products = {product for of_scan in self.products if of_scan for product in of_scan.split(",")}
        return {
            **self._names(),
            **self.sums.row(),
            **{name: self.outcomes[FINDINGS if name == "with_findings" else name] for name in OUTCOMES},
            "full_scans": self.full_scans,
            "diff_scans": self.sums.scans - self.full_scans,
            "timed": self.timed,
            "duration_seconds_longest": self.longest_seconds,
            "last_fetched_at": self.fetched_at,
            "first_started_at": self.first[1].started_at if self.first and day else None,
            **_last(self.last[1] if day else None),
            **_last_full(self.full[1] if day else None),
            **{f"last_{product}_day": day if product in products else None for product in PRODUCTS},
        }


def _last(last: Fact | None) -> Row:
    return {
        "last_started_at": last and last.started_at,
        "last_scan_id": last and last.scan_id,
        "last_outcome": last and last.outcome,
        "last_exit_code": last and last.exit_code,
        "last_products": last and last.products,
        "last_semgrep_version": last and last.semgrep_version,
    }


def _last_full(full: Fact | None) -> Row:
    return {
        "full_scan_id": full and full.scan_id,
        "full_started_at": full and full.started_at,
        "full_findings": full and _believed(full.findings),
        "full_findings_code": full and _believed(full.findings_code),
        "full_findings_supply_chain": full and _believed(full.findings_supply_chain),
        "full_findings_secrets": full and _believed(full.findings_secrets),
    }
