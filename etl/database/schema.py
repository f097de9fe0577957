"""The only definition of the tables, and of what they mean; those of repositories are in `repositories.py`,
those of what is counted for dashboards in `summaries.py`.
Their history is in `migrations/`, as are the views.

Columns are added, never renamed or removed: dashboards depend on their names. All instants are UTC with
microseconds and come back aware.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    literal,
    text,
)

from etl.database import repositories as of_repositories
from etl.database import summaries
from etl.database.columns import Json as _Json
from etl.database.columns import LongText as _Text
from etl.database.columns import checked_instants
from etl.database.columns import column as _column
from etl.database.types import UtcDateTime, add_seconds, ready_now, utc_now
from etl.model import RETENTION, RUN_COUNTS

HEAD = "0003"
"""The newest revision in `migrations/`. A test keeps the two in step; asking Alembic costs 0.1 s a start."""

KEY_TEXT_LENGTH = 128
NAME_TEXT_LENGTH = 512
"""Longest text, in characters, that may be part of a key: PostgreSQL refuses index rows past 2,704 bytes, InnoDB keys
past 3,072, each character counted as four."""


metadata = summaries.calendar.metadata
deployments, repositories = of_repositories.deployments, of_repositories.repositories
repository_watermarks = of_repositories.repository_watermarks


def _key() -> list[Column[Any]]:
    return [
        _column("deployment_id", BigInteger, "the deployment", primary_key=True, autoincrement=False),
        _column("scan_id", BigInteger, "the scan", primary_key=True, autoincrement=False),
    ]


def _started_day() -> Column[Any]:
    meaning = "the day of started_at; NULL: none, or before 2000, or a day ahead of when it was known"
    return _column("started_day", Date, meaning, unit="UTC")


def _of_scan() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["deployment_id", "scan_id"], ["scans.deployment_id", "scans.scan_id"], ondelete="CASCADE"
    )


scans = Table(
    "scans",
    metadata,
    *_key(),
    _column("repository_id", BigInteger, "the API's number of the repository", api="repository_id"),
    _column("started_at", UtcDateTime, "when the scan began", api="started_at"),
    _column("completed_at", UtcDateTime, "when it ended; NULL: it still ran when last seen", api="completed_at"),
    _column("exit_code", BigInteger, "0 passed, 1 blocking findings, others failed; any integer", api="exit_code"),
    _column("has_logs", Boolean, "whether the vendor keeps logs of it", api="has_logs"),
    _column("extra", _Json, "the fields without a column, and what didn't fit into its column", api="*"),
    _column("content_hash", String(32), "32 hex digits over all that is stored of the scan", nullable=False),
    _column("first_fetched_at", UtcDateTime, "when its details were seen first", nullable=False),
    _column("fetched_at", UtcDateTime, "when its details were seen last", nullable=False),
    _column("changed_at", UtcDateTime, "when the answer came that brought the present content", nullable=False),
    _column("run_id", String(32), "the run that brought the present content"),
    _started_day(),
    _column("duration_seconds", Double, "from started_at to completed_at; NULL: unknown, or negative", unit="seconds"),
    Index("ix_scans_started_at", "started_at", "scan_id"),
    Index(None, "changed_at"),
    Index("ix_scans_started_day", "started_day", "deployment_id"),
    Index("ix_scans_repository", "deployment_id", "repository_id", "started_at"),
    comment="one row a scan",
)

scan_products = Table(
    "scan_products",
    metadata,
    *_key(),
    _column("product", String(KEY_TEXT_LENGTH), "sast, sca, secrets, ...", api="enabled_products[]", primary_key=True),
    _of_scan(),
    sqlite_with_rowid=False,
    comment="one row for each product of a scan",
)

bi_product = Table(
    "bi_product",
    metadata,
    _column("spelling", String(KEY_TEXT_LENGTH), "as the API or the scanner writes it", primary_key=True),
    _column("product", String(KEY_TEXT_LENGTH), "code, supply_chain, secrets or ai", nullable=False),
    sqlite_with_rowid=False,
    comment="one word for a product: a row for each of its spellings; a product without one is itself",
)

bi_exit_code = Table(
    "bi_exit_code",
    metadata,
    _column("exit_code", BigInteger, "how the scanner ended", primary_key=True, autoincrement=False),
    _column("meaning", String(128), "what it means", nullable=False),
    _column("fault", String(32), "where to look: none, code, rules, setup or scanner", nullable=False),
    comment="what the documented exit codes mean; others come from the system that ran the scan",
)

scan_meta = Table(
    "scan_meta",
    metadata,
    *_key(),
    _column("trigger_event", _Text, "what started the scan: pull_request, push, schedule, ...", api="meta.on"),
    _column("branch", _Text, "the branch that was scanned", api="meta.branch"),
    _column("commit_sha", _Text, "the commit that was scanned", api="meta.commit"),
    _column("config", _Text, "the configuration that was used", api="meta.config"),
    _column("repo_url", _Text, "the repository's address", api="meta.repo_url"),
    _column("ci_job_url", _Text, "the CI job's address", api="meta.ci_job_url"),
    _column("repository", _Text, "the repository's name", api="meta.repository"),
    _column("commit_title", _Text, "the commit's title, or its whole message", api="meta.commit_title"),
    _column("pull_request_id", _Text, "the pull request's number; NULL for none", api="meta.pull_request_id"),
    _column("pull_request_title", _Text, "the pull request's title", api="meta.pull_request_title"),
    _column("commit_author_name", _Text, "the commit's author", api="meta.commit_author_name"),
    _column("commit_author_email", _Text, "the author's address", api="meta.commit_author_email"),
    _column("commit_author_username", _Text, "the author's account", api="meta.commit_author_username"),
    _column("commit_author_image_url", _Text, "the author's picture", api="meta.commit_author_image_url"),
    _column(
        "pull_request_author_username", _Text, "the pull request's author", api="meta.pull_request_author_username"
    ),
    _column("pull_request_author_image_url", _Text, "that author's picture", api="meta.pull_request_author_image_url"),
    _column("is_full_scan", Boolean, "true for a full scan, false for a diff scan", api="meta.is_full_scan"),
    _column("scan_environment", _Text, "the CI system that it ran in", api="meta.scan_environment"),
    _column("semgrep_version", _Text, "the scanner's version", api="meta.semgrep_version"),
    _column("repo_display_name", _Text, "the name that people gave the repository", api="meta.repo_display_name"),
    _column("commit_timestamp", _Text, "when the commit was made, as sent: no offset", api="meta.commit_timestamp"),
    _column("project_id", _Text, "the vendor's project that the findings belong to", api="meta.project_id"),
    _column("extra", _Json, "the fields of meta without a column, and what didn't fit into its column", api="meta.*"),
    _of_scan(),
    comment="one row a scan, from meta",
)

scan_stats = Table(
    "scan_stats",
    metadata,
    *_key(),
    _column("findings", BigInteger, "how many findings the scan has", api="stats.findings"),
    _column("total_time_seconds", Double, "how long it took", api="stats.total_time", unit="seconds"),
    _column("engine_requested", _Text, "OSS, PRO_LANG, PRO_INTRAFILE, PRO_INTERFILE", api="stats.engine_requested"),
    _column("extra", _Json, "what is neither a column nor a number in a map", api="stats.*"),
    _of_scan(),
    comment="one row a scan, from stats",
)

scan_languages = Table(
    "scan_languages",
    metadata,
    *_key(),
    _column("language", String(KEY_TEXT_LENGTH), "the language", api="stats.parse_rate.*", primary_key=True),
    _column("targets_parsed", BigInteger, "files that were parsed", api="stats.parse_rate.*.targets_parsed"),
    _column("num_targets", BigInteger, "files in all", api="stats.parse_rate.*.num_targets"),
    _column("bytes_parsed", BigInteger, "what was parsed", unit="bytes", api="stats.parse_rate.*.bytes_parsed"),
    _column("num_bytes", BigInteger, "size of all files", unit="bytes", api="stats.parse_rate.*.num_bytes"),
    _of_scan(),
    sqlite_with_rowid=False,
    comment="one row for each language of a scan: how much of it was parsed",
)

scan_stat_items = Table(
    "scan_stat_items",
    metadata,
    *_key(),
    _column(
        "category",
        String(KEY_TEXT_LENGTH),
        "the map's name, with dots between nested ones",
        api="stats.*",
        primary_key=True,
    ),
    _column("name", String(NAME_TEXT_LENGTH), "the number's name in the map", api="stats.*.*", primary_key=True),
    _column("value", Double, "the number", api="stats.*.*", nullable=False),
    _of_scan(),
    sqlite_with_rowid=False,
    comment="one row for each number in a map inside stats",
)


_RETENTION_SECONDS = literal(RETENTION.total_seconds())
_TURN = ("priority", "expires_at", "enqueued_at")
"""In what order a deployment's rows are taken, of those that are due at once."""


