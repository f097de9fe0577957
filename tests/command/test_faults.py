"""The real command against an API in trouble: each fault of the sandbox, outages, refusals and bad tokens."""

from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from command import Command, CommandResult
from faulty_runs import ONCE, QUICK, SCANS, as_it_was, hashes, hit_by, pairs_of, rows, run, truth
from sandbox_thread import finished_world, running_sandbox
from small_api import Call, SmallApi, found, in_thread, json_answer
from sqlalchemy import update

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, scan_meta, scan_stats, scans
from etl.database.types import utc_now
from etl.model import Pair
from etl.sandbox import FAULTS, Behaviour, Fault, World
from etl.sandbox.faults import chosen_fault


class Fate(NamedTuple):
    """What a fault makes of a pair that has it at every try: the kind and the status of its dead letter.

    `passes` says that it may be another thing the next time; else a pair is dead at once.
    """

    kind: str
    http_status: int | None
    passes: bool


DEADLY = {
    **{f"status-{code}": Fate("http_status", code, True) for code in (500, 502, 503, 504, 408, 413, 425)},
    "status-401": Fate("refused", 401, False),
    "status-403": Fate("refused", 403, False),
    "status-404": Fate("not_found", 404, False),
    "broken-json": Fate("broken_json", 200, True),
    "empty-body": Fate("broken_json", 200, True),
    "html": Fate("not_json", 200, True),
    "redirect": Fate("http_status", 302, True),
    "bad-encoding": Fate("broken_answer", None, True),
    "truncated": Fate("broken_answer", None, True),
    "reset": Fate("connection", None, True),
    "hang": Fate("timeout", None, True),
    "slow-body": Fate("timeout", None, True),
    "huge-body": Fate("too_large", 200, False),
    "not-an-object": Fate("not_an_object", None, False),
    "wrong-id": Fate("wrong_scan", None, False),
    "deep-json": Fate("too_deep", None, False),
}
HARMLESS = {"bom"}
SLOW = {"hang", "slow-body"}
CLEANED = {"nan", "nul-text", "surrogate-text", "big-integer"}
REFUSING = {"status-429"}
STOPPING = {"status-410"}


class Letter(NamedTuple):
    """What counts of a dead letter."""

    kind: str
    http_status: int | None
    attempts: int


class Mixed(NamedTuple):
    """A run against an API with many faults: what the scans met, what became of them, and what should have.

    Some scans have a fault always, some at their first try, some one after the other, most none.
    """

    scan_ids: range
    met: dict[int, list[str]]
    outcome: CommandResult
    letters: dict[int, Letter]
    hashes: dict[int, str]
    truth: dict[int, str]
    queued: set[int]


def met_by(world: World, faults: tuple[Fault, ...], number: int) -> list[str]:
    """The faults that a scan meets at its two tries, until it is loaded or dead."""
    met: list[str] = []
    for attempt in (1, 2):
        fault = chosen_fault(world.seed, faults, "details", number, attempt)
        if fault is None:
            break
        met.append(fault.name)
        if fault.name in HARMLESS or not DEADLY[fault.name].passes:
            break
    return met


def letter_of(met: list[str]) -> Letter | None:
    """The dead letter of a scan that has met these faults; None for one that is loaded."""
    if not met or met[-1] in HARMLESS:
        return None
    fate = DEADLY[met[-1]]
    return Letter(fate.kind, fate.http_status, len(met)) if len(met) == 2 or not fate.passes else None


def run_mixed(folder: Path, *, is_slow: bool) -> Mixed:
    """One run for all faults that come at once, or one with short timeouts for those that take their time."""
    names = [name for name in [*DEADLY, *HARMLESS] if (name in SLOW) == is_slow]
    always, once = (0.25, 0.6) if is_slow else (0.02, 0.05)
    faults = tuple(Fault(name, share, times) for name in names for share, times in ((always, 0), (once, 1)))
    url = f"sqlite:///{folder / 'scans.db'}"
    patience = {"SCAN_ETL_API__TIMEOUT_SECONDS": "1" if is_slow else "30"}
    world = finished_world(20 if is_slow else 400, seed=1)
    with running_sandbox(world, Behaviour(faults=faults, retry_after="absent", huge_bytes=2**20)) as sandbox:
        outcome = run(Command(folder), sandbox.base_url, url, pairs_of(sandbox), **QUICK | patience)
        scan_ids = range(1, world.scans + 1)
        return Mixed(
            scan_ids,
            {number: met_by(world, faults, number) for number in scan_ids},
            outcome,
            {
                row["scan_id"]: Letter(row["error_kind"], row["http_status"], row["attempts"])
                for row in rows(url, dead_letters)
            },
            hashes(url),
            truth(sandbox, set(scan_ids)),
            {row["scan_id"] for row in rows(url, fetch_queue)},
        )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Mixed]:
    """Both kinds of runs with mixed faults, each done once: a run a fault would take longer than all the rest."""
    return cache(lambda is_slow: run_mixed(tmp_path_factory.mktemp("mixed"), is_slow=is_slow))


