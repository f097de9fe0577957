"""Repositories, and the kinds of search: `sync` finds every scan, whichever list the API gives."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from command import Command
from sandbox_client import Time
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from sqlalchemy import select, text, update
from tables_of import ask, change, count

from etl.database.schema import deployments, repositories, repository_watermarks, scan_listings, scans, watermarks
from etl.sandbox import Behaviour, Fault
from etl.sandbox.world import newest_id, repository_index

DAY = timedelta(days=1)
Kind = Literal["whole", "refused", "empty", "nothing"]


def variables(sandbox: RunningSandbox, url: str, **additions: str) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_DATABASE__URL=url, SCAN_ETL_QUEUE__MAX_ATTEMPTS="2", **additions)


def requests(sandbox: RunningSandbox) -> dict[str, int]:
    """Those since the last look, by call and status, but for the details."""
    stats = sandbox.sandbox.stats.requests
    found = {f"{endpoint} {status}": number for (endpoint, status), number in stats.items() if endpoint != "details"}
    stats.clear()
    return found


def night_after(clock: Time, **units: float) -> None:
    clock.now += timedelta(**units)


@pytest.mark.parametrize("kind", ["refused", "empty"])
def test_where_the_search_wants_a_repository_each_that_was_scanned_is_walked(
    cli: Command, database_url: str, kind: Kind
) -> None:
    """All scans are stored; the next night asks only for the repositories with a newer scan, and none if there is none;
    after a week it asks for all."""
    clock = Time(datetime.now(UTC))
    world = finished_world(60, scans_per_day=6.0, repositories=20)
    with running_sandbox(world, Behaviour(search=kind), clock) as sandbox:
        environment = variables(sandbox, database_url)
        first, asked_first = cli("sync", "--json", environment=environment), requests(sandbox)
        there = newest_id(world, clock.now)
        quiet, asked_quiet = cli("sync", "--json", environment=environment), requests(sandbox)
        night_after(clock, days=1)
        new = range(there + 1, newest_id(world, clock.now) + 1)
        second, asked_second = cli("sync", "--json", environment=environment), requests(sandbox)
        night_after(clock, days=7)
        cli("discover", environment=environment)
        asked_last = requests(sandbox)

    assert [one.exit_code for one in (first, quiet, second)] == [0, 0, 0], first
    whole = {"search 400": 1} if kind == "refused" else {}
    extra = 0 if kind == "refused" else 1
    assert asked_first == {"deployments 200": 1, "projects 200": 2, "search 200": 20 + extra, **whole}
    assert asked_quiet == {"projects 200": 2, **({"search 200": 1} if extra else whole)}
    scanned = {repository_index(world, number) for number in new}
    assert asked_second == {"projects 200": 2, "search 200": len(scanned) + extra, **whole}
    assert asked_last == {"projects 200": 2, "search 200": 20 + extra, **whole}
    assert count(database_url, scan_listings) >= there + len(new)
    assert first.json()["fetched"] + second.json()["fetched"] >= there
    assert "walking repository by repository" in first.stderr
    assert count(database_url, repository_watermarks) == 20


@pytest.mark.parametrize("command", ["sync", "discover"])
def test_a_list_that_is_empty_while_repositories_show_scans_is_a_failure(
    cli: Command, sqlite_url: str, command: str
) -> None:
    """Exit 4 and a sentence; no watermark moves, so that the next night looks again from where this one did."""
    clock = Time(datetime.now(UTC))
    with running_sandbox(finished_world(60, repositories=5), Behaviour(search="nothing"), clock) as sandbox:
        outcome = cli(command, "--json", environment=variables(sandbox, sqlite_url))
        night_after(clock, days=1)
        again = cli(command, "--json", environment=variables(sandbox, sqlite_url))

    assert [(one.exit_code, one.json()["discovered"]) for one in (outcome, again)] == [(4, 0), (4, 0)]
    assert "the search lists no scan, though 5 of 5 repositories were scanned" in outcome.stderr
    assert (count(sqlite_url, watermarks), count(sqlite_url, repository_watermarks)) == (0, 0)


def test_a_deployment_without_scans_is_nothing_new(cli: Command, sqlite_url: str) -> None:
    """Its repositories show none either."""
    with running_sandbox(finished_world(0, scans_per_day=0.001, idle_repositories=2)) as sandbox:
        outcome = cli("sync", "--json", environment=variables(sandbox, sqlite_url))

    assert (outcome.exit_code, outcome.json()["discovered"]) == (0, 0)
    assert count(sqlite_url, watermarks) == 1


def test_since_holds_for_each_repository(cli: Command, sqlite_url: str) -> None:
    """Only those that were scanned since then are walked, and no watermark moves over what was left out."""
    clock = Time(datetime.now(UTC))
    world = finished_world(60, scans_per_day=6.0, repositories=20)
    with running_sandbox(world, Behaviour(search="refused"), clock) as sandbox:
        outcome = cli("discover", "--json", "--since", "2d", environment=variables(sandbox, sqlite_url))
        asked = requests(sandbox)

    assert outcome.exit_code == 0, outcome
    listed = [row[0] for row in ask(sqlite_url, select(scan_listings.c.started_at))]
    assert 0 < len(listed) < 40
    assert min(listed) > clock.now - 2 * DAY
    assert asked["search 200"] < 20
    assert (count(sqlite_url, watermarks), count(sqlite_url, repository_watermarks)) == (0, 0)


def test_repositories_are_kept_with_their_names_and_marked_when_they_go(cli: Command, database_url: str) -> None:
    """Those that come, are renamed or archived are found out, and which were never scanned is known."""
    clock = Time(datetime.now(UTC))
    shares = {"new_share": 0.3, "renamed_share": 0.5, "archived_share": 0.3}
    world = finished_world(40, scans_per_day=20.0, repositories=200, idle_repositories=5, changes_days=20, **shares)
    everything = select(repositories).order_by(repositories.c.repository_id)
    with running_sandbox(world, clock=clock) as sandbox:
        environment = variables(sandbox, database_url)
        cli("discover", environment=environment)
        before, asked = ask(database_url, everything), requests(sandbox)
        night_after(clock, hours=1)
        cli("discover", environment=environment)
        asked_at_once = requests(sandbox)
        night_after(clock, days=30)
        cli("discover", environment=environment)

    after = {row.repository_id: row for row in ask(database_url, everything)}
    assert asked["projects 200"] == 3
    assert "projects 200" not in asked_at_once
    assert 100 < len(before) < len(after) <= 205
    assert all(after[row.repository_id].first_seen_at == row.first_seen_at for row in before)
    gone = [row for row in after.values() if row.gone_at is not None]
    assert len(gone) > 10
    assert all(row.seen_at < row.gone_at for row in gone)
    assert all(row.seen_at > before[0].seen_at for row in after.values() if row.gone_at is None)
    renamed = [row for row in before if after[row.repository_id].name == f"{row.name}-renamed"]
    assert len(renamed) > 10
    idle = [row for row in after.values() if row.repository_id >= 1_000_200]
    assert [(row.latest_scan_at, row.created_at is not None) for row in idle] == [(None, True)] * 5
    assert {type(row.tags) for row in before} == {list}
    assert ask(database_url, select(deployments.c.slug, deployments.c.name)) == [("sandbox", "Sandbox")]


@pytest.mark.parametrize("fault", ["status-403", "status-404", "status-500", "html", "broken-json"])
def test_repositories_that_cannot_be_listed_stop_no_walk(cli: Command, sqlite_url: str, fault: str) -> None:
    """The scans of a list that comes are fetched all the same, and the log says what is missing."""
    behaviour = Behaviour(faults=(Fault(fault, times=0, endpoint="projects"),))
    with running_sandbox(finished_world(5), behaviour) as sandbox:
        outcome = cli("sync", "--json", environment=variables(sandbox, sqlite_url, SCAN_ETL_API__RETRIES="0"))

    assert (outcome.exit_code, outcome.json()["remaining"]) == (0, 0)
    assert outcome.json()["fetched"] >= 5
    assert "repositories not listed" in outcome.stderr


def test_without_repositories_a_search_that_wants_one_is_a_failure(cli: Command, sqlite_url: str) -> None:
    """Exit 4, and both reasons."""
    behaviour = Behaviour(search="refused", faults=(Fault("status-403", times=0, endpoint="projects"),))
    with running_sandbox(finished_world(5), behaviour) as sandbox:
        outcome = cli("sync", "--json", environment=variables(sandbox, sqlite_url))

    assert outcome.exit_code == 4
    assert "repository_id is missing" in outcome.stderr
    assert "HTTP 403" in outcome.stderr


def test_a_deployment_that_was_renamed_is_asked_for_by_its_new_name(cli: Command, sqlite_url: str) -> None:
    """The old one is 404, so the API is asked what it is called."""
    with running_sandbox(finished_world(5)) as sandbox:
        environment = variables(sandbox, sqlite_url)
        cli("discover", environment=environment)
        change(sqlite_url, update(deployments).values(slug="of-old", repositories_at=None))
        outcome = cli("discover", environment=environment)

    assert outcome.exit_code == 0
    assert "not listed" not in outcome.stderr
    assert ask(sqlite_url, select(deployments.c.slug)) == [("sandbox",)]


def test_status_by_repository_adds_up(cli: Command, database_url: str) -> None:
    """What is listed of each repository is stored, waits, is dead or lost; those without scans are there, too. Each has
    its name before any of its scans is stored."""
    with running_sandbox(finished_world(60, repositories=6, idle_repositories=2)) as sandbox:
        environment = variables(sandbox, database_url)
        cli("discover", environment=environment)
        named = {row[0] for row in ask(database_url, text("SELECT repository FROM bi_coverage"))}
        cli("sync", environment=environment)
        found = json.loads(cli("status", "--by-repository", "--json", environment=environment).stdout)["repositories"]
        shown = cli("status", "--by-repository", environment=environment).stdout
    known: dict[int, Any] = {row.repository_id: row.name for row in ask(database_url, select(repositories))}

    assert {row["repository_id"]: row["repository"] for row in found} == known
    kinds = ("stored", "waiting", "dead", "expired", "dropped", "missing")
    assert all(row["listed"] == sum(row[kind] for kind in kinds) for row in found)
    assert sum(row["listed"] for row in found) == count(database_url, scan_listings) >= 60
    assert sum(row["stored"] for row in found) == count(database_url, scans)
    assert [(row["listed"], row["latest_scan_at"]) for row in found[-2:]] == [(0, None)] * 2
    assert known[1_000_000].split("/")[1][:8] in shown
    assert named == {row["repository"] for row in found[:-2]}
