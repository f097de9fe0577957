"""The tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations.columns import INSTANT, JSON, TEXT

revision = "0001"
down_revision = None

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
    "mysql": "(TIMESTAMPADD(MICROSECOND, ROUND(2592000.0 * 1000000), UTC_TIMESTAMP(6)))",
}
COUNTS = (
    "requested invalid duplicate already_final discovered requests fetched inserted updated unchanged "
    "waiting retried rate_limited dead remaining"
).split()
PRODUCTS = {
    "code": ("sast", "code", "PRODUCT_SAST"),
    "supply_chain": ("sca", "supply-chain", "supply_chain", "PRODUCT_SCA"),
    "secrets": ("secrets", "PRODUCT_SECRETS"),
    "ai": ("ai", "ai_sast", "ai-sast", "PRODUCT_AI_SAST"),
}
# Those that the vendor's reference of the command line gives a meaning.
EXIT_CODES = (
    (0, "ended well, without blocking findings", "none"),
    (1, "ended well, with blocking findings", "code"),
    (2, "the scanner failed", "scanner"),
    (3, "a file of the repository can't be parsed, in strict mode", "code"),
    (4, "a rule has a pattern that can't be read", "rules"),
    (5, "the configuration isn't YAML", "rules"),
    (7, "a rule of the configuration is invalid", "rules"),
    (8, "a language is asked for that the scanner doesn't know", "rules"),
    (13, "the token of the scanner is refused", "setup"),
    (14, "the scan failed", "scanner"),
)


def of_dialect(expressions: dict[str, str]) -> sa.TextClause:
    return sa.text(expressions[op.get_context().dialect.name].replace(":", r"\:"))


def key(second: str = "scan_id") -> list[sa.Column[Any]]:
    return [
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column(second, sa.BigInteger, autoincrement=False, nullable=False),
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
        sa.Column("started_day", sa.Date),
        sa.Column("duration_seconds", sa.Double),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scans"),
    )
    op.create_index("ix_scans_started_day", "scans", ["started_day", "deployment_id"])
    op.create_index("ix_scans_repository", "scans", ["deployment_id", "repository_id", "started_at"])
    op.create_index("ix_scans_started_at", "scans", ["started_at", "scan_id"])
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


def create_bi_product() -> None:
    product = op.create_table(
        "bi_product",
        sa.Column("spelling", sa.String(128), nullable=False),
        sa.Column("product", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("spelling", name="pk_bi_product"),
        sqlite_with_rowid=False,
    )
    rows = [{"spelling": spelling, "product": word} for word, spellings in PRODUCTS.items() for spelling in spellings]
    op.bulk_insert(product, rows)


def create_bi_exit_code() -> None:
    exit_code = op.create_table(
        "bi_exit_code",
        sa.Column("exit_code", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("meaning", sa.String(128), nullable=False),
        sa.Column("fault", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("exit_code", name="pk_bi_exit_code"),
    )
    rows = [{"exit_code": code, "meaning": meaning, "fault": fault} for code, meaning, fault in EXIT_CODES]
    op.bulk_insert(exit_code, rows)


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
        sa.Column("started_day", sa.Date),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_scan_listings"),
    )
    op.create_index("ix_scan_listings_started_day", "scan_listings", ["started_day", "deployment_id"])
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


def create_repository_tables() -> None:
    op.create_table(
        "deployments",
        sa.Column("deployment_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("slug", TEXT),
        sa.Column("name", TEXT),
        sa.Column("extra", JSON),
        sa.Column("first_seen_at", INSTANT, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.Column("repositories_at", INSTANT),
        sa.PrimaryKeyConstraint("deployment_id", name="pk_deployments"),
    )
    op.create_table(
        "repositories",
        *key("repository_id"),
        *(sa.Column(name, TEXT) for name in ("name", "url")),
        sa.Column("tags", JSON),
        *(sa.Column(name, TEXT) for name in ("default_branch", "primary_branch")),
        *(sa.Column(name, INSTANT) for name in ("created_at", "latest_scan_at")),
        sa.Column("extra", JSON),
        sa.Column("first_seen_at", INSTANT, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.Column("gone_at", INSTANT),
        sa.PrimaryKeyConstraint("deployment_id", "repository_id", name="pk_repositories"),
    )
    op.create_table(
        "repository_watermarks",
        *key("repository_id"),
        sa.Column("walked_at", INSTANT, nullable=False),
        sa.Column("newest_started_at", INSTANT),
        sa.Column("latest_scan_at", INSTANT),
        sa.PrimaryKeyConstraint("deployment_id", "repository_id", name="pk_repository_watermarks"),
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
    is_due = sa.text("due_at IS NOT NULL")
    op.create_index("ix_fetch_queue_due", "fetch_queue", ["due_at", "deployment_id", *turn], postgresql_where=is_due)
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
        sa.Column("retry_at", INSTANT),
        sa.PrimaryKeyConstraint("deployment_id", "scan_id", name="pk_dead_letters"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_dead_letters_retry_at", "dead_letters", ["retry_at"])
    op.create_table(
        "staged_pieces",
        sa.Column("batch", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("pairs", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("batch", "digest", name="pk_staged_pieces"),
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
        sa.Column("state", sa.String(16), nullable=False, server_default=sa.text("'running'")),
        sa.Column("stop_reason", TEXT),
        sa.Column("inputs", JSON),
        sa.Column("settings", JSON),
        sa.Column("notified", JSON),
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
        sa.Column("slow_pace", TEXT),
        sa.PrimaryKeyConstraint("token", name="pk_workers"),
    )


def upgrade() -> None:
    create_scan_tables()
    create_bi_product()
    create_bi_exit_code()
    create_listing_tables()
    create_repository_tables()
    create_work_tables()
    create_run_tables()


def downgrade() -> None:
    for table in (
        "workers",
        "rate_budgets",
        "schema_drift",
        "runs",
        "staged_pairs",
        "staged_pieces",
        "dead_letters",
        "fetch_queue",
        "repository_watermarks",
        "repositories",
        "deployments",
        "listing_gaps",
        "watermarks",
        "scan_listings",
        "scan_stat_items",
        "scan_languages",
        "scan_stats",
        "scan_meta",
        "bi_exit_code",
        "bi_product",
        "scan_products",
        "scans",
    ):
        op.drop_table(table)
