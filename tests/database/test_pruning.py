"""What is old goes, to the microsecond, and what is still needed stays, on each dialect."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest
from counted_days import count_all, counted, counted_anew
from leased_queue import fill, lease, pairs
from queue_filling import enqueue
from rows_read import counting_reads
from scan_rows import SCAN_TABLES, scan_rows
from sqlalchemy import Connection, Table, insert, select, text

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, metadata, runs, scan_listings, scans, workers
from etl.database.types import add_seconds, utc_now
from etl.model import Pair
from etl.store import pruning
from etl.store.pruning import Choice, Piece
from etl.store.scans import load_scans
from etl.transform.timing import started_day

BEFORE = datetime(2026, 3, 1, 12, tzinfo=UTC)
INSTANT, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)
FETCHED_AFTER = 60 * 24 * 3
"""Minutes after `BEFORE` at which most scans are fetched."""


def totals(pieces: Iterator[Piece]) -> tuple[dict[str, int], dict[str, int]]:
    """What was removed and what was kept, by table, without what is nothing."""
    removed, kept = Counter[str](), Counter[str]()
    for piece in pieces:
        removed.update(piece.removed)
        kept.update(piece.kept)
    return dict(+removed), dict(+kept)


def scan(scan_id: int, started_at: datetime | None, *, minutes: int = FETCHED_AFTER, **changes: Any) -> Any:
    return scan_rows(scan_id, minutes=minutes, started_at=started_at and str(started_at), **changes)


def load(database: Database, *rows: Any) -> None:
    database.run_here(partial(load_scans, batch=rows, run_id="run"))


def put(database: Database, table: Table, *rows: dict[str, Any]) -> None:
    """Rows of one scan each, of deployment 120 unless they say otherwise; or of whatever else the table is of."""
    base = {"deployment_id": 120} if "deployment_id" in table.c else {}

    def work(connection: Connection) -> None:
        for row in rows:
            connection.execute(insert(table).values(base | row))

    database.run_here(work)


def listed(scan_id: int, started_at: datetime | None, **more: Any) -> dict[str, Any]:
    row = {"scan_id": scan_id, "started_at": started_at, "listed_at": BEFORE + DAY, **more}
    return row | {"started_day": started_day(started_at, row["listed_at"])}


def left(database: Database, table: Table) -> set[int]:
    return database.run_here(lambda connection: set(connection.execute(select(table.c.scan_id)).scalars()))


def test_scans_go_at_their_age(database: Database) -> None:
    """By their start, or where nobody knows or believes it by when they were fetched first; with all that hangs on
    them. Of a day that the border cuts, its later half stays."""
    load(
        database,
        scan(1, BEFORE - 400 * DAY),
        scan(2, BEFORE - INSTANT),
        scan(3, BEFORE),
        scan(4, BEFORE + HOUR),
        scan(5, None, minutes=-1),
        scan(6, None, minutes=0),
        scan(7, datetime(1999, 12, 31, tzinfo=UTC)),
        scan(8, datetime(1999, 12, 31, tzinfo=UTC), minutes=-1),
        scan(9, BEFORE - DAY, deployment_id=121),
    )

    assert totals(pruning.prune_scans(database, Choice(BEFORE, 120))) == ({"scans": 4}, {})
    assert [left(database, table) for table in SCAN_TABLES] == [{3, 4, 6, 7, 9}] * len(SCAN_TABLES)
    assert totals(pruning.prune_scans(database, Choice(BEFORE))) == ({"scans": 1}, {})


def test_listings_go_with_their_scans_and_by_themselves(database: Database) -> None:
    """The listing of a stored scan is as old as that; one without details as old as its own start, or else as the walk
    that listed it last. So no old day is left of which nothing but what was lost is known."""
    load(database, scan(1, BEFORE - DAY), scan(2, BEFORE + DAY))
    put(
        database,
        scan_listings,
        listed(1, BEFORE + DAY),
        listed(2, BEFORE - DAY),
        listed(3, BEFORE - INSTANT, details_gone_at=BEFORE),
        listed(4, BEFORE),
        listed(5, None),
        listed(6, None, listed_at=BEFORE - INSTANT),
    )

    assert totals(pruning.prune_scans(database, Choice(BEFORE))) == ({"scans": 1, "scan_listings": 3}, {})
    assert (left(database, scans), left(database, scan_listings)) == ({2}, {2, 4, 5})


def test_what_is_queued_or_comes_back_stays(database: Database) -> None:
    """In a worker's hands, waiting in line, or a dead letter that is tried again: it may be stored once more. A letter
    that has expired, or isn't tried again, holds nothing."""
    load(database, *(scan(number, BEFORE - DAY) for number in range(1, 7)))
    put(database, scan_listings, *(listed(number, BEFORE - DAY) for number in range(1, 8)))
    fill(database, *pairs(1, 7), refresh=True)
    assert lease(database, "w", limit=1)
    later = datetime.now(UTC) + DAY
    put(
        database,
        dead_letters,
        {"scan_id": 2, "died_at": later, "retry_at": later, "expires_at": later},
        {"scan_id": 3, "died_at": later, "retry_at": later, "expires_at": BEFORE},
        {"scan_id": 4, "died_at": later, "expires_at": later},
    )

    removed, kept = totals(pruning.prune_scans(database, Choice(BEFORE)))

    assert removed == {"scans": 4, "scan_listings": 4}
    assert kept == {"scans": 2, "scan_listings": 3}
    assert (left(database, scans), left(database, scan_listings)) == ({1, 2}, {1, 2, 7})
    assert left(database, fetch_queue) == {1, 7}


