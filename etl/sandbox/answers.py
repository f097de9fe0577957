"""The bodies that the sandbox sends: the details call, the search call, and details that are spoilt. Pure."""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec

from etl.sandbox.world import PRODUCTS, Deployment, Scan, World, ids_downwards, newest_id, scan

SEARCH_WINDOW = timedelta(days=30)
NEVER_FINISHED_AFTER = timedelta(hours=1)
"""After so long without an outcome the status is NEVER_FINISHED (the API's description of the status)."""

PENDING_FOR = timedelta(seconds=5)
LOOK_AT_MOST = 5_000
"""A page whose filters fit few scans ends after so many, short or empty but with a cursor: it stays quick."""

DEEP_LEVELS = 100_000

# The scanner counts findings under these names since 1.56 (`findings_by_product` in semgrep_output_v1.atd).
_LABELS = {"sast": "code", "sca": "supply-chain", "secrets": "secrets"}
_ECOSYSTEMS = {
    "python": "pypi",
    "javascript": "npm",
    "typescript": "npm",
    "go": "gomod",
    "java": "maven",
    "ruby": "gem",
}
_LOCKFILES = {
    "python": ("requirements.txt", ".pyx"),
    "javascript": ("package-lock.json", ".vue"),
    "typescript": ("yarn.lock", ".svelte"),
    "go": ("go.sum", ".tmpl"),
    "java": ("pom.xml", ".jsp"),
    "ruby": ("Gemfile.lock", ".erb"),
}
_FILE_BYTES = 2_048
_YAML_RATE = {"targets_parsed": 4, "num_targets": 4, "bytes_parsed": 4 * _FILE_BYTES, "num_bytes": 4 * _FILE_BYTES}
_ENGINES = ("OSS", "PRO_LANG", "PRO_INTRAFILE", "PRO_INTERFILE")
_UNRESOLVED = ("failed", "skipped", "unsupported", "disabled")


class TimeRange(msgspec.Struct):
    min: float | None = None
    max: float | None = None


class Query(msgspec.Struct):
    """The documented body of the search call. Unknown keys pass unseen, as they do at the API."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    cursor: str = ""
    since: datetime | None = None
    branch: str | None = None
    repository_id: int | None = None
    is_full_scan: bool | None = None
    products: tuple[Literal["PRODUCT_SAST", "PRODUCT_SCA", "PRODUCT_SECRETS", "PRODUCT_AI_SAST"], ...] = ()
    statuses: tuple[
        Literal[
            "SCAN_STATUS_PENDING",
            "SCAN_STATUS_RUNNING",
            "SCAN_STATUS_COMPLETED",
            "SCAN_STATUS_ERROR",
            "SCAN_STATUS_CANCELLED",
            "SCAN_STATUS_NEVER_FINISHED",
        ],
        ...,
    ] = ()
    total_time: TimeRange | None = None


def read_query(body: bytes) -> Query:
    """Raises ValueError with the reason where the body isn't a search request."""
    try:
        return msgspec.json.decode(body or b"{}", type=Query, strict=False)
    except msgspec.DecodeError as exc:
        raise ValueError(str(exc)) from exc


def search(
    world: World, deployment: Deployment, query: Query, now: datetime, *, by_offset: bool = False
) -> dict[str, Any]:
    """One page, newest first. Raises ValueError for a cursor that no earlier page gave.

    The last page has the cursor "", or none where it has no scans either: both mean the end. A cursor names the
    next scan, or `by_offset` how many to skip: then scans that arrive between two pages move the rest along.
    """
    edge = now - SEARCH_WINDOW
    if query.since is not None:
        since = query.since if query.since.tzinfo else query.since.replace(tzinfo=UTC)
        edge = max(edge, since)
    found: list[dict[str, Any]] = []
    newest, passed = newest_id(world, now), 0
    if query.cursor and by_offset:
        passed = _read_cursor(query.cursor)
    elif query.cursor:
        newest = min(newest, _read_cursor(query.cursor))
    for looked, scan_id in enumerate(islice(ids_downwards(world, deployment, newest), passed, None)):
        if looked == LOOK_AT_MOST or len(found) == query.limit:
            return {"scans": found, "cursor": _cursor(passed + looked if by_offset else scan_id)}
        one = scan(world, scan_id)
        if one.started_at <= edge:
            break
        if matches(one, query, now):
            found.append(listing(one, now))
    return {"scans": found, "cursor": ""} if found else {"scans": []}


def matches(one: Scan, query: Query, now: datetime) -> bool:
    """Whether the scan passes every filter but the time window. A running scan has no total time yet."""
    if query.total_time is not None:
        low, high = query.total_time.min or 0.0, query.total_time.max
        if not is_finished(one, now) or one.duration_seconds < low:
            return False
        if high is not None and one.duration_seconds > high:
            return False
    return (
        (query.branch is None or one.branch == query.branch)
        and (query.repository_id is None or one.repository.id == query.repository_id)
        and (query.is_full_scan is None or one.is_full_scan == query.is_full_scan)
        and all(product.removeprefix("PRODUCT_").lower() in one.products for product in query.products)
        and (not query.statuses or status(one, now) in query.statuses)
    )


