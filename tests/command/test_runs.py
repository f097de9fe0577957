"""The command `runs`: how each run stands, and all that is known of one."""

from typing import Any

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import insert, select, update
from stored_rows import environment
from tables_of import ask, change

from etl.database.schema import runs, workers
from etl.database.types import add_seconds, utc_now
from etl.sandbox import Behaviour


def run(run_id: str, *, hours: float, **values: Any) -> Any:
    """A row of `runs` that began so many hours ago."""
    row = {"run_id": run_id, "command": "sync", "version": "0", "started_at": add_seconds(utc_now(), -3600.0 * hours)}
    return insert(runs).values(row | values)


def listed(cli: Command, url: str, *options: str) -> list[tuple[str, str]]:
    found = cli("runs", *options, "--json", "--database-url", url).json()["runs"]
    return [(row["run_id"], row["state"]) for row in found]


def test_runs_are_listed_as_they_stand(cli: Command, database_url: str) -> None:
    """The newest first. What has neither ended nor a worker that lives was killed: it is lost, from its second minute
    on, and the next run writes that down."""
    change(
        database_url,
        run("a1", hours=50.0, state="ended", exit_code=0),
        run("a2", hours=3.0),
        run("b1", hours=2.0),
        run("b2", hours=1.0, state="skipped", exit_code=0),
        run("c", hours=0.0),
        insert(workers).values(token="t", run_id="b1", version="0", started_at=utc_now(), seen_at=utc_now()),
    )

    everything = [("c", "running"), ("b2", "skipped"), ("b1", "running"), ("a2", "lost"), ("a1", "ended")]
    assert listed(cli, database_url) == everything
    assert listed(cli, database_url, "--limit", "2") == everything[:2]
    assert listed(cli, database_url, "--since", "2d") == everything[:4]
    assert listed(cli, database_url, "--state", "lost") == [("a2", "lost")]
    assert listed(cli, database_url, "--state", "running", "--since", "90m") == [("c", "running")]

    change(database_url, update(runs).where(runs.c.run_id == "b1").values(state="ended"))
    cli("run", "nowhere.csv", environment={"SCAN_ETL_DATABASE__URL": database_url, "SEMGREP_APP_TOKEN": "a"})
    states = dict(map(tuple, ask(database_url, select(runs.c.run_id, runs.c.state))))
    assert (states["a2"], states["b1"], states["c"]) == ("lost", "ended", "running")


def test_a_run_is_shown_whole_by_the_beginning_of_its_id(cli: Command, sqlite_url: str) -> None:
    """With its files, its settings without secrets, and why it ended."""
    with running_sandbox(finished_world(40), Behaviour(latency_seconds=0.2)) as sandbox:
        variables = environment(sandbox, sqlite_url, SCAN_ETL_API__CONCURRENCY="2")
        outcome = cli("run", "-", "--deadline", "1s", "--json", stdin=sandbox.pairs_text(), environment=variables)
    run_id = outcome.json()["run_id"]
    shown = cli("runs", "show", run_id[:10], "--json", "--database-url", sqlite_url)
    text = cli("runs", "show", run_id, "--database-url", sqlite_url)

    assert (outcome.exit_code, outcome.json()["stop_reason"]) == (4, "deadline of 1 s")
    found = shown.json()
    assert {name: found[name] for name in outcome.json()} == outcome.json() | {
        name: found[name] for name in ("started_at", "finished_at")
    }
    assert (found["state"], found["inputs"], found["settings"]["api.concurrency"]) == ("ended", ["-"], 2)
    assert "stop reason: deadline of 1 s" in text.stdout


@pytest.mark.parametrize(("beginning", "sentence"), [("a", "more than one run begins"), ("x%", "no run begins")])
def test_a_run_that_is_not_named_is_exit_2(cli: Command, sqlite_url: str, beginning: str, sentence: str) -> None:
    """And the sentence says where the names are."""
    change(sqlite_url, run("a1", hours=2.0), run("a2", hours=1.0))
    found = cli("runs", "show", beginning, "--database-url", sqlite_url)

    assert found.exit_code == 2
    assert f"{sentence} with '{beginning}': `scan-etl runs` lists them" in found.stderr


def test_people_read_a_table_in_which_nothing_is_cut(cli: Command, sqlite_url: str) -> None:
    """An id that doesn't fit into a narrow terminal goes on in the next line."""
    change(sqlite_url, run("0123456789abcdef" * 2, hours=1.0, state="ended", exit_code=0))
    with cli.start("runs", "--database-url", sqlite_url, environment={"COLUMNS": "60"}) as process:
        stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert "0123456789abcdef" * 2 in "".join(stdout.split())
