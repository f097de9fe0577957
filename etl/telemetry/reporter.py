"""Tells people what a run does: log lines, a progress line on a terminal, the table at the end."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from etl.telemetry import layout
from etl.telemetry.events import Event, MoreOfAKind, PairDied, Preparing, Progress, RunCounts
from etl.telemetry.lines import LINES, fields_of, level_of
from etl.telemetry.log import terminal_width, write_line

SHOWN_OF_A_KIND = 20
"""How many lines of one kind are logged in an hour; the rest is for the level debug."""
SUMS = {
    "requested": ("invalid", "duplicate", "already_final", "fetched", "dead", "remaining"),
    "fetched": ("inserted", "updated", "unchanged"),
}
"""The counts that others add up to: `requested` of a run of files."""
ALWAYS_SHOWN = ("requested", "fetched", "dead", "remaining")
LOG_INTERVAL_SECONDS = 10.0
SCREEN_INTERVAL_SECONDS = 0.25
NARROWEST_BAR = 80
"""Columns of a terminal. On a narrower one the numbers need the place."""
WHAT, HOW_MANY = "{task.description}", "{task.fields[done]}"
HOW_FAST = "{task.fields[rate]}/s · {task.fields[retried]} retried · {task.fields[dead]} dead"


class Reporter:
    """Turns events into log lines, a bounded number of each kind, and counts into progress."""

    def __init__(self, counts: RunCounts, *, interactive: bool) -> None:
        self._counts = counts
        self._interactive = interactive
        self._hour = 0
        self._told = Counter[str]()

    def emit(self, event: Event) -> None:
        """One log line for an event. What comes too often within an hour is for the level debug."""
        self._begin_an_hour()
        kind, most = LINES[type(event)].event, SHOWN_OF_A_KIND
        if isinstance(event, PairDied):
            # They are one a scan: what is new about one is its kind of error.
            kind, most = f"{kind}: {event.error_kind}", 1
        self._told[kind] += 1
        _write(event, level_of(event) if self._told[kind] <= most else "debug")
        if self._told[kind] == SHOWN_OF_A_KIND <= most:
            self.emit(MoreOfAKind(kind))

    def _begin_an_hour(self) -> None:
        hour = int(time.monotonic() // 3600)
        if hour != self._hour:
            self._hour = hour
            self._told.clear()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Show on a terminal how much has been read, while the calling thread reads."""
        if not self._interactive:
            yield
            return
        from rich.console import Console  # noqa: PLC0415 - a cron job never needs it

        with Console(stderr=True).status(_Reading(self._counts)):
            yield

    async def watch(self) -> None:
        """Show progress until cancelled: a live line on a terminal, a log line an interval elsewhere."""
        if self._interactive:
            await self._watch_on_screen()
        else:
            await self._watch_in_log()

    async def _watch_in_log(self) -> None:
        before = replace(self._counts)
        while True:
            await asyncio.sleep(LOG_INTERVAL_SECONDS)
            if told := progress(self._counts, before, LOG_INTERVAL_SECONDS):
                _write(told)
            before = replace(self._counts)

    async def _watch_on_screen(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - a cron job never needs it
        from rich.progress import (  # noqa: PLC0415 - likewise
            BarColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column  # noqa: PLC0415 - likewise

        console = Console(stderr=True)
        shown: list[ProgressColumn] = [TextColumn(WHAT), BarColumn(), TextColumn(HOW_MANY), TextColumn(HOW_FAST)]
        if console.width < NARROWEST_BAR:
            shown = [TextColumn(f"{WHAT} {HOW_MANY} {HOW_FAST}", table_column=Column(overflow="fold"))]
        with Progress(*shown, TimeRemainingColumn(), console=console, transient=True) as progress:
            task = progress.add_task("", total=None, done="", rate="0", retried=0, dead=0)
            while True:
                counts = self._counts
                speed = progress.tasks[0].speed
                done, total = _finished(counts), counts.to_do + counts.discovered
                progress.update(
                    task,
                    description=_shown_preparing(counts) or "fetching",
                    total=total or None,
                    completed=done,
                    done=f"{done:{len(str(total))}}/{total or '?'}",
                    rate=f"{speed:.0f}" if speed else "0",
                    retried=counts.retried,
                    dead=counts.dead,
                )
                await asyncio.sleep(SCREEN_INTERVAL_SECONDS)


class _Reading:
    """What is read, as it is whenever the terminal is drawn."""

    def __init__(self, counts: RunCounts) -> None:
        self._counts = counts

    def __rich__(self) -> str:
        return _shown_preparing(self._counts)


def _write(event: Event, level: str = "info") -> None:
    _, name, sentence = LINES[type(event)]
    write_line(level, name, fields_of(event), sentence(event))


def progress(counts: RunCounts, before: RunCounts, seconds: float) -> Progress | Preparing | None:
    """How far a run is, after `seconds` since it was as `before`; None where nothing that it shows has changed: what
    is asked of an API that is unavailable is no progress."""
    if replace(counts, requests=before.requests) == before:
        return None
    if preparing := _preparing(counts):
        return preparing
    done, rate = _finished(counts), (_finished(counts) - _finished(before)) / seconds
    total = counts.to_do + counts.discovered
    return Progress(
        done=done,
        total=total,
        per_second=round(rate, 1),
        retried=counts.retried,
        rate_limited=counts.rate_limited,
        dead=counts.dead,
        seconds_left=round(max(total - done, 0) / rate) if rate else None,
    )


def _preparing(counts: RunCounts) -> Preparing | None:
    """What a run is at before it fetches: millions of pairs take minutes to read, and thousands of scans to list."""
    if counts.to_do or _finished(counts) or not (counts.requested or counts.discovered):
        return None
    return Preparing(counts.requested, counts.discovered)


def _shown_preparing(counts: RunCounts) -> str:
    preparing = _preparing(counts)
    return LINES[Preparing].sentence(preparing) if preparing else ""


def _finished(counts: RunCounts) -> int:
    return counts.fetched + counts.dead


def print_summary(summary: Mapping[str, Any], *, where: str = "", as_json: bool) -> None:
    """The result of a run on stdout: one JSON object, or a table of the counts that aren't zero."""
    if as_json:
        print_result(summary, as_json=True)
        return
    told = {
        layout.spoken(name): f"{value:,}{_sum(name, summary)}"
        for name, value in summary.items()
        if isinstance(value, int) and name != "exit_code" and (value or name in ALWAYS_SHOWN)
    }
    seconds = summary["duration_seconds"]
    rate = f" ({summary['fetched'] / seconds:,.0f} scans a second)" if summary["fetched"] and seconds else ""
    told["time"] = f"{seconds:,.1f} s{rate}"
    told |= {"stopped by": summary["stop_reason"]} if summary["stop_reason"] else {}
    told |= {"rows are in": where} if where else {}
    longest, width = max(map(len, told)), terminal_width(sys.stdout)
    _print(line for name, value in told.items() for line in layout.text(f"{name:{longest}}  {value}", width))


def _sum(name: str, summary: Mapping[str, Any]) -> str:
    """What a count is the sum of, where that is more than one."""
    parts = [(summary[part], layout.spoken(part)) for part in SUMS.get(name, ()) if summary[part]]
    if len(parts) < 2 or sum(count for count, _ in parts) != summary[name]:
        return ""
    return f" = {' + '.join(f'{count:,} {part}' for count, part in parts)}"


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """The result of a small command on stdout: one JSON object, or a line a value that is known."""
    if as_json:
        print(json.dumps(result, default=_jsonable), flush=True)  # noqa: T201 - the command's output
        return
    told = {name: layout.shown(name, value) for name, value in result.items()}
    width = terminal_width(sys.stdout)
    _print(line for n, value in told.items() if value for line in layout.text(f"{layout.spoken(n)}: {value}", width))


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same names as a table on stdout."""
    _print(layout.table(title, rows, terminal_width(sys.stdout)))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201 - the command's output


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
