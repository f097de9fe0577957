"""The tables that answer dashboards: what is counted of the scans, by day, by week and in all. Part of the schema, as
`schema.py` is.

They hold nothing that the other tables don't: `scan-etl db refresh --all` counts all of them anew.
"""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Date, Double, Identity, Index, Integer, SmallInteger, String, Table

from etl.database.columns import LongText, column, metadata
from etl.database.types import UtcDateTime, ready_now, utc_now

KEY_LENGTH = 512
"""Longest `repository_key`, in characters: `id:` and the API's number, or else `name:` and the name's beginning."""
PRODUCTS = ("code", "supply_chain", "secrets", "ai")
"""The words of `bi_product`."""
OUTCOMES = {
    "passed": "those with exit code 0",
    "with_findings": "those with exit code 1",
    "failed": "those with any other exit code",
    "unknown": "those that ended without an exit code",
    "running": "those that have not ended, and began within a day",
    "unfinished": "those without an end that began more than a day ago",
    "cancelled": "those that were cancelled, by their listing",
    "never_finished": "those that never finished, by their listing",
}
"""The columns of the outcomes: each scan is in one of them."""
STATES = {
    "listed": "stored + waiting + dead + expired + dropped + missing",
    "stored": "details are there",
    "waiting": "in the queue: still to be fetched, or still running",
    "dead": "dead letters, and those whose details were gone (404)",
    "expired": "older than 30 days, and not stored, or still to be looked at for the last time",
    "dropped": "dropped for good, and not queued since",
    "missing": "held by nothing: the next walk that lists it queues it again",
    "stored_without_end": "those of stored without completed_at",
    "details_gone": "listed, without details at the API, and not stored",
    "stored_unlisted": "stored, and never listed",
}
"""The columns of what became of the scans that were listed."""

_Id = BigInteger().with_variant(Integer, "sqlite")  # the one that SQLite counts up by itself


def _count(name: str, meaning: str) -> Column[Any]:
    return column(name, BigInteger, meaning, nullable=False)


def _id() -> Column[Any]:
    # An identity, which needs no right to a sequence.
    entry = {"meaning": "nothing but a number", "unit": None, "api": None}
    return Column("id", _Id, Identity(), info=entry, primary_key=True)


def _deployment(**options: Any) -> Column[Any]:
    return column("deployment_id", BigInteger, "the deployment", autoincrement=False, **options)


def _day(**options: Any) -> Column[Any]:
    meaning = "the day on which the scans started; 1970-01-01: nobody knows"
    return column("day", Date, meaning, unit="UTC", nullable=False, **options)


def _repository_key() -> list[Column[Any]]:
    return [
        _deployment(primary_key=True),
        column(
            "repository_key", String(KEY_LENGTH), "id: and its number, or else name: and its name", primary_key=True
        ),
    ]


def _repository() -> list[Column[Any]]:
    return [
        column("repository_id", BigInteger, "the API's number of the repository"),
        column("repository", LongText, "its newest name", api="meta.repository"),
    ]


def _scans_of_repository() -> list[Column[Any]]:
    """What is counted of a repository's scans in any time; a longer one adds up shorter ones."""
    return [
        *_repository(),
        _count("scans", "how many scans there are: the sum of all outcomes"),
        *(_count(name, meaning) for name, meaning in OUTCOMES.items()),
        _count("full_scans", "full scans among them"),
        _count("diff_scans", "diff scans among them"),
        _count("findings", "the sum of their findings"),
        _count("timed", "those with a duration"),
        column("duration_seconds_total", Double, "the sum of the durations", unit="seconds", nullable=False),
        column("duration_seconds_longest", Double, "the longest duration", unit="seconds"),
        column("first_started_at", UtcDateTime, "the start of the first scan"),
        column("last_started_at", UtcDateTime, "the start of the newest scan"),
        column("last_fetched_at", UtcDateTime, "when details were fetched last"),
        column("last_scan_id", BigInteger, "the newest scan"),
        column("last_outcome", String(16), "how that one ended"),
        column("last_exit_code", BigInteger, "its exit code", api="exit_code"),
        column("last_products", LongText, "its products, as in bi_scan", api="enabled_products[]"),
        column("last_semgrep_version", LongText, "its scanner's version", api="meta.semgrep_version"),
        column("full_scan_id", BigInteger, "the newest full scan that has passed or has findings"),
        column("full_started_at", UtcDateTime, "the start of that full scan"),
        column("full_findings", BigInteger, "its findings"),
        column("full_findings_code", BigInteger, "its findings in code"),
        column("full_findings_supply_chain", BigInteger, "its findings in dependencies"),
        column("full_findings_secrets", BigInteger, "its findings of secrets"),
        *(column(f"last_{product}_day", Date, f"the newest day with a scan for {product}") for product in PRODUCTS),
    ]


