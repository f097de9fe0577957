"""Faults that hit the whole API or the database: what ends a run, and what it rides through."""

import asyncio
import json
from contextlib import ExitStack, closing
from typing import Any

import pytest
from aiohttp import web
from command import Command
from faulty_runs import ONCE, QUICK, SCANS, as_it_was, hashes, hit_by, pairs_of, rows, run, scan_ids, truth
from patience import PATIENCE_SECONDS
from sandbox_thread import finished_world, running_sandbox
from scan_rows import document
from small_api import EXPIRED, UNTRUSTED, Call, SmallApi, found, in_thread, json_answer, raw_server, tls_of
from sqlalchemy import insert
from worker_processes import wait_until

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, scans
from etl.model import Pair
from etl.sandbox import Behaviour, Fault


def test_an_api_that_refuses_everything_ends_the_run_with_all_of_it_queued(cli: Command, sqlite_url: str) -> None:
    """After `max_wait_seconds` of 429 it is exit 4, with few requests and no attempt spent."""
    behaviour = Behaviour(faults=(Fault("status-429", times=0),))
    with running_sandbox(finished_world(SCANS), behaviour) as sandbox:
        patience = {"SCAN_ETL_API__MAX_WAIT_SECONDS": "1"}
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **ONCE | patience)

        assert sandbox.details_requests() <= 4 * 16

    summary, queued = outcome.json(), rows(sqlite_url, fetch_queue)
    assert outcome.exit_code == 4, outcome
    assert (summary["remaining"], summary["dead"], summary["fetched"]) == (SCANS, 0, 0)
    assert len(queued) == SCANS
    assert as_it_was(queued)


def test_a_refused_pair_waits_and_is_loaded(cli: Command, sqlite_url: str) -> None:
    """A pair that is refused, and may spend no attempt, is loaded like the others."""
    behaviour = Behaviour(faults=(Fault("status-429", 0.4, times=1),))
    with running_sandbox(finished_world(SCANS), behaviour) as sandbox:
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **ONCE)

        assert outcome.exit_code == 0, outcome
        assert hashes(sqlite_url) == truth(sandbox, set(range(1, SCANS + 1)))
        assert outcome.json()["rate_limited"] == len(hit_by(sandbox, times=1)) > 0


def test_a_limit_that_the_api_tells_of_is_never_run_into(cli: Command, sqlite_url: str) -> None:
    """With X-RateLimit headers one request at a time meets no refusal, though its pace is far above the limit."""
    behaviour = Behaviour(rate_limit=20, burst=12, rate_limit_headers=True)
    with running_sandbox(finished_world(SCANS), behaviour) as sandbox:
        alone = {"SCAN_ETL_API__CONCURRENCY": "1"}
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **ONCE | alone)

    assert outcome.exit_code == 0, outcome
    assert (outcome.json()["rate_limited"], outcome.json()["fetched"]) == (0, SCANS)


def test_an_outage_in_the_middle_is_ridden_through(cli: Command, sqlite_url: str) -> None:
    """All is loaded, though a pair that spends an attempt would be dead; meanwhile there are only probes."""
    healthy: set[Pair] = set()
    in_outage: list[Pair] = []
    probes = 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal probes
        if len(healthy) < 30 or probes >= 2:
            healthy.add(call.pair)
            return await found(call)
        in_outage.append(call.pair)
        probes += call.pair in healthy
        if len(in_outage) % 2 and call.request.transport is not None:
            call.request.transport.abort()
        return json_answer({}, status=503)

    with in_thread(SmallApi(answer)) as base_url:
        outcome = run(cli, base_url, sqlite_url, [Pair(120, number) for number in range(1, 101)], **ONCE)

    assert outcome.exit_code == 0, outcome
    assert (outcome.json()["fetched"], outcome.json()["dead"]) == (100, 0)
    assert scan_ids(sqlite_url, scans) == set(range(1, 101))
    assert 3 <= len(in_outage) <= 16 + 2
    assert "API unavailable" in outcome.stderr
    assert "API available again" in outcome.stderr


def test_a_queue_of_poisoned_pairs_dies_and_is_no_outage(cli: Command, sqlite_url: str) -> None:
    """Where nothing but pairs that always fail is left, each spends its attempts and is dead; exit 1."""
    behaviour = Behaviour(faults=(Fault("status-500", 0.7, times=0),))
    with running_sandbox(finished_world(SCANS), behaviour) as sandbox:
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **QUICK)

        poisoned = hit_by(sandbox, times=0)
        assert {sandbox.sandbox.stats.times_seen(number) for number in poisoned} == {2}

    assert outcome.exit_code == 1, outcome
    assert scan_ids(sqlite_url, dead_letters) == poisoned
    assert scan_ids(sqlite_url, scans) == set(range(1, SCANS + 1)) - poisoned != set()
    assert "API unavailable" not in outcome.stderr


@pytest.mark.parametrize("count", [1, 10, 60])
def test_an_api_that_shows_no_scan_at_all_buries_none(cli: Command, sqlite_url: str, count: int) -> None:
    """Its deployments call works, and still it is unavailable: exit 4 in the end, with everything queued as it was, and
    the next run stores it."""
    behaviour = Behaviour(faults=(Fault("status-500", times=0),))
    with running_sandbox(finished_world(count), behaviour) as sandbox:
        bounds = {**ONCE, "SCAN_ETL_API__MAX_WAIT_SECONDS": "1"}
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **bounds)
        queued = rows(sqlite_url, fetch_queue)
    with running_sandbox(finished_world(count)) as sandbox:
        after = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **ONCE)

    assert (outcome.exit_code, outcome.json()["dead"], outcome.json()["remaining"]) == (4, 0, count), outcome
    assert as_it_was(queued)
    assert "API unavailable" in outcome.stderr
    assert (after.exit_code, after.json()["fetched"]) == (0, count), after


