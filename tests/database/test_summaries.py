"""What is counted for dashboards is what is there, whatever has happened to the scans."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

from counted_days import count_all, counted, counted_anew
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leased_queue import end_leases, fill, lease, pairs, settle
from listings_of import entry
from scan_rows import scan_rows
from sqlalchemy import Connection, delete, func, select, text

from etl.database.connection import Database
from etl.database.schema import scans
from etl.database.summaries import duration_weeks, summary_marks
from etl.model import Complete, Discard, Outcome, Snooze
from etl.store import dropping, listings, pruning, status
from etl.store.forget import forget
from etl.store.revive import revive
from etl.store.scans import load_scans
from etl.store.summaries import mark_everything, refresh_piece
from etl.transform.person import Person
from etl.transform.search_page import read_page

FIRST = datetime(2026, 2, 27, 23, 30, tzinfo=UTC)
REPOSITORIES: list[dict[str, Any]] = [
    {"repository_id": 7, "meta": {"repository": "acme/pay", "is_full_scan": True}},
    {"repository_id": 7, "meta": {"repository": "acme/renamed", "pull_request_id": "3"}},
    {"repository_id": None, "meta": {"repository": "7", "commit_author_username": "ann"}},
    {"repository_id": 8, "meta": None},
]


def began_at(hours: int) -> dict[str, Any]:
    """So many hours after the first: over midnight, a week's and a month's end. 99: no start at all."""
    start = FIRST + timedelta(hours=hours)
    return {
        "started_at": None if hours == 99 else str(start),
        "completed_at": str(start + timedelta(minutes=hours % 7 - 1)),
    }


SCANS = st.integers(1, 6)
HOURS = st.sampled_from([0, 1, 2, 26, 49, 24 * 12, 99, -24 * 365 * 40])
Step = Callable[[Database], object]


def loads(number: int, hours: int, repository: int, code: int | None, minutes: int) -> Step:
    """A scan comes, for the first time or changed; without an exit code it has no end either."""
    changes = REPOSITORIES[repository] | began_at(hours) | {"exit_code": code}
    rows = scan_rows(number, minutes=minutes, **changes | ({"completed_at": None} if code is None else {}))
    return lambda database: database.run_here(partial(load_scans, batch=[rows], run_id="run"))


def lists(number: int, hours: int, state: str) -> Step:
    """A walk lists a scan, and queues it where that is asked for."""
    start = FIRST + timedelta(hours=hours) if hours < 99 else None
    fields: dict[str, Any] = {
        "status": state,
        "started_at": start and start.isoformat(),
        "is_full_scan": state.endswith("ERROR"),
    }
    page = read_page(120, {"scans": [entry(number, **fields)]})
    to_record = listings.PageToRecord(page, FIRST + timedelta(days=20), False, 60.0)
    return lambda database: database.run_here(partial(listings.record, to_record=to_record))


def settles(number: int, what: str) -> Step:
    """A worker takes what is due, and stores it, or gives it up."""

    def step(database: Database) -> None:
        end_leases(database)
        for each in lease(database, "w", limit=1):
            rows = scan_rows(each.pair.scan_id, **began_at(number), repository_id=7)
            outcomes: dict[str, Outcome] = {
                "stored": Complete(rows),
                "dead": Discard(each.pair, 5, "http_status", "away", 500, 0.0),
                "gone": Discard(each.pair, 1, "not_found", "gone", 404),
                "running": Snooze(scan_rows(each.pair.scan_id, completed_at=None, exit_code=None), 60.0, FIRST),
            }
            settle(database, "w", outcomes[what])

    return step


EVERYBODY = status.DeadLetterFilter()
OTHERS: dict[str, Step] = {
    "enqueue": lambda database: fill(database, *pairs(1, 2, 3)),
    "requeue": lambda database: database.run_here(partial(status.requeue_dead, which=EVERYBODY)),
    "drop dead": lambda database: database.run_here(partial(status.drop_dead, which=EVERYBODY)),
    "drop queued": lambda database: dropping.drop_chosen(database, dropping.Choice()),
    "revive": lambda database: database.run_here(revive),
    "expire": lambda database: database.run_here(
        partial(dropping.bury_expired, deployment_id=120, reason="no token", run_id="run")
    ),
    "forget": lambda database: forget(database, Person("ann", ""), dry_run=False),
    "prune": lambda database: [
        *pruning.prune_dead_letters(database, pruning.Choice(datetime.now(UTC))),
        *pruning.prune_scans(database, pruning.Choice(FIRST + timedelta(hours=2))),
    ],
    "count": lambda database: database.run_here(refresh_piece),
}
STATES = ("SCAN_STATUS_COMPLETED", "SCAN_STATUS_ERROR", "SCAN_STATUS_CANCELLED", "SCAN_STATUS_RUNNING")
STEPS = st.one_of(
    st.builds(loads, SCANS, HOURS, st.integers(0, 3), st.sampled_from([0, 1, 2, None]), st.sampled_from([60, 120])),
    st.builds(lists, SCANS, HOURS, st.sampled_from(STATES)),
    st.builds(settles, st.sampled_from([0, 26]), st.sampled_from(["stored", "dead", "gone", "running"])),
    st.sampled_from(sorted(OTHERS)).map(OTHERS.__getitem__),
)


def both_counts(database: Database, steps: list[Step]) -> tuple[Any, Any]:
    """What the marks of these steps lead to, and what there is."""
    for step in steps:
        step(database)
    database.run_here(count_all)
    return database.run_here(counted), database.run_here(counted_anew)


@given(st.lists(STEPS, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_leaves_its_marks(sqlite_template: Path, tmp_path_factory: Any, steps: list[Step]) -> None:
    """After any changes, counting the marked days gives what counting everything gives."""
    file = tmp_path_factory.mktemp("counted") / "scans.db"
    file.write_bytes(sqlite_template.read_bytes())
    with closing(Database(f"sqlite:///{file}")) as database:
        by_marks, anew = both_counts(database, steps)

    assert by_marks == anew


def test_each_step_leaves_its_marks_on_each_database(database_url: str) -> None:
    """The same for one story in which everything happens once."""
    story = [
        lists(1, 0, "SCAN_STATUS_COMPLETED"),
        lists(2, 26, "SCAN_STATUS_RUNNING"),
        lists(4, 49, "SCAN_STATUS_COMPLETED"),
        OTHERS["count"],
        settles(0, "stored"),
        settles(0, "dead"),
        OTHERS["count"],
        OTHERS["revive"],
        OTHERS["count"],
        settles(26, "gone"),
        loads(5, 1, 1, 1, 60),
        loads(5, 26, 0, 1, 120),
        loads(6, 99, 2, 0, 60),
        loads(2, 2, 3, None, 60),
        OTHERS["enqueue"],
        OTHERS["count"],
        OTHERS["forget"],
        OTHERS["requeue"],
        OTHERS["count"],
        OTHERS["drop queued"],
        OTHERS["drop dead"],
        OTHERS["prune"],
    ]
    with closing(Database(database_url)) as database:
        by_marks, anew = both_counts(database, story)

    assert by_marks == anew
    assert all(by_marks.values())


def test_the_counts_are_those_of_the_scans(database_url: str) -> None:
    """Added up from the rows of the scans by hand, with their odd starts, ends, names and findings."""
    numbers = range(1, 200)
    batch = [
        scan_rows(
            number,
            minutes=60 * 24 * 20,
            **REPOSITORIES[number % 4] | began_at(number % 5 * 37 if number % 9 else 99),
            exit_code=number % 4,
            stats={"findings": number % 11},
        )
        for number in numbers
    ]
    with closing(Database(database_url)) as database:
        database.run_here(partial(load_scans, batch=batch, run_id="run"))
        database.run_here(count_all)
        by_hand, daily, groups, weeks = database.run_here(_by_hand_and_counted)

    assert daily == by_hand["daily"]
    assert groups == by_hand["groups"]
    assert weeks == by_hand["weeks"]


def _by_hand_and_counted(connection: Connection) -> tuple[Any, ...]:
    found = [row._asdict() for row in connection.execute(text("SELECT * FROM bi_scan"))]
    key = {row["scan_id"]: (row["repository_id"], row["repository"]) for row in found}
    daily: Counter[Any] = Counter()
    groups: Counter[Any] = Counter()
    durations: dict[Any, list[float]] = {}
    for row in found:
        day = row["started_day"] and date.fromisoformat(str(row["started_day"]))
        groups[str(day), row["outcome"], bool(row["is_full_scan"])] += 1
        if day:
            number, name = key[row["scan_id"]]
            daily[str(day), number, None if number else name] += 1
            if row["duration_seconds"] is not None:
                durations.setdefault(str(day - timedelta(days=day.weekday())), []).append(row["duration_seconds"])
    weeks = {
        week: (len(each), *(round(quantiles(each, n=20, method="inclusive")[at], 6) for at in (9, 18)), max(each))
        for week, each in durations.items()
    }
    shown_daily = {
        (str(row[0]), row[1], None if row[1] else row[2]): int(row[3])
        for row in connection.execute(
            text("SELECT day, repository_id, repository, scans FROM bi_scan_daily WHERE scans > 0")
        )
    }
    shown_groups = {
        (str(row[0]), row[1], bool(row[2])): int(row[3])
        for row in connection.execute(
            text("SELECT day, outcome, is_full_scan, SUM(scans) FROM bi_scan_group_daily GROUP BY 1, 2, 3")
        )
    }
    shown_weeks = {
        str(row[0]): (int(row[1]), round(row[2], 6), round(row[3], 6), row[4])
        for row in connection.execute(
            text(
                "SELECT week, scans, p50_seconds, p95_seconds, longest_seconds FROM bi_duration_weekly"
                " WHERE scan_kind = 'all'"
            )
        )
    }
    return {"daily": dict(daily), "groups": dict(groups), "weeks": weeks}, shown_daily, shown_groups, shown_weeks


def test_a_week_has_the_durations_of_all_its_days(database_url: str) -> None:
    """Also of those that were counted before, of each deployment, when only one of its days is counted."""

    def add(database: Database, deployment_id: int, number: int, day: int) -> None:
        start = datetime(2026, 3, day, 12, tzinfo=UTC)
        times = {"started_at": str(start), "completed_at": str(start + timedelta(seconds=number))}
        rows = scan_rows(number, deployment_id=deployment_id, minutes=60 * 24 * 20, **times)
        database.run_here(partial(load_scans, batch=[rows], run_id="run"))
        database.run_here(count_all)

    with closing(Database(database_url)) as database:
        for deployment_id, number, day in [(120, 10, 2), (121, 70, 2), (120, 40, 8), (120, 20, 4)]:
            add(database, deployment_id, number, day)
        statement = select(duration_weeks).where(duration_weeks.c.scan_kind == "all")
        found = database.run_here(lambda connection: connection.execute(statement).all())

    weeks = {row.deployment_id: (row.scans, row.p50_seconds, row.longest_seconds) for row in found}
    assert weeks == {120: (3, 20.0, 40.0), 121: (1, 70.0, 70.0), 0: (4, 30.0, 70.0)}


def test_a_mark_that_comes_while_a_day_is_counted_is_kept(server_url: str) -> None:
    """A writer that hasn't committed when its day is counted is counted the next time."""
    with closing(Database(server_url)) as database, closing(Database(server_url)) as other:
        database.run_here(partial(load_scans, batch=[scan_rows(1)], run_id="run"))
        with other.engine.begin() as writing:
            load_scans(writing, [scan_rows(2)], "run")
            database.run_here(count_all)
            before = database.run_here(_scans_counted)
        database.run_here(count_all)

        assert (before, database.run_here(_scans_counted)) == (1, 2)


