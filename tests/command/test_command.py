"""The fixture that runs the real command, tested on the command itself."""

import os
from pathlib import Path

import pytest
from command import Command, CommandResult
from fork_server import ForkServer


def test_nothing_of_the_callers_environment_comes_through(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting in the caller's environment doesn't reach the command; one that the test gives does."""
    monkeypatch.setenv("SCAN_ETL_API__RATE", "not a number")
    without, given = cli("config", "show"), cli("config", "show", environment={"SCAN_ETL_API__RATE": "not a number"})

    assert without.exit_code == 0
    assert given.exit_code == 2


def test_what_still_runs_at_the_end_is_killed(cli: Command) -> None:
    """A command that a test leaves running ends with its `with` block."""
    with cli.start("sandbox") as process:
        before = process.poll()

    assert before is None
    assert process.poll() is not None


@pytest.mark.parametrize(
    "arguments", [("config", "show", "--json"), ("--help",), ("no-such-command",), ("status", "--json"), ("run", "-")]
)
def test_a_forked_command_is_like_a_started_one(cli: Command, arguments: tuple[str, ...]) -> None:
    """Exit code and both streams are the same, of what succeeds and of what fails."""
    forked, started = cli(*arguments), cli.started(*arguments)

    assert forked == started


def test_a_forked_command_that_takes_too_long_is_killed(cli: Command, fork_server: ForkServer, tmp_path: Path) -> None:
    """The next one is served as if nothing had been."""
    request = {"arguments": ["sandbox", "--port", "0"], "folder": str(tmp_path), "environment": {}}
    with Path(os.devnull).open("r+") as nothing, pytest.raises(TimeoutError, match="took more than"):
        fork_server.run(request, [nothing.fileno()] * 3, 0.1)

    assert cli("--help").exit_code == 0


def test_outcome_without_json_shows_both_streams() -> None:
    """Where JSON was expected, the error holds what came instead, on stderr too."""
    with pytest.raises(ValueError, match=r"no table.*wrong schema"):
        CommandResult(5, "no table", "wrong schema").json()