def is_finished(one: Scan, now: datetime) -> bool:
    return one.completed_at is not None and one.completed_at <= now


def status(one: Scan, now: datetime) -> str:
    """The status that the search call gives. A scan of two hours is NEVER_FINISHED in its second hour."""
    if is_finished(one, now):
        return "SCAN_STATUS_COMPLETED" if one.exit_code in (0, 1) else "SCAN_STATUS_ERROR"
    age = now - one.started_at
    if one.cancelled and age >= timedelta(seconds=one.duration_seconds):
        return "SCAN_STATUS_CANCELLED"
    if age < PENDING_FOR:
        return "SCAN_STATUS_PENDING"
    return "SCAN_STATUS_RUNNING" if age <= NEVER_FINISHED_AFTER else "SCAN_STATUS_NEVER_FINISHED"


def listing(one: Scan, now: datetime) -> dict[str, Any]:
    """One entry of the search call: 64-bit integers are strings, what isn't known yet is left out."""
    finished = is_finished(one, now)
    counts = {product: one.findings.get(product, 0) if finished else 0 for product in PRODUCTS}
    return _without_nulls(
        {
            "id": str(one.id),
            "deployment_id": str(one.deployment_id),
            "repository_id": str(one.repository.id),
            "status": status(one, now),
            "started_at": _documented_stamp(one.started_at),
            "completed_at": _documented_stamp(one.completed_at) if finished and one.completed_at else None,
            "branch": one.branch,
            "commit": one.commit,
            "enabled_products": list(one.products),
            "exit_code": str(one.exit_code) if finished else None,
            "is_full_scan": one.is_full_scan,
            "total_time": one.duration_seconds if finished else None,
            "findings_counts": {
                "total": str(sum(counts.values())),
                "code": str(counts["sast"]),
                "supply_chain": str(counts["sca"]),
                "secrets": str(counts["secrets"]),
            },
        }
    )


def details(one: Scan, now: datetime | None) -> dict[str, Any]:
    """The body of the details call, as it is at `now`, or in the end where `now` is None.

    It has the documented shape or the scanner's. Where there is no value, the documented shape leaves
    the key out and the scanner's says null.
    """
    finished = one.completed_at is not None and (now is None or one.completed_at <= now)
    number = str if one.string_numbers else int
    stamp = _scanner_stamp if one.scanner_shape else _documented_stamp
    body: dict[str, Any] = {
        "completed_at": stamp(one.completed_at) if finished and one.completed_at else None,
        "deployment_id": number(one.deployment_id),
        "enabled_products": list(one.products),
        "exit_code": number(one.exit_code) if finished else None,
        "has_logs": finished and not one.repository.managed,
        "id": number(one.id),
        "meta": _scanner_meta(one) if one.scanner_shape else _documented_meta(one),
        "repository_id": number(one.repository.id),
        "started_at": stamp(one.started_at),
        "stats": {} if not finished else _scanner_stats(one) if one.scanner_shape else _documented_stats(one),
    }
    return body if one.scanner_shape else _without_nulls(body)


def _documented_stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _scanner_stamp(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="microseconds")


def _cursor(scan_id: int) -> str:
    return urlsafe_b64encode(f"next:{scan_id}".encode()).decode()


def _read_cursor(cursor: str) -> int:
    try:
        return int(urlsafe_b64decode(cursor).removeprefix(b"next:"))
    except (binascii.Error, ValueError) as exc:
        raise ValueError("no page gave this cursor") from exc


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _meta(one: Scan) -> dict[str, Any]:
    repository, author = one.repository, one.author
    on_pull = one.pull_request_id is not None
    ci_path = "actions/runs" if repository.environment == "github-actions" else "-/jobs"
    return {
        "branch": one.branch,
        "commit": one.commit,
        "config": None if repository.managed else f"r/{repository.language}",
        "repo_url": repository.url,
        "ci_job_url": None if repository.managed else f"{repository.url}/{ci_path}/{one.id * 7}",
        "repository": repository.name,
        "commit_title": one.title,
        "pull_request_id": one.pull_request_id,
        "pull_request_title": one.title if on_pull else None,
        "commit_author_name": author.name,
        "commit_author_email": author.email,
        "commit_author_username": author.username,
        "commit_author_image_url": author.image_url,
        "pull_request_author_username": one.pull_request_author.username if on_pull else None,
        "pull_request_author_image_url": one.pull_request_author.image_url if on_pull else None,
    }


def _documented_meta(one: Scan) -> dict[str, Any]:
    """The published page turned the key `on` into `true`, and titles with a colon into one-key maps."""
    fields = {"true": one.trigger} | _without_nulls(_meta(one))
    if one.title_map:
        before, _, after = one.title.partition(": ")
        fields |= {name: {before: after} for name in ("commit_title", "pull_request_title") if name in fields}
    return fields


