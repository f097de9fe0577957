"""What a person sees in a narrow terminal: ids, numbers, times and reasons are whole, and lines end between words."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from command import Command
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import insert
from stored_rows import environment
from tables_of import change

from etl.cli.main import cli
from etl.database.schema import dead_letters, fetch_queue, listing_gaps, schema_drift, workers

WIDTHS = (60, 80)
NOW = datetime.now(UTC).replace(microsecond=0)
SCAN_ID = 16_300_000_001
KEY = {"deployment_id": 1_234_567_890_123, "scan_id": SCAN_ID}
REASON = (
    "HTTP 500 from /api/v1/deployments/1234567890123/scan/16300000001: the upstream connection was closed; try again"
)
PATH = "stats.supply_chain_stats.subprojects_stats[].resolved_stats.ecosystem"
DRIFT = {"sample_deployment_id": 120, "sample_scan_id": SCAN_ID, "first_seen_at": NOW, "last_seen_at": NOW}


@pytest.fixture
def crowded_url(sqlite_url: str) -> str:
    """A database with something long in each place that a person looks at."""
    dead = {"died_at": NOW, "retry_at": NOW + timedelta(hours=9), "attempts": 1234, "http_status": 500}
    change(
        sqlite_url,
        insert(fetch_queue).values(KEY | {"scan_id": SCAN_ID + 1, "due_at": NOW - timedelta(hours=3)}),
        insert(dead_letters).values(KEY | dead | {"error_kind": "http_status", "error": REASON}),
        insert(listing_gaps).values(deployment_id=120, from_at=NOW - timedelta(days=40), until_at=NOW),
        insert(schema_drift).values(DRIFT | {"path": PATH, "kind": "unknown_field", "count": 16_300_000}),
        insert(workers).values(
            token="f47ac10b58cc4372",
            run_id="run",
            started_at=NOW,
            seen_at=NOW,
            version="0.1.0",
            slow_pace="the API is unavailable",
        ),
    )
    return sqlite_url


def told(value: Any) -> Iterator[str]:
    """The words that are to be seen of a JSON value: ids as they are, other numbers with separators."""
    if isinstance(value, dict):
        for name, each in value.items():
            is_number = isinstance(each, int) and not name.endswith("_id")
            yield from [f"{each:,}"] if is_number else told(each)
    elif isinstance(value, list):
        for each in value:
            yield from told(each)
    elif value is not None and not isinstance(value, float | bool):
        instant = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\S*", str(value))
        yield from [f"{instant[1]} {instant[2]}"] if instant else str(value).split()


@pytest.mark.parametrize("columns", WIDTHS)
def test_what_there_is_to_see_is_whole(cli: Command, crowded_url: str, columns: int) -> None:
    """Each id, number, time and word of what a command knows is on the screen, and only a long word is beyond it."""
    variables = {"SCAN_ETL_DATABASE__URL": crowded_url}
    pair = f"{KEY['deployment_id']}/{SCAN_ID}"
    for words in (["status"], ["failures", "list"], ["failures", "show", pair], ["drift"], ["plan"]):
        known = cli(*words, "--json", environment=variables).json()
        seen = cli.on_terminal(columns, *words, environment=variables)

        for unseen in ("coverage", "by_deployment", "seconds_to_drain", "rate", "seconds", "database"):
            known.pop(unseen, None)
        assert [word for word in told(known) if word not in seen] == [], seen
        assert [line for line in seen.splitlines() if len(line) > columns and len(line.split()) > 1] == []


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_run_is_told_in_whole_words(cli: Command, sqlite_url: str, columns: int) -> None:
    """Its log, its summary, and then `runs`, `runs show`, `inspect` and `config show`."""
    with running_sandbox(finished_world(30, scans_per_day=30.0)) as sandbox:
        variables = environment(sandbox, sqlite_url)
        run = cli.on_terminal(columns, "sync", environment=variables)
        doctor = cli.on_terminal(columns, "doctor", environment=variables)
        missing = cli.on_terminal(columns, "run", "a-file-that-is-nowhere.csv", environment=variables)
    [*_, first] = cli("runs", "--json", environment=variables).json()["runs"]
    runs = cli.on_terminal(columns, "runs", environment=variables)
    shown = cli.on_terminal(columns, "runs", "show", first["run_id"], environment=variables)
    settings = cli.on_terminal(columns, "config", "show", environment=variables)

    assert first["run_id"] in runs
    assert first["run_id"] in shown
    assert "sync ended with exit code 0" in " ".join(run.split())
    assert "accepted; it sees deployment 120" in " ".join(doctor.split())
    assert "api.max_wait_seconds" in settings
    assert "environment SCAN_ETL_DATABASE__URL" in " ".join(settings.split())
    assert "(No such file or directory): check its path and its permissions" in " ".join(missing.split())
    for seen in (run, doctor, missing, runs, shown, settings):
        lines = [line.rpartition("\r")[2] for line in seen.splitlines()]
        assert [line for line in lines if len(line.rstrip()) > columns and len(line.split()) > 2] == []


def commands(group: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and those below it."""
    yield group, context
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, click.Context(command, info_name=name, parent=context))


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_help_of_each_command_is_whole(columns: int) -> None:
    """No word, no name and no range of numbers is broken, and no line is longer than the terminal."""
    for command, context in commands(cli, click.Context(cli, info_name="scan-etl", terminal_width=columns)):
        seen = command.get_help(context)
        said = f"{command.help} {command.epilog or ''} " + " ".join(
            f"{' '.join(param.opts)} {param.help}"
            for param in command.params
            if isinstance(param, click.Option) and not param.hidden
        )

        assert [word for word in said.replace("\b", "").split() if word not in seen] == [], seen
        assert [line for line in seen.splitlines() if len(line) > columns] == []
        assert not re.search(r"\[\s*$|^\s*\]", seen, re.MULTILINE), seen
