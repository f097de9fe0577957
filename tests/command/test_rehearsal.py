"""The commands `demo` and `sandbox`, which show and rehearse the job without the vendor's API."""

import re
import signal

import pytest
from command import Command
from patience import PATIENCE_SECONDS


def test_a_demo_does_the_whole_job_and_a_second_one_fetches_nothing_twice(cli: Command) -> None:
    """It shows three rows, says where all of them are and draws the page; what fails on purpose comes after that."""
    first = cli("demo", "--scans", "300")
    second = cli("demo", "--scans", "300", "--json")

    assert (first.exit_code, second.exit_code) == (0, 0), first
    good, _, failed = first.stdout.partition("Dead letters: ")
    assert "Three of the scans, as dashboards see them" in good
    assert f"The database: {cli.folder / 'scan-etl-demo.db'}" in good
    assert f"The page with charts: {cli.folder / 'scan-etl-demo.html'}" in good
    assert (cli.folder / "scan-etl-demo.html").read_text().startswith("<!doctype html>")
    assert int(failed.split(",")[0]) > 0
    assert first.stderr == ""
    letters = cli(*failed.partition("scan-etl ")[2].split("\n")[0].split(), "--json").json()
    assert len(letters["dead_letters"]) == int(failed.split(",")[0])
    summary = second.json()
    assert (summary["requested"], summary["inserted"]) == (300, 0)
    assert 250 < summary["already_final"] <= 300
    assert summary["fetched"] <= 300 - summary["already_final"]


def test_a_sandbox_is_run_against_as_it_says_and_ends_with_ctrl_c(cli: Command) -> None:
    """What it prints at its start are the variables that lead a run to it, and its pairs file is what there is."""
    with cli.start(
        "sandbox", "--port", "0", "--scans", "20", "--token", "rehearsed", "--pairs", "pairs.csv"
    ) as sandbox:
        assert sandbox.stderr is not None
        said = "".join(sandbox.stderr.readline() for _ in range(4))
        outcome = cli("run", "pairs.csv", "--json", environment=dict(re.findall(r"export (\w+)=(\S+)", said)))
        sandbox.send_signal(signal.SIGINT)
        _, rest = sandbox.communicate(timeout=PATIENCE_SECONDS)

    assert (outcome.exit_code, outcome.json()["fetched"]) == (0, 20), outcome
    assert (sandbox.returncode, rest.strip()) == (0, "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--fault", "status-500"), "isn't NAME=SHARE or NAME=SHARE:TIMES"),
        (("--fault", "rain=0.5"), "no fault 'rain'"),
        (("--fault", "reset=7"), "share is 0 to 1"),
        (("--host", "0.0.0.0"), "loopback"),  # noqa: S104 - it is refused
        (("--scans-per-day", "0"), "scans_per_day"),
    ],
)
def test_a_sandbox_that_can_not_be_is_a_usage_error(cli: Command, options: tuple[str, str], sentence: str) -> None:
    """What is wrong is named, and nothing starts."""
    outcome = cli("sandbox", *options)

    assert outcome.exit_code == 2, outcome
    assert sentence in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_sandbox_that_can_not_begin_says_why(cli: Command) -> None:
    """A folder that isn't there is named, and a port that is taken, as by another sandbox."""
    folder = cli("sandbox", "--pairs", "nowhere/pairs.csv")
    with cli.start("sandbox", "--port", "0") as sandbox:
        assert sandbox.stderr is not None
        port = next(found[1] for line in sandbox.stderr if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        second = cli("sandbox", "--port", port)

    assert (folder.exit_code, second.exit_code) == (2, 2), (folder, second)
    assert "--pairs nowhere/pairs.csv can't be written: No such file" in folder.stderr
    assert f"can't listen on 127.0.0.1:{port}, choose another" in second.stderr
    assert "Traceback" not in folder.stderr + second.stderr