def test_dead_letters_go_at_their_age(database: Database) -> None:
    """By their death. What is to be tried again by itself stays until it expires; a listed scan counts as dropped then,
    not as missing, which the next walk would queue."""
    later = datetime.now(UTC) + DAY
    put(
        database,
        dead_letters,
        {"scan_id": 1, "died_at": BEFORE - INSTANT, "expires_at": later},
        {"scan_id": 2, "died_at": BEFORE},
        {"scan_id": 3, "died_at": BEFORE - DAY, "retry_at": later, "expires_at": later},
        {"scan_id": 4, "died_at": BEFORE - DAY, "retry_at": later, "expires_at": BEFORE},
        {"scan_id": 5, "died_at": BEFORE - DAY, "deployment_id": 121},
    )
    put(database, scan_listings, *(listed(number, BEFORE) for number in (1, 2, 3)))

    assert totals(pruning.prune_dead_letters(database, Choice(BEFORE, 120))) == (
        {"dead_letters": 2},
        {"dead_letters": 1},
    )
    assert left(database, dead_letters) == {2, 3, 5}
    database.run_here(count_all)
    asked = text("SELECT SUM(listed), SUM(dead), SUM(dropped), SUM(missing) FROM bi_coverage")
    assert tuple(map(int, database.run_here(lambda connection: connection.execute(asked).one()))) == (3, 2, 1, 0)


def test_runs_go_at_their_age(database: Database) -> None:
    """By their end, or their beginning where they were killed. One that is at work stays, however old, and so does the
    last of each command that says how it ended, when all was well, and what somebody was told."""
    ended = {"version": "0", "state": "ended", "exit_code": 4}
    old: dict[str, Any] = {"started_at": BEFORE - DAY, "finished_at": BEFORE - HOUR}
    rows = [
        {"run_id": "ended before", **old, **ended},
        {"run_id": "ended then", **old, **ended, "finished_at": BEFORE},
        {"run_id": "killed", "started_at": BEFORE - INSTANT, "version": "0"},
        {"run_id": "at work", "started_at": BEFORE - INSTANT, "version": "0"},
        {"run_id": "skipped", **old, "version": "0", "state": "skipped", "exit_code": 0},
        {"run_id": "all done once", **old, **ended, "exit_code": 0, "finished_at": BEFORE - 5 * HOUR},
        {"run_id": "all done", **old, **ended, "exit_code": 0, "finished_at": BEFORE - 4 * HOUR},
        {"run_id": "with dead letters", **old, **ended, "exit_code": 1, "finished_at": BEFORE - 3 * HOUR},
        {"run_id": "told", **old, **ended, "notified": {"gaps": 1}, "finished_at": BEFORE - 2 * HOUR},
        {"run_id": "the only run", **old, **ended, "command": "run"},
    ]
    put(database, runs, *({"command": "sync", **row} for row in rows))
    seen = {"run_id": "at work", "version": "0", "started_at": utc_now(), "seen_at": utc_now()}
    put(database, workers, {"token": "w", **seen})

    assert totals(pruning.prune_runs(database, Choice(BEFORE))) == ({"runs": 4}, {"runs": 5})
    names = database.run_here(lambda connection: set(connection.execute(select(runs.c.run_id)).scalars()))
    assert {row["run_id"] for row in rows} - names == {"ended before", "killed", "skipped", "all done once"}


def test_a_run_of_this_minute_is_at_work(database: Database) -> None:
    """It has no sign of life yet."""
    started_at = add_seconds(utc_now(), -5.0)
    put(database, runs, {"run_id": "new", "command": "sync", "version": "0", "started_at": started_at})

    assert totals(pruning.prune_runs(database, Choice(datetime.now(UTC) - timedelta(seconds=1)))) == ({}, {"runs": 1})


