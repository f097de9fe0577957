"""The tables, and the first three views for dashboards."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
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
IN_30_DAYS = {
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now', '+30 days') || '000')",
    "postgresql": "(clock_timestamp() + interval '720 hours')",
    "mysql": "(TIMESTAMPADD(HOUR, 720, UTC_TIMESTAMP(6)))",
}
COUNTS = (
    "requested invalid duplicate already_final discovered requests fetched inserted updated unchanged "
    "waiting retried rate_limited dead remaining"
).split()


def of_dialect(expressions: dict[str, str]) -> sa.TextClause:
    return sa.text(expressions[op.get_context().dialect.name].replace(":", r"\:"))


def key() -> list[sa.Column[Any]]:
    return [
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("scan_id", sa.BigInteger, autoincrement=False, nullable=False),
    ]


def of_scan(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["deployment_id", "scan_id"],
        ["scans.deployment_id", "scans.scan_id"],
        name=f"fk_{table}_scans",
        ondelete="CASCADE",
    )


def work() -> list[sa.Column[Any]]:
    return [
        *key(),
        sa.Column("due_at", INSTANT, nullable=False, server_default=of_dialect(AT_ONCE)),
        sa.Column("priority", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("batch", sa.String(32)),
        sa.Column("enqueued_at", INSTANT, nullable=False, server_default=of_dialect(NOW)),
        sa.Column("expires_at", INSTANT, nullable=False, server_default=of_dialect(IN_30_DAYS)),
        sa.Column("error_kind", sa.String(32)),
        sa.Column("error", TEXT),
    ]


def create_scan_tables() -> None:
    op.create_table(
        "scans",
        *key(),
        sa.Column("repository_id", sa.BigInteger),
        sa.Column("started_at", INSTANT),
        sa.Column("completed_at", INSTANT),
        sa.Column("exit_code", sa.BigInteger),
        sa.Column("has_logs", sa.Boolean),
        sa.Column("extra", JSON),
        sa.Column("content_hash", sa.String(32), nullable=False),
        sa.Column("first_fetched_at", INSTANT, nullable=False),
        sa.Column("fetched_at", INSTANT, nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        sa.Column("run_id", sa.String(32)),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scans"),
    )
    op.create_index("ix_scans_started_at", "scans", ["started_at"])
    op.create_index("ix_scans_changed_at", "scans", ["changed_at"])
    op.create_table(
        "scan_products",
        *key(),
        sa.Column("product", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", "product", name="pk_scan_products"),
        of_scan("scan_products"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "scan_meta",
        *key(),
        sa.Column("trigger_event", TEXT),
        sa.Column("branch", TEXT),
        sa.Column("commit_sha", TEXT),
        sa.Column("config", TEXT),
        sa.Column("repo_url", TEXT),
        sa.Column("ci_job_url", TEXT),
        sa.Column("repository", TEXT),
        sa.Column("commit_title", TEXT),
        sa.Column("pull_request_id", TEXT),
        sa.Column("pull_request_title", TEXT),
        sa.Column("commit_author_name", TEXT),
        sa.Column("commit_author_email", TEXT),
        sa.Column("commit_author_username", TEXT),
        sa.Column("commit_author_image_url", TEXT),
        sa.Column("pull_request_author_username", TEXT),
        sa.Column("pull_request_author_image_url", TEXT),
        sa.Column("is_full_scan", sa.Boolean),
        sa.Column("scan_environment", TEXT),
        sa.Column("semgrep_version", TEXT),
        sa.Column("repo_display_name", TEXT),
        sa.Column("commit_timestamp", TEXT),
        sa.Column("project_id", TEXT),
        sa.Column("extra", JSON),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scan_meta"),
        of_scan("scan_meta"),
    )
    op.create_table(
        "scan_stats",
        *key(),
        sa.Column("findings", sa.BigInteger),
        sa.Column("total_time_seconds", sa.Double),
        sa.Column("engine_requested", TEXT),
        sa.Column("extra", JSON),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scan_stats"),
        of_scan("scan_stats"),
    )
    op.create_table(
        "scan_languages",
        *key(),
        sa.Column("language", sa.String(128), nullable=False),
        sa.Column("targets_parsed", sa.BigInteger),
        sa.Column("num_targets", sa.BigInteger),
        sa.Column("bytes_parsed", sa.BigInteger),
        sa.Column("num_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", "language", name="pk_scan_languages"),
        of_scan("scan_languages"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "scan_stat_items",
        *key(),
        sa.Column("category", sa.String(128), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", "category", "name", name="pk_scan_stat_items"),
        of_scan("scan_stat_items"),
        sqlite_with_rowid=False,
    )


def create_listing_tables() -> None:
    op.create_table(
        "scan_listings",
        *key(),
        sa.Column("status", sa.String(64)),
        sa.Column("is_full_scan", sa.Boolean),
        sa.Column("findings_total", sa.BigInteger),
        sa.Column("findings_code", sa.BigInteger),
        sa.Column("findings_supply_chain", sa.BigInteger),
        sa.Column("findings_secrets", sa.BigInteger),
        sa.Column("total_time_seconds", sa.Double),
        sa.Column("branch", TEXT),
        sa.Column("commit_sha", TEXT),
        sa.Column("repository_id", sa.BigInteger),
        sa.Column("started_at", INSTANT),
        sa.Column("completed_at", INSTANT),
        sa.Column("exit_code", sa.BigInteger),
        sa.Column("extra", JSON),
        sa.Column("listed_at", INSTANT, nullable=False),
        sa.Column("details_gone_at", INSTANT),
        sa.Column("expired_at", INSTANT),
        sa.Column("dropped_at", INSTANT),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scan_listings"),
    )
    op.create_index("ix_scan_listings_started_at", "scan_listings", ["deployment_id", "started_at"])
    op.create_table(
        "watermarks",
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("walked_at", INSTANT, nullable=False),
        sa.Column("newest_started_at", INSTANT),
        sa.Column("complete_since", INSTANT, nullable=False),
        sa.Column("token_key", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", name="pk_watermarks"),
    )
    op.create_table(
        "listing_gaps",
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("from_at", INSTANT, nullable=False),
        sa.Column("until_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "from_at", name="pk_listing_gaps"),
    )


INSTANT_OF_ANY_PROGRAM = {
    "sqlite": "{0} >= '1970-01-01 00:00:00.000000' AND strftime('%s', {0}) IS NOT NULL"
    " AND {0} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'",
    "postgresql": "{0} BETWEEN '1970-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
    "mysql": "{0} BETWEEN '1970-01-01 00:00:00' AND '9999-12-31 23:59:59.999999'",
}


def create_work_tables() -> None:
    is_instant = INSTANT_OF_ANY_PROGRAM[op.get_context().dialect.name]
    checks = " AND ".join(is_instant.format(name) for name in ("due_at", "expires_at", "enqueued_at"))
    op.create_table(
        "fetch_queue",
        *work(),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_fetch_queue"),
        sa.CheckConstraint(checks, name="ck_fetch_queue_instants"),
        sqlite_with_rowid=False,
    )
    turn = ["priority", "expires_at", "enqueued_at"]
    op.create_index("ix_fetch_queue_due", "fetch_queue", ["due_at", "deployment_id", *turn])
    has_batch = sa.text("batch IS NOT NULL")
    op.create_index(
        "ix_fetch_queue_batch",
        "fetch_queue",
        ["batch", "deployment_id", "due_at", *turn, "scan_id"],
        sqlite_where=has_batch,
        postgresql_where=has_batch,
    )
    if op.get_context().dialect.name == "postgresql":
        # Rows are taken from one end of an index, where their remains would have to be stepped over: they are cleared
        # away by their number, not by their share of a queue that may be very long, and out of the indexes too.
        op.execute(
            "ALTER TABLE fetch_queue SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,"
            " vacuum_index_cleanup = on)"
        )
    op.create_table(
        "dead_letters",
        *work(),
        sa.Column("died_at", INSTANT, nullable=False),
        sa.Column("http_status", sa.Integer),
        sa.Column("run_id", sa.String(32)),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_dead_letters"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "staged_pairs",
        sa.Column("batch", sa.String(32), nullable=False),
        *key(),
        sa.PrimaryKeyConstraint("batch", "deployment_id", "scan_id", name="pk_staged_pairs"),
        sqlite_with_rowid=False,
    )


def create_run_tables() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("command", sa.String(32), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")) for name in COUNTS),
        sa.Column("duration_seconds", sa.Double),
        sa.Column("exit_code", sa.Integer),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )
    op.create_index("ix_runs_started_at", "runs", ["started_at"])
    op.create_table(
        "schema_drift",
        sa.Column("path", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("first_seen_at", INSTANT, nullable=False),
        sa.Column("last_seen_at", INSTANT, nullable=False),
        sa.Column("sample_deployment_id", sa.BigInteger, nullable=False),
        sa.Column("sample_scan_id", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("path", "kind", name="pk_schema_drift"),
    )
    op.create_table(
        "rate_budgets",
        sa.Column("token_key", sa.String(32), nullable=False),
        sa.Column("next_free_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("token_key", name="pk_rate_budgets"),
    )
    op.create_table(
        "workers",
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("requests_per_second", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.Column("finished_per_second", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("token", name="pk_workers"),
    )


# `bi_scan`: seconds with microseconds. SQLite keeps instants as text of a fixed width; its date functions round
# to milliseconds, so whole seconds and microseconds are subtracted apart.
DURATION = {
    "sqlite": (
        "(strftime('%s', substr(s.completed_at, 1, 19)) - strftime('%s', substr(s.started_at, 1, 19)))"
        " + (substr(s.completed_at, 21, 6) - substr(s.started_at, 21, 6)) / 1000000.0"
    ),
    "postgresql": "EXTRACT(EPOCH FROM s.completed_at - s.started_at)::double precision",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, s.started_at, s.completed_at) / 1e6",
}
PRODUCTS = {
    "sqlite": "(SELECT group_concat(product, ',') FROM (SELECT product FROM scan_products p"
    " WHERE p.deployment_id = s.deployment_id AND p.scan_id = s.scan_id ORDER BY product))",
    "postgresql": "(SELECT string_agg(product, ',' ORDER BY product) FROM scan_products p"
    " WHERE p.deployment_id = s.deployment_id AND p.scan_id = s.scan_id)",
    "mysql": "(SELECT GROUP_CONCAT(product ORDER BY product SEPARATOR ',') FROM scan_products p"
    " WHERE p.deployment_id = s.deployment_id AND p.scan_id = s.scan_id)",
}
DAY = {
    "sqlite": "substr({0}, 1, 10)",
    "postgresql": "({0} AT TIME ZONE 'UTC')::date",
    "mysql": "DATE({0})",
}

BI_SCAN = """
CREATE VIEW bi_scan AS
SELECT
    s.deployment_id,
    s.scan_id,
    s.repository_id,
    m.repository,
    m.branch,
    m.trigger_event,
    CASE WHEN m.pull_request_id IS NULL THEN 0 ELSE 1 END AS is_pull_request,
    s.started_at,
    s.completed_at,
    {day} AS started_day,
    {duration} AS duration_seconds,
    CASE
        WHEN s.completed_at IS NULL AND l.status = 'SCAN_STATUS_CANCELLED' THEN 'cancelled'
        WHEN s.completed_at IS NULL AND l.status = 'SCAN_STATUS_NEVER_FINISHED' THEN 'never_finished'
        WHEN s.completed_at IS NULL
            AND COALESCE(l.status, '') NOT IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR') THEN 'running'
        WHEN s.exit_code = 0 THEN 'passed'
        WHEN s.exit_code = 1 THEN 'findings'
        WHEN s.exit_code IS NULL THEN 'unknown'
        ELSE 'failed'
    END AS outcome,
    s.exit_code,
    t.findings,
    t.total_time_seconds,
    {products} AS products,
    s.has_logs,
    m.commit_sha,
    m.commit_title,
    m.commit_author_name,
    m.commit_author_email,
    m.commit_author_username,
    m.pull_request_id,
    m.pull_request_title,
    m.pull_request_author_username,
    m.config,
    m.repo_url,
    m.ci_job_url,
    s.first_fetched_at,
    s.fetched_at,
    l.status AS listed_status,
    l.is_full_scan
