"""Removing what is old, piece by piece: runs, dead letters, and scans with their listings.

A piece is one transaction, in the order of its keys, and nothing is remembered between two of them: whoever is
interrupted calls it again, and workers go on. What is old and still needed is kept, and counted.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    func,
    select,
    true,
)

from etl.database.connection import Database
from etl.database.dialects import distinct, locked, on_pairs, opaque_to_planner, plan_by_index
from etl.database.schema import dead_letters, fetch_queue, runs, scan_listings, scans
from etl.database.types import UtcDateTime, utc_now
from etl.model import INT64_MAX, Pair
from etl.store.listings import mark_dropped
from etl.store.marks import mark
from etl.store.runs import RUNNING, SKIPPED, is_lost, is_success

PIECE = 1_000
_BEFORE = bindparam("before", type_=UtcDateTime)


class Choice(NamedTuple):
    """What is old: all from `before` an instant, of one deployment or of all. A `dry_run` removes nothing."""

    before: datetime
    deployment_id: int | None = None
    dry_run: bool = False


class Piece(NamedTuple):
    """How many old rows are gone, or would be, and how many were kept, by table."""

    removed: dict[str, int]
    kept: dict[str, int]


def _read(
    connection: Connection, choice: Choice, table: Table, pairs: Sequence[Pair], *columns: ColumnElement[Any]
) -> Sequence[Row[Any]]:
    """The rows with these keys: locked, if some of them are to go. What comes between isn't known, and so it stays."""
    if not choice.dry_run:
        return locked(connection, table, pairs, *columns, before=choice.before)
    return on_pairs(connection, _reading(table, *columns), table, pairs, before=choice.before).all()