def _scans_counted(connection: Connection) -> int:
    return int(connection.execute(text("SELECT COALESCE(SUM(scans), 0) FROM bi_scan_daily")).scalar_one())


def test_counting_that_is_interrupted_leaves_all_as_it_was(database_url: str) -> None:
    """A piece is one transaction: the counts and the marks of before are there, and the next one counts."""
    with closing(Database(database_url)) as database:
        database.run_here(partial(load_scans, batch=[scan_rows(1)], run_id="run"))
        with database.engine.connect() as connection:
            refresh_piece(connection)
            connection.rollback()
        left = database.run_here(lambda connection: connection.execute(select(func.count()).select_from(summary_marks)))
        database.run_here(count_all)

        assert left.scalar_one() > 0
        assert database.run_here(_scans_counted) == 1


def test_a_scan_that_runs_is_given_up_without_a_change(database_url: str) -> None:
    """A day with a scan that runs is counted again when that has run for a day."""
    now = datetime.now(UTC)
    rows = scan_rows(1, minutes=60 * 24 * 3_650, started_at=str(now - timedelta(hours=2)), completed_at=None)
    ask = text("SELECT SUM(running), SUM(unfinished) FROM bi_scan_daily")
    with closing(Database(database_url)) as database:
        database.run_here(partial(load_scans, batch=[rows], run_id="run"))
        database.run_here(count_all)
        at_first = database.run_here(lambda connection: connection.execute(ask).one())
        due_at = database.run_here(lambda connection: connection.execute(select(summary_marks.c.due_at)).scalar_one())

        assert tuple(map(int, at_first)) == (1, 0)
        assert abs(due_at - now - timedelta(hours=22)) < timedelta(minutes=1)


