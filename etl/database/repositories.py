"""The tables of deployments and repositories: part of the schema, as `schema.py` is."""

from typing import Any

from sqlalchemy import BigInteger, Column, Table

from etl.database.columns import Json, LongText, column, metadata
from etl.database.types import UtcDateTime

deployments = Table(
    "deployments",
    metadata,
    column("deployment_id", BigInteger, "the deployment", primary_key=True, autoincrement=False),
    column("slug", LongText, "its name in addresses of the API", api="deployment.slug"),
    column("name", LongText, "its name for people", api="deployment.name"),
    column("extra", Json, "the fields without a column", api="deployment.*"),
    column("first_seen_at", UtcDateTime, "when a token saw it first", nullable=False),
    column("seen_at", UtcDateTime, "when a token saw it last", nullable=False),
    column("repositories_at", UtcDateTime, "when its repositories were last listed to their end"),
    comment="one row for each deployment that a token has seen",
)


def _key() -> list[Column[Any]]:
    return [
        column("deployment_id", BigInteger, "the deployment", primary_key=True, autoincrement=False),
        column(
            "repository_id", BigInteger, "the API's number of the repository", primary_key=True, autoincrement=False
        ),
    ]


repositories = Table(
    "repositories",
    metadata,
    *_key(),
    column("name", LongText, "its name", api="repository.name"),
    column("url", LongText, "its address", api="repository.url"),
    column("tags", Json, "its tags, a list", api="repository.tags"),
    column("default_branch", LongText, "the default branch of its host", api="repository.default_branch"),
    column(
        "primary_branch", LongText, "the branch that Semgrep takes for the main one", api="repository.primary_branch"
    ),
    column("created_at", UtcDateTime, "when Semgrep first knew it", api="repository.created_at"),
    column("latest_scan_at", UtcDateTime, "its newest scan; NULL: never scanned", api="repository.latest_scan_at"),
    column("extra", Json, "the fields without a column, and what didn't fit into its column", api="repository.*"),
    column("first_seen_at", UtcDateTime, "when it was listed first, by the API's clock", nullable=False),
    column("seen_at", UtcDateTime, "when it was listed last, by the API's clock", nullable=False),
    column("gone_at", UtcDateTime, "since when it isn't listed, being archived or deleted; NULL: it is"),
    comment="one row for each repository that was ever listed, scanned or not",
)

repository_watermarks = Table(
    "repository_watermarks",
    metadata,
    *_key(),
    column(
        "walked_at", UtcDateTime, "when the last complete walk of its scans began, by the API's clock", nullable=False
    ),
    column("newest_started_at", UtcDateTime, "the start of the newest scan that the walk found"),
    column("latest_scan_at", UtcDateTime, "what repositories.latest_scan_at was then"),
    comment="how far discovery got, where the API lists scans by repository only",
)