def test_a_scan_that_mariadb_does_not_take_is_the_only_one_that_dies(cli: Command, mysql_url: str) -> None:
    """Its JSON is nested deeper than MariaDB reads it: that is no outage, and the others are stored."""

    async def answer(call: Call) -> web.StreamResponse:
        odd: dict[str, Any] = {}
        for _ in range(33 if call.pair.scan_id == 7 else 1):
            odd = {"odd": odd}
        return json_answer(document(call.pair, odd=odd))

    with in_thread(SmallApi(answer)) as base_url:
        outcome = run(cli, base_url, mysql_url, [Pair(120, number) for number in range(1, 61)], **ONCE)

    assert outcome.exit_code == 1, outcome
    assert [(dead["scan_id"], dead["error_kind"]) for dead in rows(mysql_url, dead_letters)] == [(7, "refused_row")]
    assert len(rows(mysql_url, scans)) == 59


async def test_a_text_that_is_not_unicode_is_written_down_as_one_that_is(cli: Command, database_url: str) -> None:
    """A redirect to a name in Latin-1, which no driver could store: its pair says why it isn't done."""

    async def talk(_: object, writer: asyncio.StreamWriter) -> None:
        location = b"Location: https://login.ex\xe4mple.com/sso\r\n"
        writer.write(b"HTTP/1.1 302 Found\r\n" + location + b"Connection: close\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(talk) as base_url:
        bounds = {**ONCE, "SCAN_ETL_API__MAX_WAIT_SECONDS": "1"}
        outcome = await asyncio.to_thread(run, cli, base_url, database_url, [Pair(120, 1)], **bounds)

    assert outcome.exit_code == 4, outcome
    [queued] = rows(database_url, fetch_queue)
    assert queued["error_kind"] == "http_status"
    assert "redirected to login.ex?mple.com" in queued["error"]


def test_a_database_that_refuses_a_lease_ends_the_run(cli: Command, sqlite_url: str) -> None:
    """No pair is to blame for that: all stay queued, and somebody's trigger is no bug of ours."""
    refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON fetch_queue BEGIN SELECT RAISE(ABORT, 'not now'); END"
    with closing(Database(sqlite_url)) as database:
        database.run_here(lambda connection: connection.exec_driver_sql(refuse))
    with in_thread(SmallApi()) as base_url:
        outcome = run(cli, base_url, sqlite_url, [Pair(120, 1)], **ONCE)

    assert outcome.exit_code == 5, outcome
    assert "the database refuses a row: not now" in outcome.json()["error"]
    assert len(rows(sqlite_url, fetch_queue)) == 1


def test_a_worker_gets_its_scans_when_an_expired_certificate_is_replaced(cli: Command, sqlite_url: str) -> None:
    """Until then it waits, as for every other outage."""
    with closing(Database(sqlite_url)) as database:
        database.run_here(
            lambda connection: connection.execute(insert(fetch_queue).values(deployment_id=120, scan_id=1))
        )
    environment = {"SCAN_ETL_DATABASE__URL": sqlite_url, "SSL_CERT_FILE": str(UNTRUSTED), **ONCE}
    with ExitStack() as stack:
        with in_thread(SmallApi(), tls_of(EXPIRED)) as base_url:
            environment["SCAN_ETL_API__BASE_URL"] = base_url
            worker = stack.enter_context(cli.start("worker", "--json", environment=environment))
            assert worker.stderr is not None
            said = next(line for line in worker.stderr if "API unavailable" in line)
        with in_thread(SmallApi(), tls_of(UNTRUSTED), int(base_url.rpartition(":")[2])):
            wait_until("the scan is stored", lambda: worker.poll() is not None or rows(sqlite_url, scans))
            worker.terminate()
            output, _ = worker.communicate(timeout=PATIENCE_SECONDS)

    assert "SSL_CERT_FILE" in said
    assert json.loads(output)["fetched"] == 1


def test_a_night_on_which_no_scan_is_shown_is_made_up_for_by_the_next(cli: Command, sqlite_url: str) -> None:
    """The list and the deployments call work, and each of ten new scans or so fails: exit 4, nothing dead. The next
    `sync` stores the ten."""
    environment = {**ONCE, "SCAN_ETL_DATABASE__URL": sqlite_url, "SCAN_ETL_API__MAX_WAIT_SECONDS": "1"}
    behaviour = Behaviour(faults=(Fault("status-502", times=0),))
    world = finished_world(10, scans_per_day=1.0)
    with running_sandbox(world, behaviour) as sandbox:
        first = cli("sync", "--json", environment={**environment, "SCAN_ETL_API__BASE_URL": sandbox.base_url})
        queued = rows(sqlite_url, fetch_queue)
    with running_sandbox(world) as sandbox:
        second = cli("sync", "--json", environment={**environment, "SCAN_ETL_API__BASE_URL": sandbox.base_url})

    assert (first.exit_code, first.json()["dead"], first.json()["fetched"]) == (4, 0, 0), first
    assert 10 <= len(queued) < 20
    assert as_it_was(queued)
    assert (second.exit_code, second.json()["dead"]) == (0, 0), second
    assert scan_ids(sqlite_url, scans) >= set(range(1, 11))
