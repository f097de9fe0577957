"""The tiles: a number each, what it is of, and how it has changed against the period before."""

from datetime import datetime
from typing import NamedTuple

from etl.report import words
from etl.report.figures import Figures, Share


class Tile(NamedTuple):
    """`tone` is better, worse or nothing."""

    label: str
    value: str
    base: str
    change: str
    tone: str = ""


def tiles(figures: Figures) -> list[Tile]:
    """All of them, in their order."""
    return [
        _scanned(figures),
        _failed(figures),
        _p95(figures),
        _findings(figures),
        _data_until(figures),
        _lost(figures),
    ]


def _scanned(figures: Figures) -> Tile:
    now, before = figures.scanned, figures.scanned_before
    base = f"{words.percent(now)} of those listed; {now.whole - now.part:,} not scanned"
    change = now.part - before.part
    return Tile("Repositories scanned", f"{now.part:,} of {now.whole:,}", base, *_moved(change, f"{before.part:,}", 1))


def _failed(figures: Figures) -> Tile:
    now = figures.failed
    return Tile("Failure rate", words.percent(now), words.of(now, "scans"), *_points(now, figures.failed_before))


def _p95(figures: Figures) -> Tile:
    now, before = figures.p95_seconds, figures.p95_seconds_before
    base = "95 of 100 scans took no longer" if now is not None else "no scan has ended"
    return Tile("Scan time, p95", words.duration(now), base, *_longer(now, before))


def _longer(now: float | None, before: float | None) -> tuple[str, str]:
    if now is None or before is None:
        return _NOTHING_BEFORE
    return _moved(now - before, words.duration(before), -1, words.duration(abs(now - before)))


def _findings(figures: Figures) -> Tile:
    now, before = figures.findings, figures.findings_before
    if now is None:
        return Tile("Findings now", words.NOTHING, "no full scan has ended well", *_NOTHING_BEFORE)
    base = "in the newest full scan of each repository"
    if before is None:
        return Tile("Findings now", f"{now.total:,}", base, *_NOTHING_BEFORE)
    was = f"{before.findings.total:,} on {words.day(before.day)}"
    return Tile("Findings now", f"{now.total:,}", base, *_moved(now.total - before.findings.total, was, -1))


def _data_until(figures: Figures) -> Tile:
    newest, made_at = figures.newest_scan_at, figures.question.made_at
    if newest is None:
        return Tile("Data until", words.NOTHING, "no scan is stored", _last_run(figures))
    base = f"{newest:%H:%M} UTC, {words.age(made_at - newest)} before this page"
    return Tile("Data until", words.day(newest.date()), base, _last_run(figures))


def _last_run(figures: Figures) -> str:
    """The last run is of all deployments."""
    began_at = max((r.last_run_started_at for r in figures.freshness if r.last_run_started_at), default=None)
    return f"last run {_moment(began_at)}" if began_at else "no run is recorded"


def _moment(at: datetime) -> str:
    return f"{words.day(at.date())}, {at:%H:%M} UTC"


def _lost(figures: Figures) -> Tile:
    now = figures.lost
    value = f"{now.part:,}" if now.whole else words.NOTHING
    base = f"{words.percent(now)} of {words.counted(now.whole, 'listed scan')}" if now.whole else "no scan was listed"
    return Tile("Scans lost", value, base, *_points(now, figures.lost_before))


_NOTHING_BEFORE = ("nothing to compare with before", "")


def _points(now: Share, before: Share) -> tuple[str, str]:
    """How many percentage points less or more; less is better."""
    if now.percent is None or before.percent is None:
        return _NOTHING_BEFORE
    change = round(now.percent - before.percent, 1)
    was = f"{words.percent(before)} ({before.part:,} of {before.whole:,})"
    return _moved(change, was, -1, f"{abs(change):.1f} points")


def _moved(change: float, was: str, good: int, by: str | None = None) -> tuple[str, str]:
    """The sentence and its tone; `good` is the sign of a change for the better."""
    if not change:
        return f"as before: {was}", ""
    arrow = "▲" if change > 0 else "▼"
    return f"{arrow} {by or format(abs(change), ',')} from {was}", "better" if change * good > 0 else "worse"