def _scanner_meta(one: Scan) -> dict[str, Any]:
    """As the scanner uploads it: `project_metadata` in semgrep_output_v1.atd."""
    base = None if one.is_full_scan else one.commit[::-1]
    truth: type[int] = int if one.string_numbers else bool  # the vendor's own example has 0 and 1
    return {
        "on": one.trigger,
        **_meta(one),
        "commit_title": _message(one),
        "pull_request_id": None if one.pull_request_id is None else str(one.pull_request_id),
        "scan_environment": "semgrep-managed-scan" if one.repository.managed else one.repository.environment,
        "is_full_scan": truth(one.is_full_scan),
        "is_sca_scan": truth("sca" in one.products),
        "is_code_scan": truth("sast" in one.products),
        "is_secrets_scan": truth("secrets" in one.products),
        "repo_id": str(one.repository.id * 3),
        "org_id": "7001",
        "repo_display_name": one.repository.name,
        "commit_timestamp": (one.started_at - timedelta(minutes=9)).isoformat(timespec="seconds"),
        "base_sha": base,
        "start_sha": base,
        "base_branch_head_commit": base,
        "project_id": None,
        "semgrep_version": "1.185.0",
    }


def _message(one: Scan) -> str:
    """The scanner's `commit_title` is the whole message of the commit, since 1.185."""
    reviewer = one.pull_request_author
    trailers = (
        f"Co-authored-by: {one.author.name} <{one.author.email}>\nReviewed-by: {reviewer.name} <{reviewer.email}>"
    )
    return f"{one.title}\n\nAsked for by the people of {one.repository.name}.\n\n{trailers}\n"


def _documented_stats(one: Scan) -> dict[str, Any]:
    """A scan that failed counted no findings."""
    found = {"findings": sum(one.findings.values())} if one.findings else {}
    return found | {"total_time": round(one.duration_seconds)}


def _scanner_stats(one: Scan) -> dict[str, Any]:
    """As the scanner uploads it: `ci_scan_complete_stats` in semgrep_output_v1.atd."""
    lockfile, odd_extension = _LOCKFILES[one.repository.language]
    has_sca = "sca" in one.products
    files = 20 + int(one.commit[:3], 16)
    parsed = files - files // 50
    parse_rate = {
        "targets_parsed": parsed,
        "num_targets": files,
        "bytes_parsed": parsed * _FILE_BYTES,
        "num_bytes": files * _FILE_BYTES,
    }
    return {
        "findings": sum(one.findings.values()),
        "errors": [],  # always so since 1.185
        "total_time": one.duration_seconds,
        "unsupported_exts": {odd_extension: files // 9, ".md": 3},
        "lockfile_scan_info": {lockfile: files // 3} if has_sca else {},
        "parse_rate": {one.repository.language: parse_rate, "yaml": _YAML_RATE},
        "engine_requested": _ENGINES[one.id % len(_ENGINES)],
        "findings_by_product": {_LABELS[product]: count for product, count in one.findings.items()},
        "supply_chain_stats": {"subprojects_stats": _subprojects(one, files)} if has_sca else None,
    }


def _subprojects(one: Scan, files: int) -> list[dict[str, Any]]:
    """One that was resolved, and for every third scan one that wasn't."""
    lockfile, _ = _LOCKFILES[one.repository.language]
    resolved = {
        "resolution_method": "LockfileParsing",
        "dependency_count": files // 3,
        "ecosystem": _ECOSYSTEMS[one.repository.language],
    }
    first = {
        "subproject_id": one.commit[:16],
        "dependency_sources": [{"kind": ["Lockfile", "PipRequirementsTxt"], "path": lockfile}],
        "resolved_stats": resolved,
    }
    other = {
        "subproject_id": one.commit[16:32],
        "dependency_sources": [{"kind": ["Manifest", "PyprojectToml"], "path": f"docs/{lockfile}"}],
        "unresolved_reason": _UNRESOLVED[one.id % len(_UNRESOLVED)],
    }
    return [first, other] if one.id % 3 == 0 else [first]


def _with(part: str, name: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    """Sets one value that Python's json writes and a careful reader must not swallow whole."""
    return lambda body: json.dumps(body | {part: body.get(part, {}) | {name: value}}).encode()


SPOILT: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "broken-json": lambda body: msgspec.json.encode(body)[:-20],
    "empty-body": lambda _: b"",
    "not-an-object": lambda body: msgspec.json.encode([body]),
    "nan": _with("stats", "total_time", float("nan")),
    "nul-text": _with("meta", "commit_title", "before\x00after"),
    "surrogate-text": _with("meta", "commit_title", "before\ud800after"),
    "big-integer": _with("stats", "findings", 2**70),
    "deep-json": lambda body: (
        msgspec.json.encode(body)[:-1] + b',"deep":' + b"[" * DEEP_LEVELS + b"]" * DEEP_LEVELS + b"}"
    ),
    "bom": lambda body: b"\xef\xbb\xbf" + msgspec.json.encode(body),
}
"""Fault name -> the bytes that come instead of the honest body, with status 200."""