FROM scans s
LEFT JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
LEFT JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
"""

# `bi_scan_daily`: one row for every repository of the data on every day of the data. A scan whose start
# lies before 2000 or more than a day after it was fetched is a slip of some clock: it would add
# a million empty days. MySQL and MariaDB end a recursion after 1,000 rounds: there a span of 2^17 days, which is
# more than 350 years, is halved until the spans are days.
DAYS = {
    "sqlite": "days AS (SELECT first_day AS day FROM bounds WHERE first_day IS NOT NULL"
    " UNION ALL SELECT date(day, '+1 day') FROM days, bounds WHERE day < last_day)",
    "postgresql": "days AS (SELECT first_day AS day FROM bounds WHERE first_day IS NOT NULL"
    " UNION ALL SELECT day + 1 FROM days, bounds WHERE day < last_day)",
    "mysql": "spans AS (SELECT first_day AS day, 131072 AS width FROM bounds WHERE first_day IS NOT NULL"
    " UNION ALL SELECT day, width DIV 2 FROM spans WHERE width > 1"
    " UNION ALL SELECT day + INTERVAL (width DIV 2) DAY, width DIV 2 FROM spans, bounds"
    " WHERE width > 1 AND day + INTERVAL (width DIV 2) DAY <= last_day),"
    " days AS (SELECT day FROM spans WHERE width = 1)",
}
LATEST_ALLOWED = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', s.first_fetched_at, '+1 day')",
    "postgresql": "s.first_fetched_at + interval '1 day'",
    "mysql": "s.first_fetched_at + INTERVAL 1 DAY",
}
TEXT_OF_NUMBER = {"sqlite": "VARCHAR", "postgresql": "VARCHAR", "mysql": "CHAR"}
BI_SCAN_DAILY = """
CREATE VIEW bi_scan_daily AS
WITH RECURSIVE
started AS (
    SELECT
        s.deployment_id,
        s.scan_id,
        COALESCE(CAST(s.repository_id AS {text}), m.repository, '') AS repository_key,
        s.repository_id,
        m.repository,
        {day} AS day,
        s.started_at,
        s.exit_code,
        t.findings,
        {duration} AS duration_seconds,
        CASE
            WHEN s.completed_at IS NOT NULL OR l.status IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR') THEN 'ended'
            WHEN l.status IN ('SCAN_STATUS_CANCELLED', 'SCAN_STATUS_NEVER_FINISHED') THEN 'stopped'
            ELSE 'running'
        END AS state
    FROM scans s
    LEFT JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
    LEFT JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
    LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
    WHERE s.started_at >= '2000-01-01' AND s.started_at < {latest_allowed}
),
bounds AS (SELECT MIN(day) AS first_day, MAX(day) AS last_day FROM started),
{days},
repositories AS (
    SELECT deployment_id, repository_key, repository_id, repository
    FROM (
        SELECT
            started.*,
            ROW_NUMBER() OVER (
                PARTITION BY deployment_id, repository_key
                ORDER BY CASE WHEN repository IS NULL THEN 1 ELSE 0 END, started_at DESC, scan_id DESC
            ) AS newest
        FROM started
    ) AS named
    WHERE newest = 1
),
daily AS (
    SELECT
        deployment_id,
        repository_key,
        day,
        COUNT(*) AS scans,
        SUM(CASE WHEN state = 'ended' AND exit_code = 0 THEN 1 ELSE 0 END) AS passed,
        SUM(CASE WHEN state = 'ended' AND exit_code = 1 THEN 1 ELSE 0 END) AS with_findings,
        SUM(CASE WHEN state = 'ended' AND exit_code NOT IN (0, 1) THEN 1 ELSE 0 END) AS failed,
        SUM(CASE WHEN state = 'running' THEN 1 ELSE 0 END) AS running,
        SUM(CASE WHEN findings BETWEEN -9007199254740991 AND 9007199254740991 THEN findings ELSE 0 END) AS findings,
        SUM(duration_seconds) AS duration_seconds_total,
        AVG(duration_seconds) AS duration_seconds_average,
        MAX(duration_seconds) AS duration_seconds_longest
    FROM started
    GROUP BY deployment_id, repository_key, day
)
SELECT
    d.day,
    r.deployment_id,
    r.repository_id,
    r.repository,
    COALESCE(x.scans, 0) AS scans,
    COALESCE(x.passed, 0) AS passed,
    COALESCE(x.with_findings, 0) AS with_findings,
    COALESCE(x.failed, 0) AS failed,
    COALESCE(x.running, 0) AS running,
    COALESCE(x.findings, 0) AS findings,
    COALESCE(x.duration_seconds_total, 0) AS duration_seconds_total,
    x.duration_seconds_average,
    x.duration_seconds_longest