def test_every_fault_of_the_sandbox_is_tested_here() -> None:
    """A new fault gets its place in one of these lists."""
    assert FAULTS.keys() == DEADLY.keys() | HARMLESS | CLEANED | REFUSING | STOPPING


@pytest.mark.parametrize("name", [*DEADLY, *HARMLESS])
def test_a_fault_that_passes_is_ridden_out_and_one_that_stays_is_a_dead_letter(
    mixed: Callable[[bool], Mixed], name: str
) -> None:
    """Who has it once is loaded, equal to the truth; who has it always is dead with its kind and its status."""
    ended = mixed(name in SLOW)
    hit = {number: letter_of(met) for number, met in ended.met.items() if name in met}
    loaded = {number for number, letter in hit.items() if letter is None}

    assert {number: ended.letters.get(number) for number in hit} == hit
    assert {number: ended.hashes.get(number) for number in loaded} == {number: ended.truth[number] for number in loaded}
    assert bool(loaded) == (name in HARMLESS or DEADLY[name].passes)
    if name in DEADLY:
        fate = DEADLY[name]
        assert Letter(fate.kind, fate.http_status, 2 if fate.passes else 1) in hit.values()


@pytest.mark.parametrize("is_slow", [False, True])
def test_faults_of_some_pairs_leave_the_others_alone(mixed: Callable[[bool], Mixed], is_slow: bool) -> None:
    """All others are loaded, none is left in the queue, and the summary adds up; exit 1, without a traceback."""
    ended = mixed(is_slow)
    dead = {number for number, met in ended.met.items() if letter_of(met)}
    summary = ended.outcome.json()

    assert ended.hashes == {number: ended.truth[number] for number in ended.scan_ids if number not in dead}
    assert ended.letters.keys() == dead
    assert ended.queued == set()
    assert (ended.outcome.exit_code, summary["exit_code"]) == (1, 1)
    assert (summary["dead"], summary["fetched"]) == (len(dead), len(ended.scan_ids) - len(dead))
    assert "Traceback" not in ended.outcome.stderr


def test_what_no_database_takes_is_loaded_cleaned(cli: Command, database_url: str) -> None:
    """NaN, NUL, a lone surrogate and a huge integer cost their own value its place, and no other one."""
    faults = tuple(Fault(name, 0.3, times=0) for name in sorted(CLEANED))
    with running_sandbox(finished_world(30), Behaviour(faults=faults)) as sandbox:
        outcome = run(cli, sandbox.base_url, database_url, pairs_of(sandbox), **ONCE)
        chosen = {number: chosen_fault(0, faults, "details", number, 1) for number in range(1, 31)}
        sound = truth(sandbox, {number for number, fault in chosen.items() if fault is None})

    by_fault = {name: [number for number, fault in chosen.items() if fault and fault.name == name] for name in CLEANED}
    stats = {row["scan_id"]: row for row in rows(database_url, scan_stats)}
    titles = {row["scan_id"]: row["commit_title"] for row in rows(database_url, scan_meta)}
    loaded = hashes(database_url)
    assert outcome.exit_code == 0, outcome
    assert all(by_fault.values())
    assert sound.items() <= loaded.items()
    assert len(loaded) == 30
    for number in by_fault["nan"]:
        assert (stats[number]["total_time_seconds"], stats[number]["extra"]["total_time"]) == (None, "NaN")
    for number in by_fault["big-integer"]:
        assert (stats[number]["findings"], stats[number]["extra"]["findings"]) == (None, str(2**70))
    assert {titles[number] for name in ("nul-text", "surrogate-text") for number in by_fault[name]} == {
        "before\ufffdafter"
    }


def test_a_retired_endpoint_stops_the_run(cli: Command, sqlite_url: str) -> None:
    """What isn't loaded by then stays in the queue as it was, and nothing dies."""
    faults = (Fault("status-410", 0.2, times=0),)
    with running_sandbox(finished_world(SCANS), Behaviour(faults=faults)) as sandbox:
        outcome = run(cli, sandbox.base_url, sqlite_url, pairs_of(sandbox), **ONCE, SCAN_ETL_API__CONCURRENCY="2")
        hit = hit_by(sandbox, times=0)
        loaded = hashes(sqlite_url)

        assert truth(sandbox, set(loaded)) == loaded

    queued = rows(sqlite_url, fetch_queue)
    assert outcome.exit_code == 4, outcome
    assert hit <= {row["scan_id"] for row in queued}
    assert len(loaded) + len(queued) == SCANS
    assert as_it_was(queued)
    assert rows(sqlite_url, dead_letters) == []
    assert outcome.json()["remaining"] == len(queued)


def test_a_scan_that_is_refused_costs_no_other_one(cli: Command, sqlite_url: str) -> None:
    """A 403 and a 410 for one path each among many that work: two dead letters, and the rest is stored in one run."""
    refusals = {5: 403, 250: 410}

    async def answer(call: Call) -> web.StreamResponse:
        status = refusals.get(call.pair.scan_id)
        return json_answer({"message": "not this one"}, status=status) if status else await found(call)

    with in_thread(SmallApi(answer)) as base_url:
        outcome = run(cli, base_url, sqlite_url, [Pair(120, number) for number in range(1, 501)], **ONCE)

    assert (outcome.exit_code, outcome.json()["fetched"], outcome.json()["remaining"]) == (1, 498, 0), outcome
    letters = {row["scan_id"]: (row["error_kind"], row["http_status"]) for row in rows(sqlite_url, dead_letters)}
    assert letters == {5: ("refused", 403), 250: ("gone", 410)}


