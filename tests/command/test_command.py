"""The fixture that runs the real command, tested on the command itself."""

import pytest
from command import Command, CommandResult


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


def test_outcome_without_json_shows_both_streams() -> None:
    """Where JSON was expected, the error holds what came instead, on stderr too."""
    with pytest.raises(ValueError, match=r"no table.*wrong schema"):
        CommandResult(5, "no table", "wrong schema").json()
