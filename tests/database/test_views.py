"""The views for dashboards, on known data, on each dialect."""

import hashlib
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from counted_days import count_all
from scan_rows import BEGAN_AT, scan_rows
from sqlalchemy import Connection, column, func, insert, select, table, text, update

from etl.database.connection import Database
from etl.database.migrate import dictionary
from etl.database.schema import dead_letters, fetch_queue, scan_listings, scans
from etl.model import ScanRows
from etl.store.scans import load_scans
from etl.transform.timing import started_day
from migrations.views import FOLDER
from migrations.views.macros import in_words_of

DAY = timedelta(days=1)


def query(url: str, sql: str, *batch: ScanRows) -> list[tuple[Any, ...]]:
    """Load a batch, then ask."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        load_scans(connection, batch, "run")
        count_all(connection)
        return [tuple(row) for row in connection.execute(text(sql))]

    with closing(Database(url)) as database:
        return database.run_here(work)


def at(day: int, time: str) -> str:
    return f"2026-02-{day:02} {time}+00:00"


def test_a_scan_is_one_wide_row(database_url: str) -> None:
    """Duration in seconds with microseconds, the products in one text, and a readable outcome."""
    sql = (
        "SELECT scan_id, repository, is_pull_request, duration_seconds, outcome, products, findings, started_day"
        " FROM bi_scan ORDER BY scan_id"
    )
    found = query(
        database_url,
        sql,
        scan_rows(1, started_at=at(1, "23:59:59.999999"), completed_at=at(2, "00:01:00.000001")),
        scan_rows(2, exit_code=1, meta={"repository": "acme/web", "pull_request_id": "7"}, enabled_products=[]),
        scan_rows(3, exit_code=-9),
        scan_rows(4, exit_code=None),
        scan_rows(5, completed_at=None, exit_code=None),
        scan_rows(6, started_at=None, meta=None, stats=None),
        scan_rows(7, started_at=str(datetime.now(UTC)), completed_at=None, exit_code=None),
    )

    assert [(*row[:7], str(row[7])) for row in found] == [
        (1, "acme/pay", 0, 60.000002, "passed", "code,secrets", 3, "2026-02-01"),
        (2, "acme/web", 1, 90.25, "findings", None, 3, "2026-03-01"),
        (3, "acme/pay", 0, 90.25, "failed", "code,secrets", 3, "2026-03-01"),
        (4, "acme/pay", 0, 90.25, "unknown", "code,secrets", 3, "2026-03-01"),
        (5, "acme/pay", 0, None, "unfinished", "code,secrets", 3, "2026-03-01"),
        (6, None, 0, None, "passed", "code,secrets", None, "None"),
        (7, "acme/pay", 0, None, "running", "code,secrets", 3, str(found[6][7])),
    ]


@pytest.mark.parametrize(
    ("sent", "products"),
    [
        (["sast", "sca", "secrets"], "code,secrets,supply_chain"),
        (["code", "PRODUCT_SAST", "sast"], "code"),
        (["supply-chain", "supply_chain", "PRODUCT_AI_SAST", "PRODUCT_SCA"], "ai,supply_chain"),
        (["containers", "secrets"], "containers,secrets"),
    ],
)
def test_a_product_has_one_word(database_url: str, sent: list[str], products: str) -> None:
    """Whatever the API or the scanner writes; one that is unknown is itself."""
    found = query(database_url, "SELECT products FROM bi_scan", scan_rows(1, enabled_products=sent))

    assert found == [(products,)]


@pytest.mark.parametrize(("listed", "sent", "shown"), [(None, True, 1), (False, True, 0), (True, None, 1)])
def test_a_full_scan_is_known_by_its_listing_or_its_details(
    database_url: str, listed: bool | None, sent: bool | None, shown: int
) -> None:
    """The listing counts; a scan that was never listed has what its details say."""

    def work(connection: Connection) -> int:
        load_scans(connection, [scan_rows(1, meta={"is_full_scan": sent})], "run")
        if listed is not None:
            row = {"deployment_id": 120, "scan_id": 1, "listed_at": BEGAN_AT, "is_full_scan": listed}
            connection.execute(insert(scan_listings), row)
        return int(connection.execute(text("SELECT is_full_scan FROM bi_scan")).scalar_one())

    with closing(Database(database_url)) as database:
        assert database.run_here(work) == shown


def test_the_daily_view_is_dense(database_url: str) -> None:
    """Every repository has a row on every day of the data, with zeros where nothing ran."""
    sql = (
        "SELECT day, repository, scans, passed, with_findings, failed, unfinished, findings, duration_seconds_total,"
        " duration_seconds_average, duration_seconds_longest FROM bi_scan_daily ORDER BY day, repository"
    )
    found = query(
        database_url,
        sql,
        scan_rows(1, started_at=at(1, "10:00:00"), completed_at=at(1, "10:00:10")),
        scan_rows(2, started_at=at(1, "23:59:59"), completed_at=at(2, "00:00:29"), exit_code=1),
        scan_rows(3, started_at=at(3, "00:00:00"), completed_at=at(3, "00:00:05"), exit_code=2),
        scan_rows(4, repository_id=8, meta={"repository": "acme/web"}, started_at=at(2, "08:00:00"), completed_at=None),
    )

    day = date(2026, 2, 1)
    assert [(date.fromisoformat(str(row[0])), row[1], *map(as_number, row[2:])) for row in found] == [
        (day, "acme/pay", 2, 1, 1, 0, 0, 6, 40.0, 20.0, 30.0),
        (day, "acme/web", 0, 0, 0, 0, 0, 0, 0.0, None, None),
        (day.replace(day=2), "acme/pay", 0, 0, 0, 0, 0, 0, 0.0, None, None),
        (day.replace(day=2), "acme/web", 1, 0, 0, 0, 1, 3, 0.0, None, None),
        (day.replace(day=3), "acme/pay", 1, 0, 0, 1, 0, 3, 5.0, 5.0, 5.0),
        (day.replace(day=3), "acme/web", 0, 0, 0, 0, 0, 0, 0.0, None, None),
    ]


def test_coverage_accounts_for_every_listed_scan(database_url: str) -> None:
    """Each listed scan is stored, waits, is dead, has expired, was dropped, or is missing; what was never listed is
    apart. What was dropped and is held again counts as what holds it."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        mark = {"listed_at": BEGAN_AT, "repository_id": 7, "started_at": BEGAN_AT, "started_day": BEGAN_AT.date()}
        each = [{"deployment_id": 120, "scan_id": number, **mark} for number in (*range(1, 10), *range(12, 19))]
        next_day = {"started_at": BEGAN_AT + DAY, "started_day": (BEGAN_AT + DAY).date()}
        other = {"deployment_id": 120, "scan_id": 10, **mark, "repository_id": 8, **next_day}
        connection.execute(insert(scan_listings), [*each, other])
        for number, name in (
            (6, "details_gone_at"),
            (7, "details_gone_at"),
            (7, "expired_at"),
            (8, "expired_at"),
            (12, "expired_at"),
            *((number, "dropped_at") for number in range(13, 19)),
            (17, "expired_at"),
            (18, "details_gone_at"),
        ):
            connection.execute(
                update(scan_listings).where(scan_listings.c.scan_id == number).values({name: BEGAN_AT + DAY})
            )
        open_: dict[str, Any] = {"completed_at": None, "exit_code": None}
        load_scans(
            connection,
            [
                scan_rows(1),
                *(scan_rows(number, **open_) for number in (2, 3, 12)),
                scan_rows(8),
                scan_rows(11, meta=None),
                scan_rows(14),
            ],
            "run",
        )
        connection.execute(insert(fetch_queue), [{"deployment_id": 120, "scan_id": number} for number in (3, 4, 15)])
        died = {"died_at": BEGAN_AT, "due_at": BEGAN_AT}
        dead = [{"deployment_id": 120, "scan_id": number, **died} for number in (5, 7, 16)]
        connection.execute(insert(dead_letters), dead)
        count_all(connection)
        sql = (
            "SELECT day, repository_id, repository, listed, stored, waiting, dead, expired, dropped, missing,"
            " stored_without_end, details_gone, stored_unlisted FROM bi_coverage ORDER BY 1, 2"
        )
        return [(str(row[0]), *row[1:3], *map(int, row[3:])) for row in connection.execute(text(sql))]

    with closing(Database(database_url)) as database:
        found = database.run_here(work)

    assert found == [
        ("2026-03-01", 7, "acme/pay", 16, 5, 3, 3, 1, 3, 1, 2, 3, 1),
        ("2026-03-02", 8, None, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0),
    ]


