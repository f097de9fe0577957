"""The help and the completion: whole, grouped, and there at once."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sandbox_thread import finished_world, running_sandbox
from stored_rows import environment

from etl.cli.groups import LONGEST_SUMMARY
from etl.cli.main import LATER, cli
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault

SUMMARIES = {name: later.summary for commands in LATER.values() for name, later in commands.items()}
SETTINGS = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
HEAVY = "sqlalchemy aiohttp alembic pydantic rich asyncio"


def imported(code: str) -> str:
    """Which heavy libraries are imported after this code."""
    code = f"import sys\n{code}\nprint(*({HEAVY!r}.split() & sys.modules.keys()), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    return done.stderr.strip()


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_is_that_of_its_command(name: str) -> None:
    """It is said a second time, so that the help needs no import of the command."""
    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.get_short_help_str(LONGEST_SUMMARY) == SUMMARIES[name]


@pytest.mark.parametrize("group", [(), ("failures",), ("db",)])
def test_the_help_cuts_nothing(cli: Command, group: tuple[str, ...]) -> None:
    """However narrow the terminal."""
    found = cli(*group, "--help")

    assert found.exit_code == 0
    assert not re.search(r"\w\.\.\.", found.stdout)
    if not group:
        text = " ".join(found.stdout.split())
        assert [summary for summary in SUMMARIES.values() if summary not in text] == []
        assert [found.stdout.count(f"\n{heading}:\n") for heading in LATER] == [1, 1, 1]


def test_the_help_imports_no_library_that_takes_its_time() -> None:
    """SQL, HTTP and settings are for those who use them."""
    assert imported("from etl.cli.main import cli\ncli(['--help'], standalone_mode=False)") == ""


@pytest.mark.parametrize("module", ["queue", "db", "runs", "prune", "forget"])
def test_who_asks_the_database_alone_imports_no_client_of_the_api(module: str) -> None:
    """It would take `status` a third of its time."""
    assert "aiohttp" not in imported(f"import etl.cli.{module}").split()


def test_a_completion_imports_no_library_that_takes_its_time() -> None:
    """Somebody has pressed a key and waits."""
    assert imported("from etl.cli.main import cli\nimport click\ncli.shell_complete(click.Context(cli), 's')") == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(cli: Command, shell: str) -> None:
    """The line of docs/settings.md asks for it."""
    script = cli.started(environment={"_SCAN_ETL_COMPLETE": f"{shell}_source"})

    assert script.exit_code == 0
    assert f"_SCAN_ETL_COMPLETE={shell}_complete" in script.stdout
    assert f"{shell}_source" in SETTINGS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("scan-etl s", {"sync", "status", "sandbox"}),
        ("scan-etl failures r", {"requeue"}),
        ("scan-etl sync --dead", {"--deadline"}),
        ("scan-etl run --log-level d", {"debug"}),
        ("scan-etl run pa", {"pa"}),
        ("scan-etl enqueue pa", {"pa"}),
        ("scan-etl inspect an", {"an"}),
    ],
)
def test_words_are_completed(cli: Command, words: str, expected: set[str]) -> None:
    """Commands, those of groups, options and what these take; a file's name is left to the shell."""
    variables = {"_SCAN_ETL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    found = cli.started(environment=variables)

    assert {line.partition(",")[2] for line in found.stdout.splitlines()} == expected


def test_bash_completes_by_the_line_of_the_docs(tmp_path: Path) -> None:
    """In a real shell, with the command on its path."""
    program = tmp_path / "scan-etl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m etl "$@"\n')
    program.chmod(0o755)
    [line] = re.findall("^eval.*bash_source.*$", SETTINGS, re.MULTILINE)
    script = f"""
    {line}
    COMP_WORDS=(scan-etl wor) COMP_CWORD=1
    _scan_etl_completion scan-etl
    echo "${{COMPREPLY[@]}}"
    """
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )

    assert done.stdout.strip() == "worker", done


def test_quiet_and_verbose_are_levels_of_the_log(cli: Command, sqlite_url: str) -> None:
    """Quiet leaves warnings, verbose tells of each dead letter; the last of several options counts."""
    faults = Behaviour(faults=(Fault("status-404", 1.0, 0),))
    with running_sandbox(finished_world(2), faults) as sandbox:
        variables = environment(sandbox, sqlite_url)

        def lines(*options: str) -> int:
            cli("failures", "drop", "--all", "--yes", environment=variables)
            outcome = cli("run", "-", *options, "--json", stdin="120 1\n120 2\n", environment=variables)
            return outcome.stderr.count("\n")

        usual, quiet, verbose = lines(), lines("-q"), lines("-v")
        last = lines("--log-level", "error", "-v", "--quiet")

    assert (usual, quiet, verbose, last) == (3, 2, 4, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "No such command 'stats'. Did you mean 'status'?"),
        (["failure", "list"], "No such command 'failure'. Did you mean 'failures'?"),
        (["db", "upgrad"], "No such command 'upgrad'. Did you mean 'upgrade'?"),
        (["xyz"], "No such command 'xyz'."),
        (["sync", "--deadlin", "1h"], "No such option '--deadlin'. Did you mean '--deadline'?"),
    ],
)
def test_a_slip_is_answered_with_what_is_most_alike(cli: Command, words: list[str], said: str) -> None:
    """Or with nothing, where nothing is."""
    found = cli(*words)

    assert found.exit_code == 2
    assert f"Error: {said}\n" in found.stderr
