"""Log lines: one event in the three forms that it is read in, and how often it is told."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etl.model import Pair
from etl.telemetry import log
from etl.telemetry.events import (
    BadLine,
    Event,
    GateClosed,
    ListingSkipped,
    OutOfReach,
    PairDied,
    Preparing,
    Progress,
    RunCounts,
    RunEnded,
    TokenReadAgain,
)
from etl.telemetry.lines import LINES, level_of
from etl.telemetry.reporter import SHOWN_OF_A_KIND, Reporter, progress

WAITING = GateClosed(deployment_id=120, seconds=2.5)
REFUSED = ListingSkipped(Pair(120, 7), 'a "quoted" reason')


def ended(exit_code: int, stop_reason: str | None = None) -> RunEnded:
    counts = {"discovered": 0, "requests": 1, "fetched": 1200, "waiting": 0, "dead": 0, "remaining": 3}
    return RunEnded(command="sync", exit_code=exit_code, stop_reason=stop_reason, duration_seconds=2.0, **counts)


@pytest.fixture(autouse=True)
def _as_at_the_start() -> Iterator[None]:
    yield
    log.configure_logs("text", "info")
    log.name_run("")


def emitted(log_format: str, *events: Event, level: str = "info", run_id: str = "") -> None:
    log.configure_logs(log_format, level)
    log.name_run(run_id)
    reporter = Reporter(RunCounts(), interactive=False)
    for event in events:
        reporter.emit(event)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_machines_get_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's id, the time, the level, and each field that has a value."""
    emitted("json", WAITING, REFUSED, GateClosed(None, 1.0), run_id="a1")

    lines = logged(capsys)
    assert all(line.pop("timestamp").endswith("Z") for line in lines)
    head = {"level": "warning", "event": "rate limited, waiting", "run_id": "a1"}
    assert lines == [
        head | {"deployment_id": 120, "seconds": 2.5},
        {
            "level": "error",
            "event": "the database refuses what the list says of a scan, skipped",
            "run_id": "a1",
            "pair": "120/7",
            "reason": 'a "quoted" reason',
        },
        head | {"seconds": 1.0},
    ]


def test_a_file_gets_names_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    """A value of several words stands in quotes, so that a line can be taken apart again."""
    emitted("text", WAITING, REFUSED, run_id="a1")

    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "[warning] rate limited, waiting deployment_id=120 seconds=2.5 run_id=a1",
        f"[error] {LINES[ListingSkipped].event} pair=120/7 " + r'reason="a \"quoted\" reason" run_id=a1',
    ]


@contextmanager
def terminal() -> Iterator[int]:
    """A terminal at stderr; yields what shows what is on it."""
    screen, its_end = os.openpty()
    before = sys.stderr
    with os.fdopen(its_end, "w", encoding="utf-8") as stream:
        sys.stderr = stream
        try:
            yield screen
        finally:
            sys.stderr = before
            os.close(screen)


SENTENCES: list[tuple[Event, str]] = [
    (WAITING, "deployment 120: rate limited, waiting 2.5 s"),
    (GateClosed(None, 1.0), "rate limited, waiting 1 s"),
    (REFUSED, 'the listing of 120/7 is skipped: a "quoted" reason'),
    (
        ended(4, "deadline of 1 s"),
        "sync ended with exit code 4 after 2.0 s, 1,200 fetched, 0 dead, 3 remaining: deadline of 1 s",
    ),
    (
        OutOfReach(120, "2026-09-01", "2026-10-01"),
        "deployment 120: scans that started between 2026-09-01 and 2026-10-01 are no longer available from the API",
    ),
    (
        TokenReadAgain(120, is_new=True),
        "deployment 120 was halted and is tried again; its token was read again: it has changed",
    ),
]


@pytest.mark.parametrize(("event", "sentence"), SENTENCES)
def test_a_person_at_a_terminal_gets_a_sentence(event: Event, sentence: str) -> None:
    """With the time of day and the beginning of the run's id, and no field behind it."""
    with terminal() as screen:
        emitted("text", event, run_id="0123456789abcdef")
        shown = os.read(screen, 10_000).decode()

    assert "01234567\x1b" in shown
    assert f"m{sentence}\x1b" in shown


def test_a_line_that_comes_too_often_is_for_the_level_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """At level info the last line says so."""
    bad = [BadLine(f"line {number}") for number in range(SHOWN_OF_A_KIND + 5)]
    emitted("json", *bad)
    at_info = logged(capsys)
    emitted("json", *bad, level="debug")
    at_debug = logged(capsys)

    assert [line["event"] for line in at_info] == ["line skipped"] * SHOWN_OF_A_KIND + ["enough of a kind"]
    assert at_info[-1]["of"] == "line skipped"
    assert len(at_debug) == len(bad) + 1


def test_of_dead_letters_each_kind_of_error_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """And not each scan, unless at level debug."""
    kinds = ["not_found", "not_found", "timeout", "not_found"]
    died = [PairDied(Pair(120, number), kind, "why") for number, kind in enumerate(kinds)]
    emitted("json", *died)
    at_info = logged(capsys)
    emitted("json", *died, level="debug")
    at_debug = logged(capsys)

    assert [line["pair"] for line in at_info] == ["120/0", "120/2"]
    assert [line["level"] for line in at_debug] == ["warning", "debug", "warning", "debug"]


def test_what_is_below_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ended well is told at level info, another one at level warning."""
    emitted("json", ended(0), ended(1), level="warning")

    assert [line["exit_code"] for line in logged(capsys)] == [1]


def test_each_event_has_a_level_that_there_is() -> None:
    """And a name of its own."""
    assert {line.level for line in LINES.values()} <= set(log.LEVELS)
    assert len({line.event for line in LINES.values()}) == len(LINES)
    assert level_of(WAITING) == "warning"


def test_progress_is_told_where_something_has_changed() -> None:
    """An idle worker, and one that only waits, has nothing to say."""
    before = RunCounts(to_do=100, fetched=10, dead=1, requests=12)

    assert progress(RunCounts(to_do=100, fetched=10, dead=1, requests=12), before, 10.0) is None
    assert progress(RunCounts(to_do=100, fetched=10, dead=1, requests=15), before, 10.0) is None
    moved = progress(RunCounts(to_do=100, fetched=30, dead=1, requests=32), before, 10.0)
    assert moved == Progress(
        done=31, total=100, per_second=2.0, retried=0, rate_limited=0, dead=1, seconds_left=round(69 / 2)
    )
    assert progress(RunCounts(requested=7), RunCounts(), 10.0) == Preparing(lines_read=7, to_fetch=0)
