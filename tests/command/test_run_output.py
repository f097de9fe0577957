"""What becomes of a run whose output goes to a terminal, to a full disk, or nowhere."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from typing import Any

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sandbox_thread import TOKEN, finished_world, running_sandbox
from sqlalchemy import select
from stored_rows import SUMMARY, environment, rows

from etl.database.connection import Database
from etl.database.schema import (
    runs,
    scans,
)
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault


def test_a_full_disk_behind_its_output_is_no_bug(cli: Command, sqlite_url: str) -> None:
    """What can't be printed is told on the other stream, and has an exit code of its own."""
    outcome = cli.in_shell("> /dev/full", "status", environment={"SCAN_ETL_DATABASE__URL": sqlite_url})

    assert outcome.exit_code == 74
    assert outcome.stderr.startswith("Error: the output can't be written (No space left on device)")
    assert "Traceback" not in outcome.stderr


def test_a_full_disk_behind_its_errors_changes_no_exit_code(cli: Command) -> None:
    """What reads the code, such as cron, still learns how it ended."""
    outcome = cli.in_shell("2> /dev/full", "run", "nowhere.csv", "--json")

    assert outcome.exit_code == outcome.json()["exit_code"] == 3


def test_a_full_disk_behind_its_log_stops_no_run(cli: Command, sqlite_url: str) -> None:
    """A line of the log is lost, and no more."""
    pairs = cli.folder / "pairs.txt"
    with running_sandbox(finished_world(5)) as sandbox:
        pairs.write_text(f"not a pair\n{sandbox.pairs_text()}")
        variables = environment(sandbox, sqlite_url)
        outcome = cli.in_shell("2> /dev/full", "run", str(pairs), "--json", environment=variables)

    assert outcome.exit_code == 0
    assert {name: outcome.json()[name] for name in ("invalid", "fetched")} == {"invalid": 1, "fetched": 5}