@lru_cache
def _reading(table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
    return select(*table.primary_key, *columns)


def _pair_of(row: Any) -> Pair:
    return Pair(row.deployment_id, row.scan_id)


# Runs


_run = runs.c
_ended_at = func.coalesce(_run.finished_at, _run.started_at)
_LASTING: tuple[ColumnElement[bool], ...] = (
    _run.state != SKIPPED,
    is_success(),
    and_(is_success(), _run.exit_code == 0),
    _run.notified.is_not(None),
)
"""The last one of each of these, of each command, is asked for: how it ended, when all was well, what was told."""


def prune_runs(database: Database, choice: Choice) -> Iterator[Piece]:
    """Remove runs that ended before, and those that began before and were killed. Scans and dead letters keep the id
    of the run that brought them."""
    work = partial(_prune_runs, choice=choice, needed=database.run_here(_lasting))
    last: str | None = ""
    while last is not None:
        last, piece = database.run_here(partial(work, after=last))
        yield piece


def _prune_runs(
    connection: Connection, choice: Choice, needed: Collection[str], after: str
) -> tuple[str | None, Piece]:
    is_at_work = and_(_run.state == RUNNING, ~is_lost())
    found = select(_run.run_id, is_at_work.label("is_at_work")).where(_ended_at < choice.before, _run.run_id > after)
    rows = connection.execute(found.order_by(_run.run_id).limit(PIECE)).all()
    going = [run_id for run_id, is_at_work in rows if not is_at_work and run_id not in needed]
    if going and not choice.dry_run:
        connection.execute(delete(runs).where(_run.run_id.in_(going)))
    piece = Piece({"runs": len(going)}, {"runs": len(rows) - len(going)})
    return (rows[-1][0] if len(rows) == PIECE else None), piece


def _lasting(connection: Connection) -> set[str]:
    """The runs that are needed however old they are."""
    found: set[str] = set()
    for command in connection.execute(select(_run.command).distinct()).scalars().all():
        newest = select(_run.run_id).where(_run.command == command).order_by(_ended_at.desc(), _run.run_id).limit(1)
        for which in _LASTING:
            found.update(connection.execute(newest.where(which)).scalars())
    return found


# Dead letters


_dead = dead_letters.c
_COMES_BACK = and_(_dead.retry_at.is_not(None), _dead.expires_at > utc_now())
_OLD_LETTERS = select(_dead.scan_id).where(_dead.deployment_id == bindparam("of_deployment"), _dead.died_at < _BEFORE)
_IS_OLD_LETTER, _STILL_COMES_BACK = (_dead.died_at < _BEFORE).label("is_old"), _COMES_BACK.label("comes_back")
_DELETE_LETTERS = delete(dead_letters)


def prune_dead_letters(database: Database, choice: Choice) -> Iterator[Piece]:
    """Remove dead letters from before, but for those that are still to be tried again by themselves. Where their scans
    are listed they count as dropped, or the next walk would find that nothing holds them."""
    every = partial(distinct, columns=(_dead.deployment_id, _dead.scan_id))
    for deployment_id in [choice.deployment_id] if choice.deployment_id else database.run_here(every):
        last, scan_ids = -INT64_MAX, [0]
        while scan_ids:
            scan_ids = database.run_here(partial(_old_letters, choice=choice, after=Pair(deployment_id, last)))
            if scan_ids:
                pairs = [Pair(deployment_id, scan_id) for scan_id in scan_ids]
                yield database.run_here(partial(_prune_letters, choice=choice, pairs=pairs))
                last = scan_ids[-1]


def _old_letters(connection: Connection, choice: Choice, after: Pair) -> list[int]:
    plan_by_index(connection)
    found = _OLD_LETTERS.where(_dead.scan_id > after.scan_id).order_by(_dead.scan_id).limit(PIECE)
    given = {"of_deployment": after.deployment_id, "before": choice.before}
    return list(connection.execute(found, given).scalars())


def _prune_letters(connection: Connection, choice: Choice, pairs: Sequence[Pair]) -> Piece:
    rows = _read(connection, choice, dead_letters, pairs, _IS_OLD_LETTER, _STILL_COMES_BACK)
    going = [_pair_of(row) for row in rows if row.is_old and not row.comes_back]
    if going and not choice.dry_run:
        on_pairs(connection, _DELETE_LETTERS, dead_letters, going)
        mark_dropped(connection, going)
    kept = sum(1 for row in rows if row.is_old and row.comes_back)
    return Piece({"dead_letters": len(going)}, {"dead_letters": kept})


# Scans and their listings


_KNOWN_AT = {scans: scans.c.first_fetched_at, scan_listings: scan_listings.c.listed_at}
"""How old a scan is at least whose start nobody knows or believes."""


def _is_old(table: Table) -> ColumnElement[bool]:
    began_at = case((table.c.started_day.is_not(None), table.c.started_at), else_=_KNOWN_AT[table])
    return began_at < _BEFORE


_IS_OLD = {table: _is_old(table).label("is_old") for table in (scan_listings, scans)}
_QUEUED = select(fetch_queue.c.deployment_id, fetch_queue.c.scan_id)
_COMING_BACK = select(_dead.deployment_id, _dead.scan_id).where(opaque_to_planner(_COMES_BACK))
_DELETE = {table: delete(table) for table in (scan_listings, scans)}


def prune_scans(database: Database, choice: Choice) -> Iterator[Piece]:
    """Remove scans that began before, with all that hangs on them and their listings; and listings from before of
    which no details are stored, or the coverage of an old day would be theirs alone. What is queued, or comes back by
    itself, is kept."""
    for pairs in _in_pieces(_candidates(database, choice)):
        yield database.run_here(partial(_prune_pairs, choice=choice, pairs=pairs))


def _in_pieces(pairs: Iterable[Pair]) -> Iterator[Sequence[Pair]]:
    piece: list[Pair] = []
    for pair in pairs:
        piece.append(pair)
        if len(piece) == PIECE:
            yield sorted(piece)
            piece = []
    if piece:
        yield sorted(piece)


def _candidates(database: Database, choice: Choice) -> Iterator[Pair]:
    """Each pair that may be old, once: day by day, by an index, whatever else there is."""
    for table in (scans, scan_listings):
        day: date | None = None
        while True:
            yield from database.run_here(partial(_old_of_day, table=table, day=day, choice=choice))
            if (day := database.run_here(partial(_next_day, table=table, after=day, choice=choice))) is None:
                break


def _next_day(connection: Connection, table: Table, after: date | None, choice: Choice) -> date | None:
    """The first day of a table after another one, or after none, that isn't too new."""
    plan_by_index(connection)
    day: Column[Any] = table.c.started_day
    is_next = and_(day > after if after else true(), day <= choice.before.date())
    # Both columns, for only one index has this order.
    return connection.execute(select(day).where(is_next).order_by(day, table.c.deployment_id).limit(1)).scalar()


_HAS_DETAILS = (
    select(scans.c.scan_id)
    .where(scans.c.deployment_id == scan_listings.c.deployment_id, scans.c.scan_id == scan_listings.c.scan_id)
    .correlate(scan_listings)
    .limit(1)
    .scalar_subquery()
    .is_not(None)
)


def _old_of_day(connection: Connection, table: Table, day: date | None, choice: Choice) -> Sequence[Pair]:
    """The old scans of a day, or of none that is believed; or the listings without details."""
    plan_by_index(connection)
    is_of_day = table.c.started_day == day if day else table.c.started_day.is_(None)
    found = select(table.c.deployment_id, table.c.scan_id).where(is_of_day, opaque_to_planner(_is_old(table)))
    if choice.deployment_id is not None:
        found = found.where(table.c.deployment_id == choice.deployment_id)
    if table is scan_listings:
        found = found.where(~_HAS_DETAILS)
    return [_pair_of(row) for row in connection.execute(found, {"before": choice.before})]


def _prune_pairs(connection: Connection, choice: Choice, pairs: Sequence[Pair]) -> Piece:
    """Look once more, now that the rows are locked. Where details are stored, they say how old a scan is."""
    is_old: dict[Table, dict[Pair, bool]] = {}
    for table, column in _IS_OLD.items():
        rows = _read(connection, choice, table, pairs, column)
        is_old[table] = {_pair_of(row): bool(row.is_old) for row in rows}
    old = {pair for pair, found in (is_old[scan_listings] | is_old[scans]).items() if found}
    held = _held(connection, sorted(old))
    going = {table: sorted(is_old[table].keys() & old - held) for table in _DELETE}
    if not choice.dry_run:
        mark(connection, sorted(old - held))
        for table, statement in _DELETE.items():
            on_pairs(connection, statement, table, going[table])
    return Piece(
        {table.name: len(going[table]) for table in (scans, scan_listings)},
        {table.name: len(is_old[table].keys() & held) for table in (scans, scan_listings)},
    )


def _held(connection: Connection, pairs: Sequence[Pair]) -> set[Pair]:
    """Those of these pairs that are still to be fetched, now or later."""
    found: set[Pair] = set()
    for table, statement in ((fetch_queue, _QUEUED), (dead_letters, _COMING_BACK)):
        if pairs:
            found.update(map(_pair_of, on_pairs(connection, statement, table, pairs)))
    return found
