"""The fields of the API's answers, a list for each level: where a new field goes.

`name` is the API's, `column` ours where it differs. A name under `kept` is known, and has no column: it stays in the
`extra` of its level, and is nothing new when it comes. Sources: the vendor's page of the details call and its OpenAPI
description, the example in its webhook documentation, and what the scanner uploads (`project_metadata` and
`ci_scan_complete_stats` in semgrep_output_v1.atd, as of 1.185).
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from etl.model import Drift
from etl.transform.readers import (
    DRIFT_UNKNOWN_FIELD,
    OddError,
    Reader,
    boolean,
    flag,
    instant,
    integer,
    json_object,
    products,
    seconds,
    short_text,
    text,
    texts,
    title,
)
from etl.transform.sanitize import PATH_MAX_CHARACTERS, Notes

MAX_DRIFT = 50
"""Most drift entries of one scan: enough to see what has changed, whatever the answer holds."""
STATUS_MAX_CHARACTERS = 64
"""Longest status; a test compares it with the column's width."""


class Field(NamedTuple):
    """One field of an answer.

    One that got its column after the first release `counts_as_sent`: the content hash has its value as it came, as it
    had before, when `extra` held it. So an unchanged scan keeps its hash.
    """

    name: str
    read: Reader
    column: str
    counts_as_sent: bool = False


class Level(NamedTuple):
    """The known fields of one object. `prefix` is its path, with a dot at the end. `names` and `columns` are those of
    the fields, in their order; `known` are these and the names that `extra` keeps; `as_sent` those that count so."""

    prefix: str
    fields: tuple[Field, ...]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    known: frozenset[str]
    as_sent: tuple[str, ...]


def _field(name: str, read: Reader, column: str = "", *, counts_as_sent: bool = False) -> Field:
    return Field(name, read, column or name, counts_as_sent)


def _is_about_people(field: Field) -> bool:
    return "_author_" in field.name or field.read is title


def _level(prefix: str, *fields: Field, kept: str = "") -> Level:
    names = tuple(field.name for field in fields)
    return Level(
        prefix=prefix,
        fields=fields,
        names=names,
        columns=tuple(field.column for field in fields),
        known=frozenset((*names, *kept.split())),
        # What is hidden of people in a column is hidden in the hash, and so it was in `extra`.
        as_sent=tuple(one.name for one in fields if one.counts_as_sent and not _is_about_people(one)),
    )


SCAN: Final = _level(
    "",
    _field("repository_id", integer),
    _field("started_at", instant),
    _field("completed_at", instant),
    _field("exit_code", integer),
    _field("has_logs", boolean),
    kept="id deployment_id enabled_products meta stats hashed_id tenant_name",
)
"""Table `scans`."""

PARTS: Final = _level(
    "", _field("enabled_products", products), _field("meta", json_object), _field("stats", json_object)
)
"""What of a scan goes to other tables."""

META: Final = _level(
    "meta.",
    _field("on", text, "trigger_event"),
    _field("branch", text),
    _field("commit", text, "commit_sha"),
    _field("config", text),
    _field("repo_url", text),
    _field("ci_job_url", text),
    _field("repository", text),
    _field("commit_title", title),
    _field("pull_request_id", text),
    _field("pull_request_title", title),
    _field("commit_author_name", text),
    _field("commit_author_email", text),
    _field("commit_author_username", text),
    _field("commit_author_image_url", text),
    _field("pull_request_author_username", text),
    _field("pull_request_author_image_url", text),
    _field("is_full_scan", flag),
    _field("scan_environment", text),
    _field("semgrep_version", text),
    _field("repo_display_name", text),
    _field("commit_timestamp", text),
    _field("project_id", text),
    kept=(
        "true app_block_override base_branch_head_commit base_sha is_code_scan is_sca_scan is_secrets_scan org_id "
        "renamed_paths repo_id start_sha version"
    ),
)
"""Table `scan_meta`. `commit_timestamp` comes without an offset, in whatever time zone the scan ran: no instant."""

