"""Writes flattened scans. Called inside the transaction that also removes their queue rows.

Whoever removes a queue row holds the only valid lease of that pair until the commit, so no one else
writes the same scan meanwhile: reading what is there and then inserting is safe.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Table, delete, literal, update
from sqlalchemy.sql.expression import bindparam

from etl.database.dialects import insert_rows, locked, on_pairs
from etl.database.schema import scan_languages, scan_meta, scan_products, scan_stat_items, scan_stats, scans
from etl.database.types import add_seconds, utc_now
from etl.model import Pair, ScanRows, StatItem
from etl.store.drift import DriftSeen, count_drift
from etl.store.listings import listings_of
from etl.store.marks import UNKNOWN_DAY, mark
from etl.transform.fields import LANGUAGE, META, SCAN, STATS
from etl.transform.reconcile import Stored, differences
from etl.transform.timing import duration_seconds, started_day

Row = tuple[Any, ...]


AHEAD_SECONDS = 3_600.0
"""What was fetched so much later than now was fetched under a clock that was ahead: nobody knows when."""
_UNKNOWN_AT = datetime(1970, 1, 1, tzinfo=UTC)


class Loaded(NamedTuple):
    """How many scans were new, changed, or the same as (or older than) what is stored."""

    inserted: int
    updated: int
    unchanged: int


class _Stored(NamedTuple):
    content_hash: str
    final: bool
    first_fetched_at: datetime
    fetched_at: datetime
    started_at: datetime | None
    started_day: date | None


def load_scans(
    connection: Connection, batch: Sequence[ScanRows], run_id: str, uncounted: Collection[Pair] = ()
) -> Loaded:
    """Store a batch, so that loading it twice, or in another order, gives the same rows.

    A finished scan outranks an unfinished one, then the later answer wins. Rows whose content hash is
    the same stay as they are, apart from `fetched_at`. Any answer is later than one of the future.
    """
    newest = _newest(batch)
    if not newest:
        return Loaded(0, 0, 0)
    stored = _stored(connection, list(newest))
    new, changed, seen = [], [], []
    for pair, rows in newest.items():
        before = stored.get(pair)
        if before is None:
            new.append(rows)
        elif rows.content_hash != before.content_hash and rank(rows) > (before.final, before.fetched_at):
            changed.append(rows)
        else:
            seen.append(rows)
    if changed:
        on_pairs(connection, _REMOVE, scans, [rows.pair for rows in changed])
    days_before = {(pair.deployment_id, row.started_day or UNKNOWN_DAY) for pair, row in stored.items()}
    _insert(connection, [*new, *changed], {pair: row.first_fetched_at for pair, row in stored.items()}, run_id)
    _remember_seen(connection, seen, stored)
    mark(connection, list(newest), days_before)
    count_drift(connection, _drift(connection, newest.values(), [*new, *changed]))
    if uncounted:
        new, changed, seen = ([rows for rows in each if rows.pair not in uncounted] for each in (new, changed, seen))
    return Loaded(len(new), len(changed), len(seen))


def rank(rows: ScanRows) -> tuple[bool, datetime]:
    """Of two answers about one scan the one of higher rank is kept."""
    return rows.final, rows.fetched_at


def _newest(batch: Sequence[ScanRows]) -> dict[Pair, ScanRows]:
    newest: dict[Pair, ScanRows] = {}
    for rows in batch:
        other = newest.get(rows.pair)
        if other is None or rank(rows) >= rank(other):
            newest[rows.pair] = rows
    return newest


_REMOVE = delete(scans)
_KNOWN = (
    scans.c.content_hash,
    scans.c.completed_at.is_not(None),
    scans.c.first_fetched_at,
    scans.c.fetched_at,
    scans.c.started_at,
    scans.c.started_day,
    scans.c.fetched_at > add_seconds(utc_now(), literal(AHEAD_SECONDS)),
)


def _stored(connection: Connection, pairs: list[Pair]) -> dict[Pair, _Stored]:
    """What there is of these scans, locked, for somebody may delete them."""
    found = locked(connection, scans, pairs, *_KNOWN)
    return {
        Pair(deployment_id, scan_id): _Stored(
            content_hash, bool(final), first, _UNKNOWN_AT if is_ahead else last, *start
        )
        for deployment_id, scan_id, content_hash, final, first, last, *start, is_ahead in found
    }


_KEY = Pair._fields
_BOOKKEEPING = ("content_hash", "first_fetched_at", "fetched_at", "changed_at", "run_id")
_TIMING = ("started_day", "duration_seconds")


def _columns(table: Table, *names: str) -> tuple[Column[Any], ...]:
    return tuple(table.c[name] for name in (*_KEY, *names))


_SCANS = _columns(scans, *SCAN.columns, "extra", *_BOOKKEEPING, *_TIMING)
_PRODUCTS = _columns(scan_products, "product")
_META = _columns(scan_meta, *META.columns, "extra")
_STATS = _columns(scan_stats, *STATS.columns, "extra")
_LANGUAGES = _columns(scan_languages, "language", *LANGUAGE.columns)
_ITEMS = _columns(scan_stat_items, *StatItem._fields)


def _insert(connection: Connection, batch: Sequence[ScanRows], first_seen: dict[Pair, datetime], run_id: str) -> None:
    """Insert the rows of scans that aren't there. Their values stand in the order of their lists of fields."""
    scan_rows: list[Row] = []
    for rows in batch:
        pair, at = rows.pair, rows.fetched_at
        first = min(first_seen.get(pair, at), at) if first_seen else at
        scan_rows.append((*pair, *rows.scan.values(), rows.content_hash, first, at, at, run_id, *_timing(rows, first)))
    insert_rows(connection, scans, _SCANS, scan_rows)
    insert_rows(
        connection, scan_products, _PRODUCTS, [(*rows.pair, product) for rows in batch for product in rows.products]
    )
    insert_rows(connection, scan_meta, _META, [(*rows.pair, *rows.meta.values()) for rows in batch])
    insert_rows(connection, scan_stats, _STATS, [(*rows.pair, *rows.stats.values()) for rows in batch])
    languages = [(*rows.pair, *language.values()) for rows in batch for language in rows.languages]
    insert_rows(connection, scan_languages, _LANGUAGES, languages)
    insert_rows(connection, scan_stat_items, _ITEMS, [rows.pair + item for rows in batch for item in rows.items])