FROM days d
CROSS JOIN repositories r
LEFT JOIN daily x ON x.day = d.day AND x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key
"""


# `bi_coverage`: what became of each listed scan. A scan is in one state alone, so that the states add up to `listed`.
BI_COVERAGE = """
CREATE VIEW bi_coverage AS
WITH seen AS (
    SELECT
        l.deployment_id,
        l.repository_id,
        l.scan_id,
        l.started_at,
        CASE WHEN s.scan_id IS NULL AND l.details_gone_at IS NOT NULL THEN 1 ELSE 0 END AS is_gone,
        CASE WHEN s.scan_id IS NOT NULL AND s.completed_at IS NULL THEN 1 ELSE 0 END AS has_no_end,
        CASE
            WHEN s.completed_at IS NOT NULL OR (s.scan_id IS NOT NULL AND q.scan_id IS NULL) THEN 'stored'
            WHEN l.dropped_at IS NOT NULL AND q.scan_id IS NULL AND d.scan_id IS NULL THEN 'dropped'
            WHEN l.expired_at IS NOT NULL THEN 'expired'
            WHEN q.scan_id IS NOT NULL THEN 'waiting'
            WHEN d.scan_id IS NOT NULL OR l.details_gone_at IS NOT NULL THEN 'dead'
            ELSE 'missing'
        END AS state
    FROM scan_listings l
    LEFT JOIN scans s ON s.deployment_id = l.deployment_id AND s.scan_id = l.scan_id
    LEFT JOIN fetch_queue q ON q.deployment_id = l.deployment_id AND q.scan_id = l.scan_id
    LEFT JOIN dead_letters d ON d.deployment_id = l.deployment_id AND d.scan_id = l.scan_id
    UNION ALL
    SELECT s.deployment_id, s.repository_id, s.scan_id, s.started_at, 0, 0, 'unlisted'
    FROM scans s
    LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
    WHERE l.scan_id IS NULL
)
SELECT
    {coverage_day} AS day,
    c.deployment_id,
    c.repository_id,
    MAX(m.repository) AS repository,
    SUM(CASE WHEN c.state = 'unlisted' THEN 0 ELSE 1 END) AS listed,
    SUM(CASE WHEN c.state = 'stored' THEN 1 ELSE 0 END) AS stored,
    SUM(CASE WHEN c.state = 'waiting' THEN 1 ELSE 0 END) AS waiting,
    SUM(CASE WHEN c.state = 'dead' THEN 1 ELSE 0 END) AS dead,
    SUM(CASE WHEN c.state = 'expired' THEN 1 ELSE 0 END) AS expired,
    SUM(CASE WHEN c.state = 'dropped' THEN 1 ELSE 0 END) AS dropped,
    SUM(CASE WHEN c.state = 'missing' THEN 1 ELSE 0 END) AS missing,
    SUM(CASE WHEN c.state = 'stored' THEN c.has_no_end ELSE 0 END) AS stored_without_end,
    SUM(c.is_gone) AS details_gone,
    SUM(CASE WHEN c.state = 'unlisted' THEN 1 ELSE 0 END) AS stored_unlisted