AUTHORS: Final = frozenset(field.column for field in META.fields if "_author_" in field.name)
"""The columns that are about people."""
TITLES: Final = frozenset(field.column for field in META.fields if field.read is title)
"""The columns whose text may be a whole message."""

TRIGGER_OF_YAML: Final = _level("meta.", _field("true", text))
"""The published page calls `on` by the name `true`, as YAML reads that word; the scanner sends `on`."""

STATS: Final = _level(
    "stats.",
    _field("findings", integer),
    _field("total_time", seconds, "total_time_seconds"),
    _field("engine_requested", text),
    kept="errors unsupported_exts lockfile_scan_info parse_rate findings_by_product supply_chain_stats",
)
"""Table `scan_stats`."""

LANGUAGE: Final = _level(
    "stats.parse_rate[].",
    _field("targets_parsed", integer),
    _field("num_targets", integer),
    _field("bytes_parsed", integer),
    _field("num_bytes", integer),
)
"""Table `scan_languages`: one of the objects in `stats.parse_rate`, whose names are languages."""

LISTING: Final = _level(
    "",
    _field("status", short_text(STATUS_MAX_CHARACTERS)),
    _field("is_full_scan", flag),
    _field("total_time", seconds, "total_time_seconds"),
    _field("branch", text),
    _field("commit", text, "commit_sha"),
    _field("repository_id", integer),
    _field("started_at", instant),
    _field("completed_at", instant),
    _field("exit_code", integer),
    kept="id deployment_id findings_counts enabled_products",
)
"""Table `scan_listings`. The details have `enabled_products` in full."""

LISTED_FINDINGS: Final = _level(
    "findings_counts.",
    _field("total", integer, "findings_total"),
    _field("code", integer, "findings_code"),
    _field("supply_chain", integer, "findings_supply_chain"),
    _field("secrets", integer, "findings_secrets"),
)
"""Likewise, in the listing's `findings_counts`."""

IDENTITY: Final = _level("", _field("id", integer), _field("deployment_id", integer))
"""What an answer and a listing are about."""

DEPLOYMENT: Final = _level("deployment.", _field("slug", text), _field("name", text), kept="id findings")
"""Table `deployments`."""

REPOSITORY: Final = _level(
    "repository.",
    _field("name", text),
    _field("url", text),
    _field("tags", texts),
    _field("default_branch", text),
    _field("primary_branch", text),
    _field("created_at", instant),
    _field("latest_scan_at", instant),
    kept="id",
)
"""Table `repositories`."""


def take(source: dict[str, Any], level: Level, notes: Notes) -> dict[str, Any]:
    """The values of a level's fields by column, taken out of `source`; None where there is none.

    A field that is null is as good as absent. A value of no known form stays in `source`, and is noted.
    """
    row: dict[str, Any] = {}
    for name, read, column, _ in level.fields:
        value = source.pop(name, None)
        if value is not None and not (read is text and type(value) is str):
            try:
                value = read(value)
            except OddError as odd:
                notes[Drift(level.prefix + name, odd.kind)] = None
                if odd.found is None:
                    source[name] = value
                value = odd.found
        row[column] = value
    return row


def note_unknown(source: Mapping[str, Any], level: Level, notes: Notes) -> None:
    """Note the names that aren't known at a level."""
    if not level.known.issuperset(source):
        for name in [name for name in source if name not in level.known][:MAX_DRIFT]:
            notes[Drift((level.prefix + name)[:PATH_MAX_CHARACTERS], DRIFT_UNKNOWN_FIELD)] = None


def leftovers(left: Mapping[str, Any], level: Level) -> dict[str, Any]:
    """What `extra` keeps of what `take` has left: all but known fields that are null."""
    return {name: value for name, value in left.items() if value is not None or name not in level.known}
