"""`scan-etl plan`: it says what a run then does, and leaves everything as it was."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Command, CommandResult
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from sqlalchemy import Connection, insert, select

from etl.database.connection import Database
from etl.database.schema import fetch_queue, metadata, scans
from etl.model import RETENTION, STILL_RUNNING, Pair
from etl.sandbox.world import Deployment, Token
from etl.store import plan as planning
from etl.store.plan import Share, format_duration, plan_queue, plan_staged

COUNTS = ("requested", "invalid", "duplicate", "already_final", "not_due", "to_fetch", "expiring", "expiry_unknown")


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""

    def work(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }

    with closing(Database(url)) as database:
        return database.run_here(work)


def add(url: str, table: Any, *rows: Mapping[str, Any]) -> None:
    """Insert rows, each with columns of its own."""

    def work(connection: Connection) -> None:
        for row in rows:
            connection.execute(insert(table).values(**row))

    with closing(Database(url)) as database:
        database.run_here(work)


def pairs_text(deployment_id: int, *scan_ids: int) -> str:
    return "".join(f"{deployment_id} {scan_id}\n" for scan_id in scan_ids)


def variables(sandbox: RunningSandbox, url: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url)


def without_token(given: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in given.items() if not name.startswith("SEMGREP_")}


def counts(outcome: CommandResult) -> dict[str, int]:
    assert outcome.exit_code == 0, outcome
    return {name: outcome.json()[name] for name in COUNTS if outcome.json()[name]}


def test_a_plan_of_files_says_what_the_run_then_does(cli: Command, database_url: str) -> None:
    """The counts and the requests of a plan are those of the run after it; it needs no token and sends nothing."""
    with running_sandbox(finished_world(60, never_finished_share=0.2)) as sandbox:
        given = variables(sandbox, database_url)
        first = cli("run", "-", "--json", stdin=pairs_text(120, *range(1, 41)), environment=given).json()
        text = pairs_text(120, *range(1, 61), 60, 60) + "nonsense\n"
        before, asked = everything(database_url), sum(sandbox.sandbox.stats.requests.values())

        plan = cli("plan", "-", "--json", stdin=text, environment=without_token(given))
        assert everything(database_url) == before
        assert sum(sandbox.sandbox.stats.requests.values()) == asked

        run = cli("run", "-", "--json", stdin=text, environment=given).json()

    waiting = first["waiting"]
    assert 0 < waiting < 20
    assert counts(plan) == {
        "requested": 63,
        "invalid": 1,
        "duplicate": 2,
        "already_final": 40 - waiting,
        "not_due": waiting,
        "to_fetch": 20,
        "expiry_unknown": 20,
    }
    shared = ("requested", "invalid", "duplicate", "already_final", "requests")
    assert {name: plan.json()[name] for name in shared} == {name: run[name] for name in shared}
    assert run["fetched"] == 20
    assert "stdin:63: 'nonsense' is not a deployment_id and a scan_id" in plan.stderr


def test_a_plan_of_the_queue_counts_what_is_due_or_comes_back_after_a_failure(cli: Command, database_url: str) -> None:
    """Scans that still run, pairs in a worker's hands and those put off are not due; the queue stays as it is."""
    now = datetime.now(UTC)
    earlier, soon, leased_until, later = (now + timedelta(seconds=seconds) for seconds in (-10, 1, 600, 3600))
    deployments = (Deployment(120, tokens=(Token("a"),)), Deployment(121, slug="other", tokens=(Token("b"),)))
    with running_sandbox(finished_world(60, deployments=deployments)) as sandbox:
        given = without_token(variables(sandbox, database_url))
        add(
            database_url,
            fetch_queue,
            *({"deployment_id": 120 + n % 2, "scan_id": n + 1} for n in range(10)),
            {"deployment_id": 120, "scan_id": 21, "due_at": earlier, "lease_token": "of a dead worker"},
            {"deployment_id": 120, "scan_id": 23, "due_at": leased_until, "lease_token": "of a worker"},
            {"deployment_id": 121, "scan_id": 22, "due_at": later},
            {"deployment_id": 121, "scan_id": 24, "due_at": later, "error_kind": STILL_RUNNING},
            {"deployment_id": 121, "scan_id": 26, "due_at": soon, "error_kind": "timeout", "attempts": 1},
        )
        before = everything(database_url)

        plan = cli("plan", "--json", environment=given)
        assert everything(database_url) == before

        tokens = {"SEMGREP_APP_TOKEN__120": "a", "SEMGREP_APP_TOKEN__121": "b"}
        run = cli("run", "--json", environment=given | tokens).json()

    assert counts(plan) == {"to_fetch": 12, "not_due": 3, "expiry_unknown": 12}
    assert plan.json()["deployments"] == [
        {"deployment_id": 120, "to_fetch": 6, "not_due": 1, "expiring": 0, "expiry_unknown": 6},
        {"deployment_id": 121, "to_fetch": 6, "not_due": 2, "expiring": 0, "expiry_unknown": 6},
    ]
    assert (run["fetched"], run["requests"]) == (12, plan.json()["requests"])