def _timing(rows: ScanRows, first_fetched_at: datetime) -> tuple[date | None, float | None]:
    started_at, completed_at = rows.scan["started_at"], rows.scan["completed_at"]
    return started_day(started_at, first_fetched_at), duration_seconds(started_at, completed_at)


_SEEN = (
    update(scans)
    .where(scans.c.deployment_id == bindparam("deployment"), scans.c.scan_id == bindparam("scan"))
    .values(first_fetched_at=bindparam("first"), fetched_at=bindparam("last"), started_day=bindparam("day"))
)


def _remember_seen(connection: Connection, batch: Sequence[ScanRows], stored: dict[Pair, _Stored]) -> None:
    """Move the two instants of rows that stay: without it a late, older answer could win later."""
    changes = []
    for rows in batch:
        before, at = stored[rows.pair], rows.fetched_at
        first = min(before.first_fetched_at, at)
        is_same = rows.content_hash == before.content_hash or before.fetched_at == _UNKNOWN_AT
        last = max(before.fetched_at, at) if is_same else before.fetched_at
        if (first, last) != (before.first_fetched_at, before.fetched_at):
            deployment_id, scan_id = rows.pair
            day = started_day(before.started_at, first)
            changes.append({"deployment": deployment_id, "scan": scan_id, "first": first, "last": last, "day": day})
    if changes:
        connection.execute(_SEEN, changes)


def _drift(connection: Connection, batch: Collection[ScanRows], changed: Sequence[ScanRows]) -> list[DriftSeen]:
    """How answers differ from what is documented; where they are new, also from the listing of their scan."""
    met = [DriftSeen(drift, rows.pair, rows.fetched_at) for rows in batch for drift in rows.drift]
    listed = listings_of(connection, [rows.pair for rows in changed])
    for rows in changed:
        if (listing := listed.get(rows.pair)) is not None:
            found = differences(
                listing, Stored(**{name: rows.scan[name] for name in Stored._fields}), details_are_newer=True
            )
            met += [DriftSeen(drift, rows.pair, rows.fetched_at) for drift in found]
    return met
