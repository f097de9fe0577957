"""The only definition of the tables. Their history is in `migrations/`, the views for dashboards too.

Columns are added, never renamed or removed: dashboards depend on their names. All instants are UTC with
microseconds and come back aware.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    literal,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import JSON

from etl.database.types import UtcDateTime, add_seconds, ready_now, utc_now
from etl.model import RETENTION, RUN_COUNTS

HEAD = "0002"
"""The newest revision in `migrations/`. A test keeps the two in step; asking Alembic costs 0.1 s a start."""

KEY_TEXT_LENGTH = 128
NAME_TEXT_LENGTH = 512
"""Longest text, in characters, that may be part of a key: PostgreSQL refuses index rows past 2,704 bytes, InnoDB keys
past 3,072, each character counted as four."""


# MySQL's TEXT ends at 64 KiB.
_Text = Text().with_variant(mysql.LONGTEXT(), "mysql")
_Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _key() -> list[Column[Any]]:
    return [
        Column("deployment_id", BigInteger, primary_key=True, autoincrement=False),
        Column("scan_id", BigInteger, primary_key=True, autoincrement=False),
    ]


def _of_scan() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["deployment_id", "scan_id"], ["scans.deployment_id", "scans.scan_id"], ondelete="CASCADE"
    )


scans = Table(
    "scans",
    metadata,
    *_key(),
    Column("repository_id", BigInteger),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("exit_code", BigInteger),
    Column("has_logs", Boolean),
    Column("extra", _Json),
    Column("content_hash", String(32), nullable=False),
    Column("first_fetched_at", UtcDateTime, nullable=False),
    Column("fetched_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("run_id", String(32)),
    Index(None, "started_at"),
)

scan_products = Table(
    "scan_products",
    metadata,
    *_key(),
    Column("product", String(KEY_TEXT_LENGTH), primary_key=True),
    _of_scan(),
    sqlite_with_rowid=False,
)

scan_meta = Table(
    "scan_meta",
    metadata,
    *_key(),
    Column("trigger_event", _Text),
    Column("branch", _Text),
    Column("commit_sha", _Text),
    Column("config", _Text),
    Column("repo_url", _Text),
    Column("ci_job_url", _Text),
    Column("repository", _Text),
    Column("commit_title", _Text),
    Column("pull_request_id", _Text),
    Column("pull_request_title", _Text),
    Column("commit_author_name", _Text),
    Column("commit_author_email", _Text),
    Column("commit_author_username", _Text),
    Column("commit_author_image_url", _Text),
    Column("pull_request_author_username", _Text),
    Column("pull_request_author_image_url", _Text),
    Column("extra", _Json),
    _of_scan(),
)

scan_stats = Table(
    "scan_stats",
    metadata,
    *_key(),
    Column("findings", BigInteger),
    Column("total_time_seconds", Double),
    Column("extra", _Json),
    _of_scan(),
)

scan_stat_items = Table(
    "scan_stat_items",
    metadata,
    *_key(),
    Column("category", String(KEY_TEXT_LENGTH), primary_key=True),
    Column("name", String(NAME_TEXT_LENGTH), primary_key=True),
    Column("value", Double, nullable=False),
    _of_scan(),
    sqlite_with_rowid=False,
)


_RETENTION_SECONDS = literal(RETENTION.total_seconds())
_TURN = ("priority", "expires_at", "enqueued_at")
"""In what order a deployment's rows are taken, of those that are due at once."""


scan_listings = Table(
    "scan_listings",
    metadata,
    *_key(),
    Column("status", String(64)),
    Column("is_full_scan", Boolean),
    Column("findings_total", BigInteger),
    Column("findings_code", BigInteger),
    Column("findings_supply_chain", BigInteger),
    Column("findings_secrets", BigInteger),
    Column("total_time_seconds", Double),
    Column("branch", _Text),
    Column("commit_sha", _Text),
    Column("repository_id", BigInteger),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("exit_code", BigInteger),
    Column("extra", _Json),
    Column("listed_at", UtcDateTime, nullable=False),
    Column("details_gone_at", UtcDateTime),
    Column("expired_at", UtcDateTime),
    Column("dropped_at", UtcDateTime),
    Index("ix_scan_listings_started_at", "deployment_id", "started_at"),
)