IN_THE_DAILY_VIEW = (
    *("passed", "with_findings", "failed", "unknown", "running", "unfinished", "cancelled", "never_finished"),
)


def test_what_the_listing_knows_of_an_end_is_in_the_views(database_url: str) -> None:
    """A cancelled scan has no `completed_at`, and doesn't run for ever in a chart: nor does what nobody knows the end
    of. Each outcome has its column in the daily view, and they add up."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        now = datetime.now(UTC)
        open_: dict[str, Any] = {"completed_at": None, "exit_code": None}
        minutes = (now - BEGAN_AT) // timedelta(minutes=1)
        load_scans(connection, [scan_rows(7, minutes=minutes, **open_, started_at=str(now))], "run")
        load_scans(connection, [scan_rows(8, exit_code=None)], "run")
        load_scans(connection, [scan_rows(number, **open_) for number in range(1, 6)], "run")
        load_scans(connection, [scan_rows(6, completed_at=None, exit_code=2)], "run")
        statuses = {
            1: "SCAN_STATUS_CANCELLED",
            2: "SCAN_STATUS_NEVER_FINISHED",
            3: "SCAN_STATUS_RUNNING",
            4: None,
            5: "SCAN_STATUS_COMPLETED",
            6: "SCAN_STATUS_ERROR",
        }
        rows = [
            {"deployment_id": 120, "scan_id": number, "status": status, "listed_at": BEGAN_AT, "is_full_scan": True}
            for number, status in statuses.items()
        ]
        connection.execute(insert(scan_listings), rows)
        outcomes = connection.execute(text("SELECT outcome FROM bi_scan ORDER BY scan_id")).scalars()
        sums: list[Any] = [func.sum(column(name)) for name in ("scans", *IN_THE_DAILY_VIEW)]
        count_all(connection)
        daily = connection.execute(select(*sums).select_from(table("bi_scan_daily"))).one()
        return [*outcomes, tuple(map(int, daily))]

    with closing(Database(database_url)) as database:
        found = database.run_here(work)

    ends = ["cancelled", "never_finished", "unfinished", "unfinished", "unknown", "failed", "running", "unknown"]
    assert found == [*ends, (8, 0, 0, 1, 2, 1, 2, 1, 1)]


def test_a_name_that_looks_like_an_id_is_a_name(database_url: str) -> None:
    """A repository called 100 that has no id isn't the one with the id 100, nor gives it its name."""
    found = query(
        database_url,
        "SELECT repository_id, repository, SUM(scans) FROM bi_scan_daily GROUP BY 1, 2 ORDER BY 2",
        scan_rows(1, repository_id=100, started_at=at(1, "10:00:00"), meta={"repository": "acme/pay"}),
        scan_rows(2, repository_id=None, started_at=at(2, "10:00:00"), meta={"repository": "100"}),
    )

    assert [(row[0], row[1], int(row[2])) for row in found] == [(None, "100", 1), (100, "acme/pay", 1)]