scan_listings = Table(
    "scan_listings",
    metadata,
    *_key(),
    _column("status", String(64), "SCAN_STATUS_..., the most final that was listed", api="listing.status"),
    _column("is_full_scan", Boolean, "true for a full scan, false for a diff scan", api="listing.is_full_scan"),
    _column("findings_total", BigInteger, "findings in all", api="listing.findings_counts.total"),
    _column("findings_code", BigInteger, "findings in code", api="listing.findings_counts.code"),
    _column(
        "findings_supply_chain", BigInteger, "findings in dependencies", api="listing.findings_counts.supply_chain"
    ),
    _column("findings_secrets", BigInteger, "findings of secrets", api="listing.findings_counts.secrets"),
    _column("total_time_seconds", Double, "how long the scan took", api="listing.total_time", unit="seconds"),
    _column("branch", _Text, "the branch that was scanned", api="listing.branch"),
    _column("commit_sha", _Text, "the commit that was scanned", api="listing.commit"),
    _column("repository_id", BigInteger, "the API's number of the repository", api="listing.repository_id"),
    _column("started_at", UtcDateTime, "when the scan began", api="listing.started_at"),
    _column("completed_at", UtcDateTime, "when it ended", api="listing.completed_at"),
    _column("exit_code", BigInteger, "as scans.exit_code", api="listing.exit_code"),
    _column("extra", _Json, "the fields of the listing without a column", api="listing.*"),
    _column("listed_at", UtcDateTime, "when the walk began that listed it last, by the API's clock", nullable=False),
    _column("details_gone_at", UtcDateTime, "when the API said that it has no details (404)"),
    _column("expired_at", UtcDateTime, "the walk that found it queued and older than 30 days, by the API's clock"),
    _column("dropped_at", UtcDateTime, "when somebody dropped it for good"),
    _started_day(),
    Index("ix_scan_listings_started_at", "deployment_id", "started_at"),
    Index("ix_scan_listings_started_day", "started_day", "deployment_id"),
    comment="one row for each scan that the search call has listed",
)