calendar = Table(
    "calendar",
    metadata,
    column("day", Date, "a day", primary_key=True),
    column("week", Date, "the Monday of its week", nullable=False),
    column("month", Date, "the first day of its month", nullable=False),
    column("quarter", Date, "the first day of its quarter", nullable=False),
    column("year", Integer, "its year", nullable=False),
    column("weekday", SmallInteger, "1 Monday to 7 Sunday", nullable=False),
    comment="the days from 2000 to 2059",
)

summary_marks = Table(
    "summary_marks",
    metadata,
    _id(),
    _deployment(nullable=False),
    _day(),
    column("marked_at", UtcDateTime, "when something of that day changed", nullable=False, server_default=utc_now()),
    column("due_at", UtcDateTime, "not to be counted before", nullable=False, server_default=ready_now()),
    comment="the days whose counts are behind",
)

summary_state = Table(
    "summary_state",
    metadata,
    column("id", Integer, "always 1", primary_key=True, autoincrement=False),
    column("refreshed_at", UtcDateTime, "when days were counted last; NULL: never"),
    comment="one row: who counts has locked it",
)

scan_days = Table(
    "scan_days",
    metadata,
    *_repository_key(),
    _day(primary_key=True),
    *_scans_of_repository(),
    Index("ix_scan_days_day", "day", "deployment_id"),
    comment="what is counted of a repository's scans of a day",
)

scan_weeks = Table(
    "scan_weeks",
    metadata,
    *_repository_key(),
    column("week", Date, "the Monday of the week; 1969-12-29: nobody knows", unit="UTC", primary_key=True),
    *_scans_of_repository(),
    Index("ix_scan_weeks_week", "week", "deployment_id"),
    comment="the same of a week",
)

repository_summaries = Table(
    "repository_summaries",
    metadata,
    *_repository_key(),
    *_scans_of_repository(),
    comment="the same of all its scans",
)

scan_groups = Table(
    "scan_groups",
    metadata,
    _id(),
    _deployment(nullable=False),
    _day(),
    column("trigger_event", LongText, "what started the scans", api="meta.on"),
    column("is_pull_request", Boolean, "whether they have a pull request", nullable=False),
    column("is_full_scan", Boolean, "full scans, or diff scans", nullable=False),
    column("outcome", String(16), "how they ended", nullable=False),
    column("exit_code", BigInteger, "with which exit code", api="exit_code"),
    _count("scans", "how many scans these are"),
    _count("findings", "the sum of their findings"),
    column("duration_seconds_total", Double, "the sum of their durations", unit="seconds", nullable=False),
    Index("ix_scan_groups_day", "day", "deployment_id"),
    comment="a day's scans that began for the same reason and ended in the same way",
)

author_days = Table(
    "author_days",
    metadata,
    _id(),
    _deployment(nullable=False),
    _day(),
    column("commit_author_username", LongText, "the author's account", api="meta.commit_author_username"),
    _count("scans", "how many scans of the author's commits"),
    _count("with_findings", "those with exit code 1"),
    _count("failed", "those with any other exit code"),
    Index("ix_author_days_day", "day", "deployment_id"),
    comment="a day's scans by the author of their commit",
)

# The day comes first in the key, for the rows of MariaDB lie in its order. All that is counted is in the index, for to
# group two years of 2,400 repositories by their day it took 2.1 s through a table of its own, and takes 0.7 s in order.
coverage_days = Table(
    "coverage_days",
    metadata,
    _day(primary_key=True),
    *_repository_key(),
    column("started_day", Date, "the same day; NULL: nobody knows", unit="UTC"),
    *_repository(),
    *(_count(name, meaning) for name, meaning in STATES.items()),
    Index("ix_coverage_days_started_day", "started_day", "deployment_id", "repository_id", *STATES),
    comment="what became of a repository's scans of a day that were listed",
)

deployment_days = Table(
    "deployment_days",
    metadata,
    _deployment(primary_key=True),
    _day(primary_key=True),
    *(_count(name, meaning) for name, meaning in STATES.items()),
    comment="the same of all repositories of a deployment",
)

duration_weeks = Table(
    "duration_weeks",
    metadata,
    _deployment(primary_key=True),
    column("week", Date, "the Monday of the week", unit="UTC", primary_key=True),
    column("scan_kind", String(4), "all, full or diff", primary_key=True),
    _count("scans", "those with a duration"),
    *(
        column(f"p{percent}_seconds", Double, f"{percent} of 100 took so long at most", unit="seconds", nullable=False)
        for percent in (50, 75, 95)
    ),
    column("longest_seconds", Double, "the longest of them", unit="seconds", nullable=False),
    comment="how long a week's scans took; deployment 0: those of all deployments",
)

DERIVED = (
    *(scan_days, scan_weeks, repository_summaries, scan_groups, author_days),
    *(coverage_days, deployment_days, duration_weeks),
)
"""What is counted."""