def test_a_scan_says_what_charts_group_by(database_url: str) -> None:
    """The branch without its prefix, the first line of the title, the week's Monday, the month, findings by product."""
    sql = (
        "SELECT scan_id, branch_name, commit_title_line, started_week, started_month, findings_code,"
        " findings_supply_chain, findings_secrets, scan_environment, engine_requested FROM bi_scan ORDER BY scan_id"
    )
    meta = {"branch": "refs/heads/feature/x", "commit_title": "Fix it\r\n\nbody", "scan_environment": "jenkins"}
    stats = {"findings_by_product": {"sast": 2, "code": 3, "sca": 4, "other": 9}, "engine_requested": "PRO_LANG"}
    found = query(
        database_url,
        sql,
        scan_rows(1, started_at="2026-03-01T23:59:59Z", meta=meta, stats=stats),
        scan_rows(2, started_at="2026-03-02T00:00:00Z", meta={"branch": "refs/pull/7/merge", "commit_title": "One"}),
        scan_rows(3, started_at=None, meta=None, stats=None),
    )

    assert [(*row[:3], str(row[3]), str(row[4]), *row[5:]) for row in found] == [
        (1, "feature/x", "Fix it", "2026-02-23", "2026-03-01", 5, 4, None, "jenkins", "PRO_LANG"),
        (2, "refs/pull/7/merge", "One", "2026-03-02", "2026-03-01", 2, None, 1, None, "OSS"),
        (3, None, None, "None", "None", None, None, None, None, None),
    ]


def as_number(value: Any) -> float | None:
    return None if value is None else float(value)


def test_absurd_numbers_of_findings_do_not_spoil_the_days(database_url: str) -> None:
    """What no scan can have found isn't summed up."""
    found = query(
        database_url,
        "SELECT scans, findings FROM bi_scan_daily",
        *(scan_rows(number, started_at=at(1, "10:00:00"), stats={"findings": 2**63 - 1}) for number in (1, 2)),
        scan_rows(3, started_at=at(1, "10:00:00"), stats={"findings": 5}),
        scan_rows(4, started_at=at(1, "10:00:00"), stats={"findings": -(2**63)}),
    )

    assert [(int(row[0]), int(row[1])) for row in found] == [(4, 5)]


