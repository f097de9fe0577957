"""What is counted of a deployment's scans of one day, for the rows of `scan_days`, `scan_groups`, `author_days` and
`coverage_days`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from sqlalchemy import Table

from etl.database.summaries import (
    KEY_LENGTH,
    OUTCOMES,
    PRODUCTS,
    STATES,
    author_days,
    coverage_days,
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


class DayCounts(NamedTuple):
    """The rows of one day by table, without their deployment and day, and since when a scan of it runs."""

    rows: dict[Table, list[Row]]
    running_since: datetime | None


def count_day(facts: Iterable[Fact], day: date | None) -> DayCounts:
    """Count what there is of a day; None: of no day that is believed."""
    scans: dict[str, list[Fact]] = defaultdict(list)
    covered: dict[str, list[Fact]] = defaultdict(list)
    groups: dict[tuple[Any, ...], list[Fact]] = defaultdict(list)
    authors: dict[str | None, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        key = fact.repository_key()
        covered[key].append(fact)
        if fact.outcome is not None:
            scans[key].append(fact)
            groups[_group(fact)].append(fact)
            authors[fact.commit_author_username][fact.outcome] += 1
    rows = {
        scan_days: [{"repository_key": key, **_scan_day(of_key, day)} for key, of_key in scans.items()],
        scan_groups: [{**dict(zip(_GROUP, key, strict=True)), **_sums(of_key)} for key, of_key in groups.items()],
        author_days: [{"commit_author_username": name, **_author(outcomes)} for name, outcomes in authors.items()],
        coverage_days: [{"repository_key": key, **_coverage(of_key)} for key, of_key in covered.items()],
    }
    running = (fact for of_key in scans.values() for fact in of_key if fact.outcome == "running")
    return DayCounts(rows, min(filter(None, (_since(fact, day) for fact in running)), default=None))


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


def _sums(facts: Sequence[Fact]) -> Row:
    return {
        "scans": len(facts),
        "findings": sum(_believed(fact.findings) or 0 for fact in facts),
        "duration_seconds_total": sum(fact.duration_seconds or 0.0 for fact in facts),
    }


def _believed(findings: int | None) -> int | None:
    return findings if findings is not None and abs(findings) <= LARGEST_BELIEVED else None


def _author(outcomes: Counter[str]) -> Row:
    return {"scans": outcomes.total(), "with_findings": outcomes[FINDINGS], "failed": outcomes["failed"]}


def _names(facts: Sequence[Fact]) -> Row:
    named = max(facts, key=lambda fact: (fact.repository is not None, *_age(fact)))
    return {"repository_id": named.repository_id, "repository": named.repository}


def _age(fact: Fact) -> tuple[float, int]:
    return fact.started_at.timestamp() if fact.started_at else 0.0, fact.scan_id


def _scan_day(facts: Sequence[Fact], day: date | None) -> Row:
    outcomes = Counter("with_findings" if fact.outcome == FINDINGS else fact.outcome for fact in facts)
    durations = [fact.duration_seconds for fact in facts if fact.duration_seconds is not None]
    full_scans = sum(1 for fact in facts if fact.is_full_scan)
    products = {product for fact in facts if fact.products for product in fact.products.split(",")}
    return {
        **_names(facts),
        **_sums(facts),
        **{name: outcomes[name] for name in OUTCOMES},
        "full_scans": full_scans,
        "diff_scans": len(facts) - full_scans,
        "timed": len(durations),
        "duration_seconds_longest": max(durations, default=None),
        "last_fetched_at": max(fact.fetched_at for fact in facts if fact.fetched_at),
        **_first_and_last(facts, day),
        **{f"last_{product}_day": day if product in products else None for product in PRODUCTS},
    }


def _first_and_last(facts: Sequence[Fact], day: date | None) -> Row:
    """What a day knows of the first scan, of the newest one, and of the newest full one that ended well."""
    dated = sorted((fact for fact in facts if fact.started_at), key=_age) if day else []
    full = [fact for fact in dated if fact.is_full_scan and fact.outcome in ("passed", FINDINGS)]
    return {
        "first_started_at": dated[0].started_at if dated else None,
        **_last(dated[-1] if dated else None),
        **_last_full(full[-1] if full else None),
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


def _coverage(facts: Sequence[Fact]) -> Row:
    states = Counter(fact.state() for fact in facts)
    return {
        **_names(facts),
        **{name: states[name] for name in STATES},
        "listed": states.total() - states["stored_unlisted"],
        "stored_without_end": sum(1 for fact in facts if not fact.has_end and fact.state() == "stored"),
        "details_gone": sum(1 for fact in facts if fact.outcome is None and fact.is_gone),
    }
