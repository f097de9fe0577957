"""Tells people what a run does: log lines, a progress line on a terminal, the table at the end."""

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from io import StringIO
from typing import Any

from msgspec.structs import asdict

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
    LeasesLost,
    ListingSkipped,
    MetricsLost,
    NothingNew,
    OutOfReach,
    PaceFallen,
    PaceRegained,
    PaceReserved,
    PairDied,
    RepositoriesUnread,
    RunCounts,
    Stopping,
    TokenReadAgain,
    TokenUseless,
    Walked,
    WalkedByRepository,
    WalkFailed,
    WorkAwaited,
)

SHOWN_OF_A_KIND = 20
"""How many lines of one kind are logged in a run before the rest is only counted."""
WIDTH_OF_A_FILE = 400
ALWAYS_SHOWN = ("requested", "fetched", "dead", "remaining")
LOG_INTERVAL_SECONDS = 10.0
SCREEN_INTERVAL_SECONDS = 0.25


class _Stderr:
    """sys.stderr as it is at each call: the progress line puts itself in front of it while it is shown.

    A line that can't be written, as on a full disk, is lost: no run ends for its log.
    """

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


_logs = {"format": "text", "level": "info"}


def configure_logs(log_format: str, log_level: str) -> None:
    """Log to stderr: `text` for people, `json` for machines, one object a line."""
    _logs.update(format=log_format, level=log_level)
    log.cache_clear()