def test_rows_that_another_program_wrote_are_counted_when_asked_for(database_url: str) -> None:
    """They leave no mark; `db refresh --all` counts everything, also what is gone."""
    with closing(Database(database_url)) as database:
        database.run_here(partial(load_scans, batch=[scan_rows(1), scan_rows(2)], run_id="run"))
        database.run_here(count_all)
        database.run_here(lambda connection: connection.execute(delete(scans).where(scans.c.scan_id == 1)))
        database.run_here(count_all)
        before = database.run_here(_scans_counted)
        database.run_here(mark_everything)
        database.run_here(count_all)

        assert (before, database.run_here(_scans_counted)) == (2, 1)


def test_the_dead_letters_of_a_file_move_the_coverage_of_a_listed_day(database_url: str) -> None:
    """A listed scan that waits, dies and is requeued changes its state in `bi_coverage` each time."""
    story = [lists(1, 0, "SCAN_STATUS_COMPLETED"), settles(0, "dead"), OTHERS["requeue"]]
    ask = text("SELECT SUM(waiting), SUM(dead) FROM bi_coverage")
    seen = []
    with closing(Database(database_url)) as database:
        for step in story:
            step(database)
            database.run_here(count_all)
            seen.append(tuple(map(int, database.run_here(lambda connection: connection.execute(ask).one()))))

    assert seen == [(1, 0), (0, 1), (1, 0)]
