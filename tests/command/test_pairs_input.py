"""An input of which the command can use nothing, or something."""

import pytest
from command import Command


@pytest.mark.parametrize("command", ["run", "enqueue", "plan"])
def test_an_input_without_a_usable_line_is_exit_2(cli: Command, command: str) -> None:
    """Each command that reads pairs ends with the sentence, and names the one file among several."""
    (cli.folder / "good.csv").write_text("120,1\n")
    (cli.folder / "bad.csv").write_text("deployment_id,scan_id\n" + "120,x\n" * 2_000)
    outcome = cli(command, "good.csv", "bad.csv", environment={"SEMGREP_APP_TOKEN": "unused"})

    assert outcome.exit_code == 2
    assert "bad.csv:2: scan_id 'x' is not a positive integer" in outcome.stderr
    assert outcome.stderr.endswith("Error: bad.csv names no pair: 2,000 lines could not be used\n")


def test_a_file_with_one_usable_line_goes_on(cli: Command, sqlite_url: str) -> None:
    """Its bad lines are counted, and its pair is queued."""
    outcome = cli("enqueue", "-", "--json", "--database-url", sqlite_url, stdin="120 x\n120 1\n")

    assert (outcome.exit_code, outcome.json()["invalid"], outcome.json()["queued"]) == (0, 1, 1)
