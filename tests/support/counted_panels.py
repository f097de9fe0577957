"""What a dashboard shows of the scans in `reported_scans`, counted by hand: panel by panel of Grafana's."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from grafana_panels import TimeRange
from reported_scans import MIDDAY, NAMES, STALE_REPOSITORY, listing, two_months

DAYS, TODAY = 30, MIDDAY.date()
RANGE = TimeRange(MIDDAY - timedelta(days=DAYS - 1, hours=-5), MIDDAY - timedelta(hours=11))
"""It begins late on its first day and ends early on its last: both are whole days nevertheless."""
FIRST, LAST = (instant.date() for instant in RANGE)
EACH_DAY = [FIRST + timedelta(days=number) for number in range(DAYS)]
FIRST_BEFORE = FIRST - timedelta(days=DAYS)
REPOSITORIES = {120: 7, 130: 6}
"""Of two_months, and one that was never scanned."""
LISTED = [*(listing(number, 3) for number in (900, 901, 902)), listing(1, 2), listing(950, 40)]
"""One of them is stored. Of the others DEAD are dead letters, and the rest is held by nothing."""
DEAD = (900, 950)
MEANINGS = {2: ("the scanner failed", "scanner"), 137: ("not documented", None)}
Rows = list[tuple[Any, ...]]


class Scan(NamedTuple):
    """What is known of a scan before anything is stored."""

    deployment_id: int
    scan_id: int
    repository_id: int
    repository: str
    started_at: datetime
    seconds: float
    exit_code: int
    is_full: bool
    findings: int
    by_product: dict[str, int]
    products: tuple[str, ...]

    @property
    def day(self) -> date:
        return self.started_at.date()

    @property
    def outcome(self) -> str:
        return {0: "passed", 1: "findings"}.get(self.exit_code, "failed")

    @property
    def key(self) -> tuple[int, int]:
        return self.deployment_id, self.repository_id


def known() -> Iterator[Scan]:
    for rows in two_months():
        started_at, completed_at = rows.scan["started_at"], rows.scan["completed_at"]
        yield Scan(
            *rows.pair,
            rows.scan["repository_id"],
            rows.meta["repository"],
            started_at,
            (completed_at - started_at).total_seconds(),
            rows.scan["exit_code"],
            rows.meta["is_full_scan"],
            rows.stats["findings"],
            {item.name: int(item.value) for item in rows.items if item.category == "findings_by_product"},
            rows.products,
        )


class Period(NamedTuple):
    """Scans of whole days, of the deployments that are chosen; `before` are those of as many days before."""

    chosen: Collection[int]
    all: Sequence[Scan]
    now: Sequence[Scan]
    before: Sequence[Scan]

    @property
    def repositories(self) -> int:
        return sum(REPOSITORIES[each] for each in self.chosen)

    @property
    def has_listed(self) -> bool:
        return 120 in self.chosen


def period(chosen: Collection[int]) -> Period:
    scans = [scan for scan in known() if scan.deployment_id in chosen]
    now = [scan for scan in scans if FIRST <= scan.day <= LAST]
    return Period(chosen, scans, now, [scan for scan in scans if FIRST_BEFORE <= scan.day < FIRST])


def at(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def percent(part: float, whole: float) -> float:
    return 100 * part / whole


def failed(scans: Iterable[Scan]) -> int:
    return sum(scan.outcome == "failed" for scan in scans)


def percentile(seconds: Iterable[float], share: float) -> float:
    """On the line between the two that are nearest."""
    ordered = sorted(seconds)
    below, rest = divmod(share * (len(ordered) - 1), 1)
    following = ordered[min(int(below) + 1, len(ordered) - 1)]
    return ordered[int(below)] + rest * (following - ordered[int(below)])


def found(scans: Iterable[Scan], until: date) -> list[int]:
    """All, code, supply chain, secrets: of each repository's newest full scan that has ended well."""
    newest: dict[tuple[int, int], Scan] = {}
    for scan in scans:
        if scan.is_full and scan.outcome != "failed" and scan.day <= until:
            newest[scan.key] = max(newest.get(scan.key, scan), scan, key=lambda each: (each.started_at, each.scan_id))
    counts = [
        [scan.findings, *(scan.by_product[name] for name in ("sast", "sca", "secrets"))] for scan in newest.values()
    ]
    return [sum(column) for column in zip(*counts, strict=True)]


def weeks(first: date, last: date) -> list[date]:
    monday = first - timedelta(days=first.weekday())
    return [monday + timedelta(days=number) for number in range(0, (last - monday).days + 1, 7)]


def scanned(of: Period) -> Rows:
    counts = [len({scan.key for scan in scans}) for scans in (of.before, of.now)]
    return [(at(day), count, of.repositories - count) for day, count in zip((FIRST_BEFORE, FIRST), counts, strict=True)]


def failure_rate(of: Period) -> Rows:
    return [(at(day), percent(failed(s), len(s))) for day, s in ((FIRST_BEFORE, of.before), (FIRST, of.now))]


def p95(of: Period) -> Rows:
    both = ((FIRST_BEFORE, of.before), (FIRST, of.now))
    return [(at(day), percentile((scan.seconds for scan in scans), 0.95)) for day, scans in both]


