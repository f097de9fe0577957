"""Years of made-up scans, written by the database itself: millions in minutes."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Double,
    Select,
    String,
    case,
    cast,
    insert,
    literal,
    literal_column,
    select,
    text,
    union_all,
)

from etl.database.schema import (
    deployments,
    repositories,
    scan_listings,
    scan_meta,
    scan_products,
    scan_stat_items,
    scan_stats,
    scans,
)
from etl.database.types import add_seconds

DAYS = 730
DEPLOYMENTS = 3
REPOSITORIES = 2_400
AUTHORS = 900
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _numbers(count: int) -> Any:
    """A subquery of the numbers from 0 on."""
    digits = union_all(*(select(literal(digit).label("n")) for digit in range(10)))
    places = [digits.subquery(f"d{place}") for place in range(len(str(count - 1)))]
    number: Any = sum(place.c.n * 10**power for power, place in enumerate(places))
    numbers = select(number.label("n")).select_from(*places).subquery("numbers")
    return select(numbers.c.n).where(numbers.c.n < count).subquery("each")


def _scattered(number: ColumnElement[int], step: int, count: int) -> Any:
    """A number below `count` that looks like chance."""
    return (number * step + number % 911 * 77) % 1_000_003 % count


def fill(connection: Connection, count: int, last_day: date) -> None:
    """Write `count` scans of two years up to a day, with their listings, but for every seventh."""
    per_day = count // DAYS
    first = (last_day - timedelta(days=DAYS - 1) - date(1970, 1, 1)).days
    days, of_day = _numbers(DAYS).alias("days"), _numbers(per_day).alias("of_day")
    n = (cast(days.c.n, BigInteger) * per_day + of_day.c.n + 1).label("n")
    second: Any = of_day.c.n * (86_400 // max(per_day, 1)) % 86_400
    base = select(n, ((cast(days.c.n, BigInteger) + first) * 86_400 + second).label("began")).select_from(
        days.join(of_day, literal(1) == 1)
    )
    sql = str(base.compile(connection, compile_kwargs={"literal_binds": True}))
    connection.exec_driver_sql(f"CREATE TABLE bench_base AS {sql}")
    connection.execute(text("CREATE UNIQUE INDEX bench_base_n ON bench_base (n)"))
    _write(connection)
    connection.execute(text("DROP TABLE bench_base"))


_DAY = {
    "sqlite": "date(began, 'unixepoch')",
    "postgresql": "date '1970-01-01' + CAST(began / 86400 AS INTEGER)",
    "mysql": "date '1970-01-01' + INTERVAL began DIV 86400 DAY",
}


def _write(connection: Connection) -> None:
    number: Any = literal_column("n", BigInteger)
    began: Any = literal_column("began", BigInteger)
    repository = _scattered(number, 7_919, REPOSITORIES)
    deployment = (repository % DEPLOYMENTS + 120).label("deployment_id")
    key = [deployment, number.label("scan_id")]
    began_at, ended_at = (add_seconds(literal(_EPOCH), seconds) for seconds in (began, began + 20 + _duration(number)))
    fetched_at = add_seconds(literal(_EPOCH), began + 7_200)
    day = literal_column(_DAY[connection.dialect.name], Date).label("started_day")
    is_open, is_pull = number % 97 == 5, number % 5 < 3
    base = text("bench_base")
    exit_code = case((number % 23 == 7, 2), (number % 31 == 9, 13), (number % 3 == 0, 1), else_=0)

    def into(table: Any, *more: Any, which: Any = None) -> None:
        rows: Select[Any] = select(*key, *more).select_from(base)
        rows = rows if which is None else rows.where(which)
        connection.execute(insert(table).from_select([column.name for column in rows.selected_columns], rows))

    into(
        scans,
        (repository + 1_000).label("repository_id"),
        began_at.label("started_at"),
        case((is_open, None), else_=ended_at).label("completed_at"),
        case((is_open, None), else_=exit_code).label("exit_code"),
        literal("00000000000000000000000000000000").label("content_hash"),
        fetched_at.label("first_fetched_at"),
        fetched_at.label("fetched_at"),
        fetched_at.label("changed_at"),
        day,
        case((~is_open, cast(20 + _duration(number), Double))).label("duration_seconds"),
    )
    name = _joined("acme/service-", repository)
    into(
        scan_meta,
        case((is_pull, "pull_request"), (number % 7 == 0, "schedule"), else_="push").label("trigger_event"),
        literal("refs/heads/main").label("branch"),
        literal("0123456789012345678901234567890123456789").label("commit_sha"),
        name.label("repository"),
        literal("Make it work").label("commit_title"),
        case((is_pull, cast(number % 3_000, String(20)))).label("pull_request_id"),
        _joined("dev-", _scattered(number, 104_729, AUTHORS)).label("commit_author_username"),
        literal("1.120.0").label("semgrep_version"),
        case((number % 7 == 0, ~is_pull)).label("is_full_scan"),
    )
    into(scan_stats, _scattered(number, 31, 40).label("findings"), literal(12.5).label("total_time_seconds"))
    into(scan_products, literal("sast").label("product"))
    into(scan_products, literal("sca").label("product"), which=number % 2 == 0)
    into(
        scan_stat_items,
        literal("findings_by_product").label("category"),
        literal("code").label("name"),
        cast(_scattered(number, 31, 25), BigInteger).label("value"),
        which=number % 5 >= 3,
    )
    into(
        scan_listings,
        case((is_open, "SCAN_STATUS_NEVER_FINISHED"), else_="SCAN_STATUS_COMPLETED").label("status"),
        (~is_pull).label("is_full_scan"),
        _scattered(number, 31, 40).label("findings_total"),
        _scattered(number, 31, 25).label("findings_code"),
        (repository + 1_000).label("repository_id"),
        began_at.label("started_at"),
        fetched_at.label("listed_at"),
        day,
        which=number % 7 != 0,
    )
    _write_names(connection)


def _duration(number: Any) -> Any:
    return _scattered(number, 15_485_863, 600) + case((number % 50 == 0, 3_000), else_=0)


def _joined(word: str, number: Any) -> Any:
    return literal(word, String) + cast(number, String(20))


def _write_names(connection: Connection) -> None:
    at = datetime.now(UTC)
    seen = {"first_seen_at": at, "seen_at": at}
    rows = [{"deployment_id": 120 + number, "slug": f"acme-{number}", **seen} for number in range(DEPLOYMENTS)]
    connection.execute(insert(deployments), rows)
    names = [
        {
            "deployment_id": 120 + number % DEPLOYMENTS,
            "repository_id": 1_000 + number,
            "name": f"acme/service-{number}",
            **seen,
        }
        for number in range(REPOSITORIES + 50)
    ]
    connection.execute(insert(repositories), names)