FROM seen c
LEFT JOIN scan_meta m ON m.deployment_id = c.deployment_id AND m.scan_id = c.scan_id
GROUP BY {coverage_day}, c.deployment_id, c.repository_id
"""


def create_views() -> None:
    dialect = op.get_context().dialect.name
    parts = {
        "day": DAY[dialect].format("s.started_at"),
        "coverage_day": DAY[dialect].format("c.started_at"),
        "duration": DURATION[dialect],
        "products": PRODUCTS[dialect],
        "days": DAYS[dialect],
        "latest_allowed": LATEST_ALLOWED[dialect],
        "text": TEXT_OF_NUMBER[dialect],
    }
    for view in (BI_SCAN, BI_SCAN_DAILY, BI_COVERAGE):
        op.execute(sa.text(view.format(**parts).replace(":", r"\:")))


def upgrade() -> None:
    create_scan_tables()
    create_listing_tables()
    create_work_tables()
    create_run_tables()
    create_views()


def downgrade() -> None:
    for view in ("bi_coverage", "bi_scan_daily", "bi_scan"):
        op.execute(f"DROP VIEW {view}")
    for table in (
        "workers",
        "rate_budgets",
        "schema_drift",
        "runs",
        "staged_pairs",
        "dead_letters",
        "fetch_queue",
        "listing_gaps",
        "watermarks",
        "scan_listings",
        "scan_stat_items",
        "scan_languages",
        "scan_stats",
        "scan_meta",
        "scan_products",
        "scans",
    ):
        op.drop_table(table)