def test_a_plan_counts_what_would_expire_before_its_turn(database_url: str) -> None:
    """At 100 seconds a request the sixth of ten pairs comes too late for an expiry in 550 seconds.

    The deployments take turns.
    """
    expires_at = datetime.now(UTC) + timedelta(seconds=550)
    pairs = [{"deployment_id": deployment_id, "scan_id": n} for deployment_id in (120, 121) for n in range(1, 6)]
    names = ("started_at", "first_fetched_at", "fetched_at", "changed_at")
    unfinished = {**dict.fromkeys(names, expires_at - RETENTION), "content_hash": "0" * 32}
    add(database_url, scans, *({**pair, **unfinished} for pair in pairs))

    with closing(Database(database_url)) as database:
        staged = [*(Pair(**pair) for pair in pairs), Pair(121, 99)]
        database.run_here(partial(planning.add, pairs=staged, known=planning.KnownScan((), ())))
        plan = partial(plan_staged, valid=11, now=datetime.now(UTC), refresh=False)
        of_files = database.run_here(partial(plan, rate=0.01))
        too_slow = database.run_here(partial(plan, rate=1e-12))
        add(database_url, fetch_queue, *({**pair, "expires_at": expires_at} for pair in pairs))
        of_queue = database.run_here(partial(plan_queue, rate=0.01))

    assert of_files.shares == (Share(120, 5, 0, 2, 0), Share(121, 6, 0, 3, 1))
    assert (of_files.requests, of_files.seconds) == (13, 1300)
    assert [share.expiring for share in too_slow.shares] == [5, 5]
    assert of_queue.shares == (Share(120, 5, 0, 2, 0), Share(121, 5, 0, 3, 0))


def test_a_refresh_fetches_all_but_once_each(database_url: str) -> None:
    """With `refresh` neither a final scan nor one that was just found running is left out."""
    now = datetime.now(UTC)
    names = ("started_at", "completed_at", "first_fetched_at", "fetched_at", "changed_at")
    final = {**dict.fromkeys(names, now), "content_hash": "0" * 32}
    add(database_url, scans, {"deployment_id": 120, "scan_id": 1, **final})
    snoozed = {"due_at": now + timedelta(hours=1), "error_kind": STILL_RUNNING}
    add(database_url, fetch_queue, {"deployment_id": 120, "scan_id": 2, **snoozed})

    with closing(Database(database_url)) as database:
        pairs = [Pair(120, scan_id) for scan_id in (1, 2, 3, 3)]
        database.run_here(partial(planning.add, pairs=pairs, known=planning.KnownScan((), ())))
        plan = partial(plan_staged, valid=4, now=now, rate=1)
        plans = [database.run_here(partial(plan, refresh=refresh)) for refresh in (False, True)]

    assert [(plan.duplicate, plan.already_final) for plan in plans] == [(1, 1), (1, 0)]
    assert [(plan.shares[0].to_fetch, plan.shares[0].not_due) for plan in plans] == [(1, 1), (3, 0)]


@pytest.mark.parametrize("arguments", [("pairs.csv",), ()])
def test_a_plan_without_a_database_makes_none(cli: Command, arguments: tuple[str, ...]) -> None:
    """A missing SQLite file means that nothing is stored, and it is still missing afterwards."""
    (cli.folder / "pairs.csv").write_text("deployment_id,scan_id\n" + "120,1\n120,2\n120,2\n")

    outcome = cli("plan", *arguments)

    assert outcome.exit_code == 0
    assert f"There is no database {cli.folder / 'scans.db'} yet" in outcome.stdout
    assert f"to fetch: {2 if arguments else 0}\n" in outcome.stdout
    assert [path.name for path in cli.folder.iterdir()] == ["pairs.csv"]


def test_a_plan_leaves_an_sqlite_file_as_it_is_to_the_byte(cli: Command, sqlite_url: str) -> None:
    """It plans in a database of its own, of which nothing is left beside the file."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    before = path.read_bytes()

    outcome = cli("plan", "-", "--database-url", sqlite_url, stdin=pairs_text(120, *range(1, 2001)))

    assert outcome.exit_code == 0
    assert "at 20 requests a second: 1 min 41 s" in outcome.stdout
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cant_be_read_is_exit_2(cli: Command) -> None:
    """The file is named, and so is what is wrong with it."""
    outcome = cli("plan", "nowhere.csv")

    assert outcome.exit_code == 2
    assert "nowhere.csv can't be read" in outcome.stderr


def test_a_database_without_tables_is_exit_5(cli: Command, empty_postgres_url: str) -> None:
    """A run would fail there, too: the sentence says the fix."""
    outcome = cli("plan", "-", "--database-url", empty_postgres_url, stdin="120 1\n")

    assert outcome.exit_code == 5
    assert "run `scan-etl db upgrade`" in outcome.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.05, "1 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3599.5, "1 h"),
        (50_000.05, "13 h 53 min"),
        (86_400, "1 d"),
        (100_000, "1 d 3 h"),
    ],
)
def test_a_duration_is_spelled_in_its_two_largest_units(seconds: float, text: str) -> None:
    """Started seconds count as whole ones."""
    assert format_duration(seconds) == text