def findings_change(of: Period) -> Rows:
    sunday = FIRST - timedelta(days=FIRST.weekday() + 1)
    return [(at(sunday), found(of.all, sunday)[0]), (at(LAST), found(of.all, TODAY)[0])]


def lost(of: Period) -> Rows:
    return [(at(FIRST_BEFORE), 1 * of.has_listed), (at(FIRST), 3 * of.has_listed)]


def data_until(of: Period) -> Rows:
    return [(max(scan.started_at for scan in of.all).timestamp() * 1000, None)]


def stale(of: Period) -> Rows:
    never: Rows = [("acme/idle", NAMES[120], None)] if 120 in of.chosen else []
    newest = {
        scan.deployment_id: scan.started_at
        for scan in sorted(of.all, key=lambda each: each.started_at)
        if scan.repository_id == STALE_REPOSITORY
    }
    rows = [(f"acme/repository-{STALE_REPOSITORY}", NAMES[key], newest[key]) for key in newest]
    return never + sorted(rows, key=lambda row: row[2])


def findings_now(of: Period) -> Rows:
    total, *parts = found(of.all, TODAY)
    names = ("code", "supply chain", "secrets", "other", "all")
    return list(zip(names, [*parts, total - sum(parts), total], strict=True))


def findings_weekly(of: Period) -> Rows:
    ends = [min(week + timedelta(days=6), LAST) for week in weeks(FIRST, LAST)]
    counts = [found(of.all, end) for end in ends]
    return [(at(end), *parts, total - sum(parts)) for end, (total, *parts) in zip(ends, counts, strict=True)]


def outcomes(of: Period) -> Rows:
    count = Counter((scan.day, scan.outcome) for scan in of.now)
    return [(at(day), *(count[day, name] for name in ("passed", "findings", "failed")), 0) for day in EACH_DAY]


def rate_by_day(of: Period) -> Rows:
    by_day = {day: [scan for scan in of.now if scan.day == day] for day in EACH_DAY}
    return [(at(day), percent(failed(scans), len(scans))) for day, scans in by_day.items() if scans]


def exit_codes(of: Period) -> Rows:
    count = Counter(scan.exit_code for scan in of.now if scan.outcome == "failed")
    ordered = sorted(count, key=lambda code: (-count[code], code))
    return [(code, count[code], percent(count[code], count.total()), *MEANINGS[code]) for code in ordered]


def worst(of: Period) -> Rows:
    counts = {scan.key: [each for each in of.now if each.key == scan.key] for scan in of.now}
    rows = [
        (s[0].repository, NAMES[key[0]], failed(s), len(s), percent(failed(s), len(s))) for key, s in counts.items()
    ]
    return sorted((row for row in rows if row[2]), key=lambda row: (-row[2], row[3], row[0]))[:10]


def durations(kind: str) -> Callable[[Period], Rows]:
    def weekly(of: Period) -> Rows:
        place = "" if len(of.chosen) > 1 else f", {NAMES[next(iter(of.chosen))]}"
        rows: Rows = []
        for week in weeks(FIRST, LAST):
            days = (week, week + timedelta(days=6))
            seconds = [s.seconds for s in of.all if days[0] <= s.day <= days[1] and s.is_full == (kind == "full")]
            for name, share in (("95th percentile", 0.95), ("median", 0.5)):
                if seconds:
                    rows.append((at(max(week, FIRST)), name + place, percentile(seconds, share)))
        return rows

    return weekly


def coverage(of: Period) -> Rows:
    words = {"code": "sast", "supply chain": "sca", "secrets": "secrets", "AI": "ai"}
    counts = {name: len({scan.key for scan in of.now if word in scan.products}) for name, word in words.items()}
    return [(name, count, of.repositories, percent(count, of.repositories)) for name, count in counts.items()]


def listed(of: Period) -> Rows:
    stored, gone = (Counter({TODAY - timedelta(days=ago): count * of.has_listed}) for ago, count in ((2, 1), (3, 3)))
    return [(at(day), stored[day], 0, gone[day]) for day in EACH_DAY]


def states(of: Period) -> Rows:
    counts = {"stored": 1, "waiting": 0, "dead": 1, "expired": 0, "dropped": 0, "missing": 2}
    return [(name, count, percent(count, 4)) for name, count in counts.items()] if of.has_listed else []


def reach(of: Period) -> Rows:
    newest = {each: max(scan.started_at for scan in of.all if scan.deployment_id == each) for each in of.chosen}
    return [(NAMES[each], newest[each], None, None, 0, None, None, None) for each in sorted(of.chosen)]


BY_HAND: dict[str, Callable[[Period], Rows]] = {
    "Repositories scanned, and not": scanned,
    "Failure rate": failure_rate,
    "Scan time, p95": p95,
    "Findings now": findings_change,
    "Scans lost": lost,
    "Data until": data_until,
    "Not scanned for $stale_days days": stale,
    "Findings now, by product": findings_now,
    "Findings at the end of each week": findings_weekly,
    "Scans a day, by outcome": outcomes,
    "Failure rate, by day": rate_by_day,
    "Failures by exit code": exit_codes,
    "The ten repositories with the most failures": worst,
    "Full scans, by week": durations("full"),
    "Diff scans, by week": durations("diff"),
    "Coverage by product": coverage,
    "Listed scans a day, by what became of them": listed,
    "What became of the listed scans": states,
    "How far the data reach": reach,
}