@cache
def log() -> Any:
    """The logger. It takes 0.1 s to import, which a run that has nothing to say is spared."""
    import structlog  # noqa: PLC0415 - so it is spared

    renderer: Any = (
        structlog.processors.JSONRenderer()
        if _logs["format"] == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[_logs["level"].upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # writes, that is all
    )
    return structlog.get_logger()


LINES: dict[type[Event], tuple[str, str]] = {
    BadLine: ("warning", "line skipped"),
    GateClosed: ("warning", "rate limited, waiting"),
    GateOpened: ("info", "rate limit over"),
    PaceReserved: ("info", "the token's rate is reserved by other workers, waiting"),
    PaceFallen: ("warning", "the API has refused more: the pace is below a tenth of [api] rate"),
    PaceRegained: ("info", "the pace is a tenth of [api] rate again, or more"),
    WorkAwaited: ("info", "nothing is due, waiting for retries and leases to end"),
    ApiAway: ("warning", "API unavailable, waiting"),
    ApiBack: ("info", "API available again"),
    DatabaseAway: ("warning", "database unavailable, waiting"),
    DatabaseBack: ("info", "database available again"),
    PairDied: ("warning", "dead letter"),
    DeadRevived: ("info", "dead letters whose reason may have passed are tried again"),
    DeploymentStopped: ("error", "deployment halted, its pairs stay queued"),
    TokenReadAgain: ("info", "asking again for a deployment that was halted, its token was read anew"),
    TokenUseless: ("error", "a token shows no deployment, others go on"),
    LeasesLost: ("warning", "leases lost to another worker, nothing written for them"),
    Walked: ("info", "list walked"),
    WalkedByRepository: ("info", "the search doesn't list the deployment, walking repository by repository"),
    RepositoriesUnread: ("warning", "repositories not listed, scans are found all the same"),
    OutOfReach: ("warning", "discovery gap: scans started in this period are no longer available from the API"),
    WalkFailed: ("error", "list not walked to its end, the next walk starts from the same watermark"),
    ListingSkipped: ("error", "the database refuses what the list says of a scan, skipped"),
    NothingNew: ("warning", "cursors repeat without new scans, taken for the end of the list"),
    AnotherSync: ("info", "another sync is at work, leaving it to that one"),
    MetricsLost: ("error", "the metrics can't be written: check [observe] metrics_file"),
    Stopping: ("warning", "stopping"),
}


class Reporter:
    """Turns events into log lines, a bounded number of each kind, and counts into progress."""

    def __init__(self, counts: RunCounts, *, interactive: bool) -> None:
        self._counts = counts
        self._interactive = interactive
        self._told = Counter[type[Event]]()

    def emit(self, event: Event) -> None:
        """One log line for an event."""
        kind = type(event)
        self._told[kind] += 1
        if self._told[kind] > SHOWN_OF_A_KIND:
            return
        level, text = LINES[kind]
        getattr(log(), level)(text, **_fields(event))
        if self._told[kind] == SHOWN_OF_A_KIND:
            log().info(f"more lines of this kind are counted, not shown: {text}")

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
        started, before = time.monotonic(), _finished(self._counts)
        while True:
            await asyncio.sleep(LOG_INTERVAL_SECONDS)
            if preparing := _preparing(self._counts):
                log().info(preparing, seconds=round(time.monotonic() - started))
                continue
            now = _finished(self._counts)
            rate = (now - before) / LOG_INTERVAL_SECONDS
            before = now
            total = self._counts.to_do + self._counts.discovered
            left = max(total - now, 0)
            if not rate and not left:
                continue  # an idle worker
            log().info(
                "progress",
                done=now,
                total=total,
                per_second=round(rate, 1),
                retried=self._counts.retried,
                rate_limited=self._counts.rate_limited,
                dead=self._counts.dead,
                seconds_left=round(left / rate) if rate else None,
                seconds=round(time.monotonic() - started),
            )

    async def _watch_on_screen(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - a cron job never needs it
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}/s · {task.fields[retried]} retried · {task.fields[dead]} dead"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None, rate="0", retried=0, dead=0)
            while True:
                counts = self._counts
                speed = progress.tasks[0].speed
                progress.update(
                    task,
                    description=_preparing(counts) or "fetching",
                    total=counts.to_do + counts.discovered or None,
                    completed=_finished(counts),
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
        return _preparing(self._counts) or ""


def _preparing(counts: RunCounts) -> str | None:
    """What a run is at before it fetches: millions of pairs take minutes to read, and thousands of scans to list."""
    if counts.to_do or _finished(counts):
        return None
    if counts.requested:
        return f"reading, {counts.requested:,} lines"
    return f"listing, {counts.discovered:,} scans to fetch" if counts.discovered else None


def _finished(counts: RunCounts) -> int:
    return counts.fetched + counts.dead


def _fields(event: Event) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(event).items() if value is not None}
    if isinstance(event, PairDied):
        fields |= {"pair": f"{event.pair.deployment_id}/{event.pair.scan_id}"}
    return fields


def print_summary(summary: Mapping[str, Any], *, where: str, as_json: bool) -> None:
    """The result of a run on stdout: one JSON object, or a table of the counts that aren't zero."""
    if as_json:
        print(json.dumps(summary, default=_jsonable), flush=True)  # noqa: T201 - the command's output
        return
    from rich.table import Table  # noqa: PLC0415 - with --json nobody needs it

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in summary.items():
        if isinstance(value, int) and name != "exit_code" and (value or name in ALWAYS_SHOWN):
            table.add_row(name.replace("_", " "), f"{value:,}")
    seconds = summary["duration_seconds"]
    rate = f" ({summary['fetched'] / seconds:,.0f} scans a second)" if summary["fetched"] and seconds else ""
    table.add_row("time", f"{seconds:,.1f} s{rate}")
    if summary["stop_reason"]:
        table.add_row("stopped by", summary["stop_reason"])
    table.add_row("rows are in", where)
    _print(table)


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """The result of a small command on stdout: one JSON object, or a line a value."""
    if as_json:
        print(json.dumps(result, default=_jsonable), flush=True)  # noqa: T201 - the command's output
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' ')}: {_shown(value)}")  # noqa: T201 - the command's output


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same names as a table on stdout."""
    from rich.markup import escape  # noqa: PLC0415 - with --json nobody needs it
    from rich.table import Table  # noqa: PLC0415 - with --json nobody needs it

    if not rows:
        print(f"{title}: none")  # noqa: T201 - the command's output
        return
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, value in rows[0].items():
        # On a narrow terminal a cell goes on in the next line: nothing is cut.
        is_number = isinstance(value, int)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(v) if name.endswith("_id") else _shown(v)) for name, v in row.items()))
    _print(table)


def _print(table: Any) -> None:
    from rich.console import Console  # noqa: PLC0415 - with --json nobody needs it

    is_terminal = sys.stdout.isatty()
    # A pipe or a file has no width to keep to. On a closed pipe the console would end the process by itself.
    drawn = StringIO()
    Console(file=drawn, force_terminal=is_terminal, width=None if is_terminal else WIDTH_OF_A_FILE).print(table)
    for line in drawn.getvalue().splitlines():
        print(line.rstrip())  # noqa: T201 - the command's output


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