def log_lines(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_a_run_begins_and_ends_with_a_line(cli: Command, sqlite_url: str) -> None:
    """All its lines have its id, the last one what came of it; a silent night is these two."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables = environment(sandbox, sqlite_url)
        stdin = f"not a pair\n{sandbox.pairs_text()}"
        first = cli("run", "-", "--json", "--log-format", "json", stdin=stdin, environment=variables)
        silent = cli("run", "--json", "--log-format", "json", environment=variables)

    lines, summary = log_lines(first.stderr), first.json()
    assert {line["run_id"] for line in lines} == {summary["run_id"]}
    assert (lines[0]["event"], lines[0]["command"]) == ("run started", "run")
    assert lines[0]["database"] == sqlite_url.removeprefix("sqlite:///")
    assert (lines[-1]["event"], lines[-1]["level"]) == ("run ended", "info")
    for name in ("exit_code", "duration_seconds", "fetched", "requests", "dead", "remaining"):
        assert lines[-1][name] == summary[name]
    assert [line["event"] for line in log_lines(silent.stderr)] == ["run started", "run ended"]


def test_a_run_that_fails_ends_with_a_line_too(cli: Command, sqlite_url: str) -> None:
    """With its exit code and the reason; what the command says of it is a line for machines as well."""
    variables = {"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": "a"}
    outcome = cli("run", "nowhere.csv", "--log-format", "json", environment=variables)

    lines = log_lines(outcome.stderr)
    assert [line["event"] for line in lines] == ["run started", "run ended", "command failed"]
    assert len({line["run_id"] for line in lines}) == 1
    assert (lines[1]["level"], lines[1]["exit_code"]) == ("warning", 2)
    assert lines[1]["stop_reason"] == lines[2]["reason"]
    assert "nowhere.csv can't be read" in lines[2]["reason"]


def test_a_person_at_a_terminal_sees_how_far_it_is(cli: Command, sqlite_url: str) -> None:
    """A line on the terminal has what is done of how much, the speed, retries and dead letters; at the end it goes."""
    faults = (Fault("status-404", 0.05, times=0), Fault("status-500", 0.05))
    terminal, its_end = os.openpty()
    with running_sandbox(finished_world(200), Behaviour(latency_seconds=0.1, faults=faults)) as sandbox:
        variables = environment(
            sandbox, sqlite_url, SCAN_ETL_API__CONCURRENCY="10", SCAN_ETL_DATABASE__FLUSH_SECONDS="0.2", TERM="xterm"
        )
        cli("enqueue", "-", stdin=sandbox.pairs_text(), environment=variables)
        with cli.start("run", environment=variables, stderr=its_end) as process:
            os.close(its_end)
            seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(_shown(terminal)))
            stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1, seen
    assert re.search(r"fetching .* [1-9]\d*/200 .*[1-9]\d*/s · \d+ retried · [1-9]\d* dead", seen), seen
    assert "fetched" in stdout


@pytest.mark.parametrize("command", ["run", "enqueue", "plan"])
def test_a_person_at_a_terminal_sees_how_much_is_read(cli: Command, sqlite_url: str, command: str) -> None:
    """A file of millions takes minutes until the first request: the line counts what it has read."""
    pairs = cli.folder / "pairs.txt"
    os.mkfifo(pairs)
    terminal, its_end = os.openpty()
    variables = {"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": TOKEN, "TERM": "xterm"}
    with cli.start(command, pairs, environment=variables, stderr=its_end) as process, pairs.open("w") as file:
        os.close(its_end)
        file.write("x\n" * 10_001)  # a chunk and a line, which the pipe holds
        file.flush()
        seen = ""
        for piece in _shown(terminal):
            seen += piece
            if not file.closed and "reading, 10,000 lines" in seen:
                file.close()
        process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 2, seen
    assert "reading, 10,000 lines" in seen


def _shown(terminal: int) -> Iterator[str]:
    """All that comes on a terminal until nobody has its other end."""
    with open(terminal, "rb", buffering=0) as screen, suppress(OSError):
        while data := screen.read(65_536):
            yield data.decode(errors="replace")


def test_every_run_leaves_its_summary_in_the_database(cli: Command, sqlite_url: str) -> None:
    """`runs` has a row for each run, with what the command printed, its files and settings."""
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=environment(sandbox, sqlite_url))

    with closing(Database(sqlite_url)) as database:
        row = database.run_here(lambda connection: dict(connection.execute(select(runs)).mappings().one()))
    summary = outcome.json()
    instants = {name: datetime.fromisoformat(summary[name]) for name in ("started_at", "finished_at")}
    assert {name: row[name] for name in SUMMARY} == summary | instants
    assert row["finished_at"] >= row["started_at"]
    assert (row["state"], row["stop_reason"], row["inputs"]) == ("ended", None, ["-"])
    assert row["settings"]["database.url"] == sqlite_url


def test_a_run_that_can_not_be_done_is_closed_in_the_record(cli: Command, sqlite_url: str) -> None:
    """With its exit code: it isn't going on, and its worker is gone."""
    outcome = cli("run", "nowhere.csv", environment={"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": "a"})
    status = cli("status", "--json", environment={"SCAN_ETL_DATABASE__URL": sqlite_url})

    assert outcome.exit_code == 2
    assert [run["exit_code"] for run in status.json()["runs"]] == [2]
    assert status.json()["runs"][0]["finished_at"]
    assert status.json()["workers"] == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_changes_nothing_else(cli: Command, sqlite_url: str, closed: str) -> None:
    """Its number goes to no other file, and the work is done."""
    (cli.folder / "pairs.txt").write_text("120 1\n", encoding="utf-8")
    with running_sandbox(finished_world(5)) as sandbox:
        ended = cli.in_shell(closed, "run", "pairs.txt", "--json", environment=environment(sandbox, sqlite_url))

    assert ended.exit_code == 0, ended
    assert len(rows(sqlite_url, scans)) == 1
    assert ">" in closed or ended.json()["fetched"] == 1


def test_a_process_that_may_open_few_files_has_fewer_connections(cli: Command, sqlite_url: str) -> None:
    """More than it may have are asked for at the same time, and all is fetched."""
    with running_sandbox(finished_world(600), Behaviour(latency_seconds=0.3)) as sandbox:
        (cli.folder / "pairs.txt").write_text(sandbox.pairs_text(), encoding="utf-8")
        variables = environment(sandbox, sqlite_url, SCAN_ETL_API__CONCURRENCY="300")
        outcome = cli.in_shell("", "run", "pairs.txt", "--json", environment=variables, first="ulimit -n 128")

    assert outcome.exit_code == 0, outcome
    assert (outcome.json()["fetched"], outcome.json()["retried"]) == (600, 0)


def test_a_summary_says_how_its_counts_add_up(cli: Command, sqlite_url: str) -> None:
    """Each line of the input became something, and what was fetched was new or not."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables, lines = environment(sandbox, sqlite_url), sandbox.pairs_text().splitlines(keepends=True)
        first = cli("run", "-", stdin="".join(lines[:3]), environment=variables)
        stdin = "".join(["not a pair\n", *lines, lines[0]])
        again = cli("run", "-", "--refresh", stdin=stdin, environment=variables)

    assert re.search(r"^requested +3$", first.stdout, re.MULTILINE), first
    assert re.search(r"^requested +7 = 1 invalid \+ 1 duplicate \+ 5 fetched$", again.stdout, re.MULTILINE), again
    assert re.search(r"^fetched +5 = 2 inserted \+ 3 unchanged$", again.stdout, re.MULTILINE), again