def _work() -> list[Column[Any]]:
    """The columns that a queue row and a dead letter share."""
    return [
        *_key(),
        Column("due_at", UtcDateTime, nullable=False, server_default=ready_now()),
        Column("priority", SmallInteger, nullable=False, server_default=text("0")),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("lease_token", String(32)),
        Column("batch", String(32)),
        Column("enqueued_at", UtcDateTime, nullable=False, server_default=utc_now()),
        Column("expires_at", UtcDateTime, nullable=False, server_default=add_seconds(utc_now(), _RETENTION_SECONDS)),
        Column("error_kind", String(32)),
        Column("error", _Text),
    ]


def _are_instants(dialect: str, condition: str) -> CheckConstraint:
    """Any program may INSERT, and what is no instant, or none that every driver knows, would stop every run."""
    checks = " AND ".join(condition.format(name) for name in ("due_at", "expires_at", "enqueued_at"))
    return CheckConstraint(checks, name="ck_fetch_queue_instants").ddl_if(dialect=dialect)


_SQLITE_INSTANT = (
    "{0} >= '1970-01-01 00:00:00.000000' AND strftime('%s', {0}) IS NOT NULL"
    " AND {0} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'"
)
_POSTGRESQL_INSTANT = "{0} BETWEEN '1970-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'"
_MYSQL_INSTANT = "{0} BETWEEN '1970-01-01 00:00:00' AND '9999-12-31 23:59:59.999999'"

fetch_queue = Table(
    "fetch_queue",
    metadata,
    *_work(),
    _are_instants("sqlite", _SQLITE_INSTANT),
    _are_instants("postgresql", _POSTGRESQL_INSTANT),
    _are_instants("mysql", _MYSQL_INSTANT),
    # Whatever a planner knows of the rows, it has but one index to go by: neither begins with a column of the key, and
    # the two differ in their order.
    Index("ix_fetch_queue_due", "due_at", "deployment_id", *_TURN),
    Index(
        "ix_fetch_queue_batch",
        "batch",
        "deployment_id",
        "due_at",
        *_TURN,
        "scan_id",
        sqlite_where=text("batch IS NOT NULL"),
        postgresql_where=text("batch IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

dead_letters = Table(
    "dead_letters",
    metadata,
    *_work(),
    Column("died_at", UtcDateTime, nullable=False),
    Column("http_status", Integer),
    Column("run_id", String(32)),
    sqlite_with_rowid=False,
)

staged_pairs = Table(
    "staged_pairs",
    metadata,
    Column("batch", String(32), primary_key=True),
    *_key(),
    sqlite_with_rowid=False,
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(32), primary_key=True),
    Column("command", String(32), nullable=False),
    Column("version", String(32), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in RUN_COUNTS),
    Column("duration_seconds", Double),
    Column("exit_code", Integer),
    Index(None, "started_at"),
)

schema_drift = Table(
    "schema_drift",
    metadata,
    Column("path", String(200), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("sample_deployment_id", BigInteger, nullable=False),
    Column("sample_scan_id", BigInteger, nullable=False),
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("deployment_id", BigInteger, primary_key=True, autoincrement=False),
    Column("walked_at", UtcDateTime, nullable=False),
    Column("newest_started_at", UtcDateTime),
    Column("complete_since", UtcDateTime, nullable=False),
    Column("token_key", String(32), nullable=False),
)

listing_gaps = Table(
    "listing_gaps",
    metadata,
    Column("deployment_id", BigInteger, primary_key=True, autoincrement=False),
    Column("from_at", UtcDateTime, primary_key=True),
    Column("until_at", UtcDateTime, nullable=False),
)

rate_budgets = Table(
    "rate_budgets",
    metadata,
    Column("token_key", String(32), primary_key=True),
    Column("next_free_at", UtcDateTime, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("version", String(32), nullable=False),
    Column("run_id", String(32), nullable=False),
    Column("requests_per_second", Double, nullable=False, server_default=text("0")),
    Column("finished_per_second", Double, nullable=False, server_default=text("0")),
)