def test_a_renamed_repository_is_one_repository_under_its_newest_name(database_url: str) -> None:
    """The API's number counts, and without one the name."""
    found = query(
        database_url,
        "SELECT repository_id, repository, SUM(scans) FROM bi_scan_daily GROUP BY 1, 2 ORDER BY 2",
        scan_rows(1, started_at=at(1, "10:00:00"), meta={"repository": "acme/zebra"}),
        scan_rows(2, started_at=at(2, "10:00:00"), meta={"repository": "acme/ant"}),
        scan_rows(3, started_at=at(3, "10:00:00"), meta={}),
        scan_rows(4, repository_id=None, started_at=at(1, "10:00:00"), meta={"repository": "acme/bee"}),
    )

    assert [(row[0], row[1], int(row[2])) for row in found] == [(7, "acme/ant", 3), (None, "acme/bee", 1)]


def test_a_wrong_clock_does_not_stretch_the_calendar(database_url: str) -> None:
    """A start in the year 1 or 9000, which another program has written, is in `bi_scan`, but adds no days to the daily
    view."""

    def work(connection: Connection) -> tuple[Any, ...]:
        load_scans(connection, [scan_rows(number) for number in (1, 2, 3)], "run")
        for number, year in ((2, 1), (3, 9000)):
            began_at = datetime(year, 1, 1, tzinfo=UTC)
            start = {"started_at": began_at, "started_day": started_day(began_at, BEGAN_AT)}
            connection.execute(update(scans).where(scans.c.scan_id == number).values(**start))
        count_all(connection)
        counts = "SELECT (SELECT COUNT(*) FROM bi_scan), COUNT(*), SUM(scans) FROM bi_scan_daily"
        return tuple(map(int, connection.execute(text(counts)).one()))

    with closing(Database(database_url)) as database:
        found = database.run_here(work)

    assert found == (3, 1, 1)


def test_the_calendar_may_be_long(database_url: str) -> None:
    """Some databases end a recursion after 1,000 rounds; the days from 2000 on are all there."""
    found = query(
        database_url,
        "SELECT COUNT(*), COUNT(DISTINCT day), MIN(day), MAX(day), SUM(scans) FROM bi_scan_daily",
        scan_rows(1, started_at="2000-01-01T00:00:00Z"),
        scan_rows(2, started_at=at(28, "23:59:59")),
    )

    first, last = date(2000, 1, 1), date(2026, 2, 28)
    days = (last - first).days + 1
    assert [tuple(map(str, row)) for row in found] == [(str(days), str(days), str(first), str(last), "2")]


def test_views_of_nothing_are_empty(database_url: str) -> None:
    """A fresh database gives no rows and no error."""
    assert query(database_url, "SELECT * FROM bi_scan") == []
    assert query(database_url, "SELECT * FROM bi_scan_daily") == []


def digest(view: Path) -> str:
    """Of what a version of a view says on each dialect, its macros among it."""
    sql = "".join(in_words_of(name, view.read_text("utf-8")) for name in ("sqlite", "postgresql", "mysql"))
    return hashlib.sha256(sql.encode()).hexdigest()


def test_a_version_of_a_view_is_never_edited() -> None:
    """Databases have it as it was; what should change is a new version. `digests.txt` gets a line for that."""
    lines = [f"{digest(view)}  {view.stem}" for view in sorted(FOLDER.glob("*.sql"))]

    assert (FOLDER / "digests.txt").read_text().splitlines() == lines


def test_what_is_never_null_is_never_null(database_url: str) -> None:
    """The dictionary promises it of columns of views, also for a scan of which next to nothing is known."""
    nothing: dict[str, Any] = dict.fromkeys(("repository_id", "started_at", "completed_at", "exit_code", "has_logs"))
    query(database_url, "SELECT 1", scan_rows(1), scan_rows(2, **nothing, meta=None, stats=None, enabled_products=None))
    with closing(Database(database_url)) as database, database.engine.connect() as connection:
        connection.execute(insert(scan_listings), {"deployment_id": 120, "scan_id": 3, "listed_at": BEGAN_AT})
        nulls = [
            (view, name)
            for view, entry in dictionary().views.items()
            for row in connection.execute(text(f"SELECT * FROM {view}")).mappings()  # noqa: S608 - our own names
            for name, value in row.items()
            if value is None and not entry.columns[name].nullable
        ]

    assert nulls == []