def _work() -> list[Column[Any]]:
    """The columns that a queue row and a dead letter share."""
    return [
        *_key(),
        _column(
            "due_at",
            UtcDateTime,
            "not before this instant; 1970: it waits for nothing but its turn",
            nullable=False,
            server_default=ready_now(),
        ),
        _column("priority", SmallInteger, "the lower number goes first", nullable=False, server_default=text("0")),
        _column("attempts", Integer, "failures so far", nullable=False, server_default=text("0")),
        _column("lease_token", String(32), "the worker process that holds it"),
        _column("batch", String(32), "the run whose file named it"),
        _column("enqueued_at", UtcDateTime, "since when it is in the queue", nullable=False, server_default=utc_now()),
        _column(
            "expires_at",
            UtcDateTime,
            "from when on the API won't have the scan any more",
            nullable=False,
            server_default=add_seconds(utc_now(), _RETENTION_SECONDS),
        ),
        _column("error_kind", String(32), "why it isn't done yet, in a word"),
        _column("error", _Text, "why it isn't done yet, in a sentence"),
    ]


fetch_queue = Table(
    "fetch_queue",
    metadata,
    *_work(),
    *checked_instants("ck_fetch_queue_instants", ("due_at", "expires_at", "enqueued_at")),
    # Whatever a planner knows of the rows, it has but one index to go by: neither begins with a column of the key, the
    # two differ in their order, and PostgreSQL may use neither for a statement that doesn't name what it begins with.
    Index("ix_fetch_queue_due", "due_at", "deployment_id", *_TURN, postgresql_where=text("due_at IS NOT NULL")),
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
    comment="what is still to fetch",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    *_work(),
    _column("died_at", UtcDateTime, "when it was given up", nullable=False),
    _column("http_status", Integer, "the status of the last answer"),
    _column("run_id", String(32), "the run that gave it up"),
    _column("retry_at", UtcDateTime, "when it is tried again by itself; NULL: never"),
    Index(None, "retry_at"),
    sqlite_with_rowid=False,
    comment="what was given up",
)

staged_pieces = Table(
    "staged_pieces",
    metadata,
    _column("batch", String(32), "the run that reads the input", primary_key=True),
    _column("digest", String(32), "32 hex digits over what was read", primary_key=True),
    _column("pairs", _Text, "JSON: the pairs that are to be queued, [[120, 123], ...]", nullable=False),
    comment="what runs of files are reading, piece by piece",
)

