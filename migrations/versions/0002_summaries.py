"""What is counted for dashboards. The first one that counts finds nothing counted yet, and counts everything."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations.columns import INSTANT, TEXT

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
NOW = {
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    "postgresql": "clock_timestamp()",
    "mysql": "(UTC_TIMESTAMP(6))",
}
AT_ONCE = {
    "sqlite": "'1970-01-01 00:00:00.000000'",
    "postgresql": "timestamptz 'epoch'",
    "mysql": "'1970-01-01 00:00:00.000000'",
}
DIGITS = "(SELECT 0 AS n UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4"
DIGITS += " UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)"
# Not by a recursion: some servers end it after 1,000 rounds.
NUMBERS = "a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n"
DAY = {
    "sqlite": "date('2000-01-01', '+' || n || ' days')",
    "postgresql": "date '2000-01-01' + n",
    "mysql": "DATE('2000-01-01') + INTERVAL n DAY",
}
DAYS = 21915
"""Until the end of 2059."""
PARTS = {
    "sqlite": "date(day, 'weekday 0', '-6 days'), substr(day, 1, 8) || '01',"
    " substr(day, 1, 5) || substr('0' || ((substr(day, 6, 2) - 1) / 3 * 3 + 1), -2) || '-01',"
    " CAST(substr(day, 1, 4) AS INTEGER), (strftime('%w', day) + 6) % 7 + 1",
    "postgresql": "date_trunc('week', day)::date, date_trunc('month', day)::date, date_trunc('quarter', day)::date,"
    " EXTRACT(YEAR FROM day)::int, EXTRACT(ISODOW FROM day)::int",
    "mysql": "day - INTERVAL WEEKDAY(day) DAY, day - INTERVAL (DAYOFMONTH(day) - 1) DAY,"
    " MAKEDATE(YEAR(day), 1) + INTERVAL (QUARTER(day) - 1) QUARTER, YEAR(day), WEEKDAY(day) + 1",
}
OUTCOMES = ("passed", "with_findings", "failed", "unknown", "running", "unfinished", "cancelled", "never_finished")
PRODUCTS = ("code", "supply_chain", "secrets", "ai")
STATES = (
    *("listed", "stored", "waiting", "dead", "expired", "dropped", "missing"),
    *("stored_without_end", "details_gone", "stored_unlisted"),
)


def of_dialect(expressions: dict[str, str]) -> str:
    return expressions[op.get_context().dialect.name]


def default(expressions: dict[str, str]) -> sa.TextClause:
    return sa.text(of_dialect(expressions).replace(":", r"\:"))


def counts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def repository_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("repository_key", sa.String(512), nullable=False),
    ]


def repository() -> list[sa.Column[Any]]:
    return [sa.Column("repository_id", sa.BigInteger), sa.Column("repository", TEXT)]


def scans_of_repository() -> list[sa.Column[Any]]:
    return [
        *repository(),
        *counts("scans", *OUTCOMES, "full_scans", "diff_scans", "findings", "timed"),
        sa.Column("duration_seconds_total", sa.Double, nullable=False),
        sa.Column("duration_seconds_longest", sa.Double),
        *(sa.Column(name, INSTANT) for name in ("first_started_at", "last_started_at", "last_fetched_at")),
        sa.Column("last_scan_id", sa.BigInteger),
        sa.Column("last_outcome", sa.String(16)),
        sa.Column("last_exit_code", sa.BigInteger),
        *(sa.Column(name, TEXT) for name in ("last_products", "last_semgrep_version")),
        sa.Column("full_scan_id", sa.BigInteger),
        sa.Column("full_started_at", INSTANT),
        *(sa.Column(f"full_findings{name}", sa.BigInteger) for name in ("", "_code", "_supply_chain", "_secrets")),
        *(sa.Column(f"last_{product}_day", sa.Date) for product in PRODUCTS),
    ]


def day() -> sa.Column[Any]:
    return sa.Column("day", sa.Date, nullable=False)


def deployment() -> sa.Column[Any]:
    return sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False)


def number() -> sa.Column[Any]:
    return sa.Column("id", ID, sa.Identity(), nullable=False)


def create_calendar() -> None:
    op.create_table(
        "calendar",
        day(),
        *(sa.Column(name, sa.Date, nullable=False) for name in ("week", "month", "quarter")),
        sa.Column("year", sa.Integer, nullable=False),
        sa.Column("weekday", sa.SmallInteger, nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_calendar"),
    )
    numbers = " CROSS JOIN ".join(f"{DIGITS} {name}" for name in "abcde")
    days = f"SELECT {of_dialect(DAY)} AS day FROM (SELECT {NUMBERS} AS n FROM {numbers}) numbers WHERE n < {DAYS}"  # noqa: S608 - constants of this file
    op.execute(f"INSERT INTO calendar SELECT day, {of_dialect(PARTS)} FROM ({days}) days")  # noqa: S608 - as above


def create_marks() -> None:
    op.create_table(
        "summary_marks",
        number(),
        deployment(),
        day(),
        sa.Column("marked_at", INSTANT, nullable=False, server_default=default(NOW)),
        sa.Column("due_at", INSTANT, nullable=False, server_default=default(AT_ONCE)),
        sa.PrimaryKeyConstraint("id", name="pk_summary_marks"),
    )
    op.create_table(
        "summary_state",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("refreshed_at", INSTANT),
        sa.PrimaryKeyConstraint("id", name="pk_summary_state"),
    )
    op.execute("INSERT INTO summary_state (id) VALUES (1)")


def create_repository_tables() -> None:
    op.create_table(
        "scan_days",
        *repository_key(),
        day(),
        *scans_of_repository(),
        sa.PrimaryKeyConstraint("deployment_id", "repository_key", "day", name="pk_scan_days"),
    )
    op.create_index("ix_scan_days_day", "scan_days", ["day", "deployment_id"])
    op.create_table(
        "scan_weeks",
        *repository_key(),
        sa.Column("week", sa.Date, nullable=False),
        *scans_of_repository(),
        sa.PrimaryKeyConstraint("deployment_id", "repository_key", "week", name="pk_scan_weeks"),
    )
    op.create_index("ix_scan_weeks_week", "scan_weeks", ["week", "deployment_id"])
    op.create_table(
        "repository_summaries",
        *repository_key(),
        *scans_of_repository(),
        sa.PrimaryKeyConstraint("deployment_id", "repository_key", name="pk_repository_summaries"),
    )
    op.create_table(
        "coverage_days",
        day(),
        *repository_key(),
        sa.Column("started_day", sa.Date),
        *repository(),
        *counts(*STATES),
        sa.PrimaryKeyConstraint("day", "deployment_id", "repository_key", name="pk_coverage_days"),
    )
    indexed = ["started_day", "deployment_id", "repository_id", *STATES]
    op.create_index("ix_coverage_days_started_day", "coverage_days", indexed)
    op.create_table(
        "deployment_days",
        deployment(),
        day(),
        *counts(*STATES),
        sa.PrimaryKeyConstraint("deployment_id", "day", name="pk_deployment_days"),
    )


def create_group_tables() -> None:
    op.create_table(
        "scan_groups",
        number(),
        deployment(),
        day(),
        sa.Column("trigger_event", TEXT),
        *(sa.Column(name, sa.Boolean, nullable=False) for name in ("is_pull_request", "is_full_scan")),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("exit_code", sa.BigInteger),
        *counts("scans", "findings"),
        sa.Column("duration_seconds_total", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_scan_groups"),
    )
    op.create_index("ix_scan_groups_day", "scan_groups", ["day", "deployment_id"])
    op.create_table(
        "author_days",
        number(),
        deployment(),
        day(),
        sa.Column("commit_author_username", TEXT),
        *counts("scans", "with_findings", "failed"),
        sa.PrimaryKeyConstraint("id", name="pk_author_days"),
    )
    op.create_index("ix_author_days_day", "author_days", ["day", "deployment_id"])
    op.create_table(
        "duration_weeks",
        deployment(),
        sa.Column("week", sa.Date, nullable=False),
        sa.Column("scan_kind", sa.String(4), nullable=False),
        *counts("scans"),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("p50_seconds", "p75_seconds", "p95_seconds")),
        sa.Column("longest_seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "week", "scan_kind", name="pk_duration_weeks"),
    )


def upgrade() -> None:
    create_calendar()
    create_marks()
    create_repository_tables()
    create_group_tables()


def downgrade() -> None:
    for table in (
        "duration_weeks",
        "author_days",
        "scan_groups",
        "deployment_days",
        "coverage_days",
        "repository_summaries",
        "scan_weeks",
        "scan_days",
        "summary_state",
        "summary_marks",
        "calendar",
    ):
        op.drop_table(table)