def big(database: Database, count: int) -> None:
    """So many old scans of two deployments and twenty days, each with its listing and a dead letter, and as many runs;
    every third is new."""

    def work(connection: Connection) -> None:
        at = [BEFORE + (DAY if number % 3 else -DAY) * (number % 20 + 1) for number in range(1, count + 1)]
        pairs = [{"deployment_id": 120 + number % 2, "scan_id": number} for number in range(1, count + 1)]
        keys = [{**key, "started_at": one, "started_day": one.date()} for key, one in zip(pairs, at, strict=True)]
        fetched = dict.fromkeys(("first_fetched_at", "fetched_at", "changed_at"), BEFORE + 60 * DAY)
        rows: dict[Table, list[dict[str, Any]]] = {
            scans: [
                {**key, "started_at": one, "content_hash": "", **fetched} for key, one in zip(keys, at, strict=True)
            ],
            scan_listings: [
                {**key, "started_at": one, "listed_at": BEFORE + 60 * DAY} for key, one in zip(keys, at, strict=True)
            ],
            dead_letters: [{**key, "died_at": one} for key, one in zip(pairs, at, strict=True)],
            runs: [
                {"run_id": f"{number:032}", "command": "sync", "version": "0", "started_at": one, "finished_at": one}
                for number, one in enumerate(at)
            ],
        }
        for table, each in rows.items():
            connection.execute(insert(table).values({"state": "ended"} if table is runs else {}), each)

    database.run_here(work)


def everything(database: Database, choice: Choice) -> Iterator[Piece]:
    yield from pruning.prune_dead_letters(database, choice)
    yield from pruning.prune_scans(database, choice)
    yield from pruning.prune_runs(database, choice)


def test_a_dry_run_says_what_then_goes(database: Database) -> None:
    """Over the bounds of pieces, days and deployments, without a change; and after it all counts are those of what is
    left."""
    count = 3 * pruning.PIECE + 5
    big(database, count)
    gone = count // 3
    fill(database, Pair(121, 3), refresh=True)

    trial = totals(everything(database, Choice(BEFORE, dry_run=True)))
    assert len(left(database, scans)) == len(left(database, dead_letters)) == count

    done = totals(everything(database, Choice(BEFORE)))
    assert done == trial
    assert done[0] == {"dead_letters": gone, "scans": gone - 1, "scan_listings": gone - 1, "runs": gone}
    assert done[1] == {"scans": 1, "scan_listings": 1}
    assert left(database, scans) == {number for number in range(1, count + 1) if number % 3 or number == 3}
    assert totals(everything(database, Choice(BEFORE)))[0] == {}
    database.run_here(count_all)
    assert database.run_here(counted) == database.run_here(counted_anew)


def test_a_piece_is_small_and_whole(database: Database) -> None:
    """Whoever stops after a piece has removed so many scans at most, each with its listing, and the same again goes on
    from there."""
    big(database, 6 * pruning.PIECE)
    first = next(pruning.prune_scans(database, Choice(BEFORE)))

    assert first.removed == {"scans": pruning.PIECE, "scan_listings": pruning.PIECE}
    assert left(database, scans) == left(database, scan_listings)
    assert totals(pruning.prune_scans(database, Choice(BEFORE)))[0]["scans"] == pruning.PIECE


class OneTransaction:
    """A database all of whose work is done in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run_here(self, work: Callable[[Connection], Any]) -> Any:
        return work(self.connection)


@pytest.mark.parametrize("is_counted", [False, True])
def test_what_stays_is_not_read(database: Database, is_counted: bool) -> None:
    """Two days of scans are found among 500 by the index of days, and removed by their keys, whatever the server has
    counted."""
    count, of_a_day = 20_000, 40
    fetched = dict.fromkeys(("first_fetched_at", "fetched_at", "changed_at"), BEFORE + 600 * DAY)

    def work(connection: Connection) -> tuple[Any, int]:
        starts = [BEFORE + (number // of_a_day) * DAY for number in range(count)]
        rows = [
            {"deployment_id": 120, "scan_id": number, "started_at": at, "started_day": at.date()}
            for number, at in enumerate(starts, 1)
        ]
        connection.execute(insert(scans).values(content_hash="", **fetched), rows)
        connection.execute(insert(scan_listings).values(listed_at=BEFORE), rows)
        if is_counted:
            for table in ("scans", "scan_listings"):
                sql = {"postgresql": f"ANALYZE {table}", "sqlite": "ANALYZE", "mysql": f"ANALYZE TABLE {table}"}
                connection.execute(text(sql[connection.dialect.name])).close()
        with counting_reads(connection, *metadata.tables) as reads:
            before = reads()
            found = totals(pruning.prune_scans(cast(Database, OneTransaction(connection)), Choice(BEFORE + 2 * DAY)))
            return found, reads() - before

    found, read = database.run_here(work)

    assert found == ({"scans": 2 * of_a_day, "scan_listings": 2 * of_a_day}, {})
    assert read < count


def test_what_is_asked_for_anew_is_stored_anew(database: Database) -> None:
    """Nothing remembers that a scan is gone: a pair that somebody queues after that is fetched, and counted."""
    load(database, scan(1, BEFORE - DAY))
    totals(pruning.prune_scans(database, Choice(BEFORE)))

    assert enqueue(database, pairs(1)).queued == 1
    load(database, scan(1, BEFORE - DAY))
    assert left(database, scans) == {1}
    database.run_here(count_all)
    assert database.run_here(counted) == database.run_here(counted_anew)