staged_pairs = Table(
    "staged_pairs",
    metadata,
    _column("batch", String(32), "the run that reads or has read the input", primary_key=True),
    *_key(),
    sqlite_with_rowid=False,
    comment="who reads a file, and what runs of files share",
)

runs = Table(
    "runs",
    metadata,
    _column("run_id", String(32), "the run", primary_key=True),
    _column("command", String(32), "the command that it was", nullable=False),
    _column("version", String(32), "the version of scan-etl", nullable=False),
    _column("started_at", UtcDateTime, "when it began", nullable=False),
    _column("finished_at", UtcDateTime, "when it ended; NULL: it goes on, or was killed"),
    *(
        _column(name, BigInteger, meaning, nullable=False, server_default=text("0"))
        for name, meaning in RUN_COUNTS.items()
    ),
    _column("duration_seconds", Double, "how long it took", unit="seconds"),
    _column("exit_code", Integer, "how it ended: 0 all done; docs/running.md has the others"),
    _column("state", String(16), "running, ended, skipped or lost", nullable=False, server_default=text("'running'")),
    _column("stop_reason", _Text, "what ended it before all was done"),
    _column("inputs", _Json, "the files whose pairs it fetched"),
    _column("settings", _Json, "the settings in force, without secrets"),
    _column("notified", _Json, "what was known when somebody was last told, if notify is set: only news is told"),
    Index(None, "started_at"),
    comment="one row a run",
)

schema_drift = Table(
    "schema_drift",
    metadata,
    _column("path", String(200), "the field, e.g. meta.base_sha; listing.status: of the search call", primary_key=True),
    _column("kind", String(32), "how it differs", primary_key=True),
    _column("count", BigInteger, "how often it was met", nullable=False),
    _column("first_seen_at", UtcDateTime, "when it was met first", nullable=False),
    _column("last_seen_at", UtcDateTime, "when it was met last", nullable=False),
    _column("sample_deployment_id", BigInteger, "the deployment of a scan that has it", nullable=False),
    _column("sample_scan_id", BigInteger, "a scan that has it", nullable=False),
    comment="how the answers differ from what is documented",
)

watermarks = Table(
    "watermarks",
    metadata,
    _column("deployment_id", BigInteger, "the deployment", primary_key=True, autoincrement=False),
    _column("walked_at", UtcDateTime, "when the last complete walk began, by the API's clock", nullable=False),
    _column("newest_started_at", UtcDateTime, "the start of the newest scan that it knew"),
    _column("complete_since", UtcDateTime, "from when on the scans are listed without a gap", nullable=False),
    _column("token_key", String(32), "a one-way digest of the token that saw the deployment", nullable=False),
    comment="how far discovery got, one row a deployment",
)

listing_gaps = Table(
    "listing_gaps",
    metadata,
    _column("deployment_id", BigInteger, "the deployment", primary_key=True, autoincrement=False),
    _column("from_at", UtcDateTime, "since when nothing was listed", primary_key=True),
    _column("until_at", UtcDateTime, "until when nothing was listed", nullable=False),
    comment="what is no longer available",
)

rate_budgets = Table(
    "rate_budgets",
    metadata,
    _column("token_key", String(32), "a one-way digest of the token", primary_key=True),
    _column("next_free_at", UtcDateTime, "the first instant at which the next request may go out", nullable=False),
    comment="the pace that all workers of a token share",
)


def _per_second(name: str, meaning: str) -> Column[Any]:
    return _column(name, Double, meaning, unit="1/second", nullable=False, server_default=text("0"))


workers = Table(
    "workers",
    metadata,
    _column("token", String(32), "the worker process, as in fetch_queue.lease_token", primary_key=True),
    _column("started_at", UtcDateTime, "when it began", nullable=False),
    _column("seen_at", UtcDateTime, "its last sign of life", nullable=False),
    _column("version", String(32), "the version of scan-etl", nullable=False),
    _column("run_id", String(32), "the run that it is", nullable=False),
    _per_second("requests_per_second", "requests since the sign of life before"),
    _per_second("finished_per_second", "pairs that left the queue since the sign of life before"),
    _column("slow_pace", _Text, "why it asks less than a tenth of [api] rate; NULL: it doesn't"),
    comment="who is at work",
)