def test_a_proxy_that_echoes_the_request_does_not_bring_the_token_out(cli: Command, sqlite_url: str) -> None:
    """Whatever the status and the place, no log line, no output and no column has it."""
    secret = "4f1c9e0a7b2d" * 4

    async def echo(call: Call) -> web.StreamResponse:
        headers = "\n".join(f"{name}: {value}" for name, value in call.request.headers.items())
        answer = web.Response(
            status={1: 200, 2: 404}.get(call.pair.scan_id, 500), body=f"<pre>{headers}</pre>".encode()
        )
        answer.headers["Content-Type"] = f"text/html; of={call.request.headers['Authorization']}"
        return answer

    with in_thread(SmallApi(echo)) as base_url:
        outcome = run(
            cli,
            base_url,
            sqlite_url,
            [Pair(120, number) for number in (1, 2, 3)],
            **ONCE | {"SEMGREP_APP_TOKEN": secret},
        )

    assert outcome.exit_code == 1
    assert outcome.stderr.count("***") >= 3
    assert secret not in outcome.stdout + outcome.stderr
    letters = rows(sqlite_url, dead_letters)
    assert {letter["http_status"] for letter in letters} == {200, 404, 500}
    assert secret not in repr(letters)


def test_a_token_revoked_midway_stops_its_own_deployment_only(cli: Command, sqlite_url: str) -> None:
    """The other deployment's pairs are all loaded, and its own are in the queue as they were; exit 3."""
    served = 0

    async def answer(call: Call) -> web.StreamResponse:
        nonlocal served
        if call.pair.deployment_id == 121:
            served += 1
            if served > 5:
                return json_answer({"message": "revoked"}, status=401)
        return await found(call)

    async def sees_its_own(call: Call) -> web.StreamResponse:
        number = int(call.request.headers["Authorization"][-3:])
        if number == 121 and served > 5:
            return json_answer({"message": "revoked"}, status=401)
        return json_answer({"deployments": [{"id": number}]})

    pairs = [Pair(deployment_id, number) for number in range(1, 31) for deployment_id in (120, 121)]
    with in_thread(SmallApi(answer, sees_its_own)) as base_url:
        tokens = {"SEMGREP_APP_TOKEN": "of-120", "SEMGREP_APP_TOKEN__121": "of-121"}
        outcome = run(cli, base_url, sqlite_url, pairs, **ONCE | tokens)

    loaded = [(row["deployment_id"], row["scan_id"]) for row in rows(sqlite_url, scans)]
    queued = rows(sqlite_url, fetch_queue)
    assert outcome.exit_code == 3, outcome
    assert [pair for pair in loaded if pair[0] == 120] == [(120, number) for number in range(1, 31)]
    assert len(loaded) == 35
    assert {(row["deployment_id"], row["scan_id"]) for row in queued} == set(pairs) - set(loaded)
    assert as_it_was(queued)
    assert "deployment_id=121" in outcome.stderr


@pytest.mark.parametrize("command", ["sync", "run"])
def test_what_an_incident_has_buried_is_stored_by_a_later_night(cli: Command, sqlite_url: str, command: str) -> None:
    """By itself, once its time has come; what has a reason of its own isn't asked for again."""
    is_over = False

    async def answer(call: Call) -> web.StreamResponse:
        if call.pair.scan_id == 2:
            return json_answer({}, status=404)
        return json_answer({}, status=502) if call.pair.scan_id == 3 and not is_over else await found(call)

    api = SmallApi(answer)
    with in_thread(api) as base_url:
        first = run(cli, base_url, sqlite_url, [Pair(120, number) for number in range(1, 6)], **ONCE)
        retry_at = {row["scan_id"]: row["retry_at"] for row in rows(sqlite_url, dead_letters)}
        is_over = True
        with closing(Database(sqlite_url)) as database:
            due = update(dead_letters).where(dead_letters.c.retry_at.is_not(None)).values(retry_at=utc_now())
            database.run_here(lambda connection: connection.execute(due))
        environment = {"SCAN_ETL_API__BASE_URL": base_url, "SCAN_ETL_DATABASE__URL": sqlite_url, **ONCE}
        second = cli(command, "--json", environment=environment)

    assert (first.exit_code, first.json()["dead"]) == (1, 2), first
    assert (retry_at[2], retry_at[3] is not None) == (None, True)
    assert (second.json()["fetched"], second.json()["dead"]) == (1, 0), second
    assert [row["scan_id"] for row in rows(sqlite_url, dead_letters)] == [2]
    assert api.times["/api/v1/deployments/120/scan/2"] == 1
    assert "dead letters whose reason may have passed" in second.stderr
