"""Log lines on stderr: an object a line for machines, words and fields for a file, a sentence for a terminal."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from etl.telemetry import layout

LEVELS = ("debug", "info", "warning", "error")
COLORS = {"debug": 2, "info": 0, "warning": 33, "error": 31}
"""The numbers of ANSI escapes: dim, as it is, yellow, red."""
SHOWN_OF_A_RUN_ID = 8
"""On a terminal; `scan-etl runs show` takes the beginning of an id."""


@dataclass(slots=True)
class _InForce:
    format: str = "text"
    level: str = "info"
    run_id: str | None = None


_in_force = _InForce()


def configure_logs(log_format: str, log_level: str) -> None:
    """Log to stderr from this level on: `text` for people, `json` for machines."""
    _in_force.format, _in_force.level = log_format, log_level


def name_run(run_id: str) -> None:
    """This process is at this run: each line says so from here on."""
    _in_force.run_id = run_id


def is_json() -> bool:
    """Whether machines read the log."""
    return _in_force.format == "json"


def terminal_width(stream: TextIO) -> int | None:
    """In places for characters; None for a pipe, a file, and a terminal that doesn't say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def write_line(level: str, event: str, fields: Mapping[str, Any], sentence: str) -> None:
    """Log an event by its name and fields, or, on a terminal, by its sentence.

    A line that can't be written, as on a full disk, is lost: no run ends for its log.
    """
    if LEVELS.index(level) < LEVELS.index(_in_force.level):
        return
    now = datetime.now(UTC)
    if is_json():
        line = _object(now, level, event, fields)
    elif sys.stderr.isatty():
        line = _for_a_terminal(now, level, sentence)
    else:
        line = _for_a_file(now, level, event, fields)
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _object(now: datetime, level: str, event: str, fields: Mapping[str, Any]) -> str:
    head = {"timestamp": _timestamp(now), "level": level, "event": event, **_of_run()}
    return json.dumps({**head, **fields}, default=str)


def _for_a_file(now: datetime, level: str, event: str, fields: Mapping[str, Any]) -> str:
    values = "".join(f" {name}={_plain(value)}" for name, value in {**fields, **_of_run()}.items())
    return f"{_timestamp(now)} [{level}] {event}{values}"


def _for_a_terminal(now: datetime, level: str, sentence: str) -> str:
    head = f"{now:%H:%M:%S} {_in_force.run_id[:SHOWN_OF_A_RUN_ID]}" if _in_force.run_id else f"{now:%H:%M:%S}"
    lines = layout.text(f"{head} {sentence}", terminal_width(sys.stderr))
    said = "\n".join(lines).removeprefix(f"{head} ")
    return f"\x1b[2m{head}\x1b[0m \x1b[{COLORS[level]}m{said}\x1b[0m"


def _timestamp(now: datetime) -> str:
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _of_run() -> dict[str, str]:
    return {"run_id": _in_force.run_id} if _in_force.run_id else {}


def _plain(value: object) -> str:
    """A value as one word, or in quotes."""
    if isinstance(value, str) and value and not set(value) & set(' "=\n'):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
