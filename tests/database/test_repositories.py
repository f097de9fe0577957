"""Repositories in the tables: never overwritten by something older, kept when they go; and the watermark of each."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from listings_of import listing
from postgres_databases import PostgresDatabases
from recorded_pages import DAY, LISTED_AT, put, queued, rows

from etl.database.connection import Database
from etl.database.migrate import upgrade
from etl.database.schema import deployments, repositories, repository_watermarks, scan_listings, schema_drift
from etl.model import Deployment, Drift, ListingPass, Pair, Repository, WalkedRepository
from etl.store import repositories as store
from etl.transform.repositories_page import RepositoryPage

HOUR = timedelta(hours=1)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as opened:
        yield opened


def repository(repository_id: int, name: str = "a/b", **changes: Any) -> Repository:
    facts: dict[str, Any] = dict.fromkeys(Repository._fields)
    facts |= {"repository_id": repository_id, "name": name, "tags": ["x"], "latest_scan_at": LISTED_AT - HOUR}
    return Repository(**facts | changes)


def save(database: Database, at: datetime, *found: Repository, drift: tuple[Any, ...] = ()) -> None:
    """A pass over all repositories that began then."""
    page = RepositoryPage(found, drift)
    database.run_here(partial(store.save_page, deployment_id=120, page=page, at=at))
    database.run_here(partial(store.finish_pass, deployment_id=120, at=at))


def known(database: Database, at: datetime) -> list[WalkedRepository]:
    return database.run_here(partial(store.walked, deployment_id=120, at=at, room=2))


def test_an_older_pass_changes_nothing_of_a_newer_one(database: Database) -> None:
    """Two syncs may overtake each other."""
    save(database, LISTED_AT + DAY, repository(1, "new", tags=["new"]))
    save(database, LISTED_AT, repository(1, "old", tags=["old"], extra={"x": 1}))

    (row,) = rows(database, repositories)
    assert (row["name"], row["tags"], row["extra"], row["seen_at"]) == ("new", ["new"], None, LISTED_AT + DAY)
    assert row["gone_at"] is None


def test_what_is_listed_no_more_is_kept_and_marked_until_it_comes_back(database: Database) -> None:
    """With what was last said of it, and when."""
    save(database, LISTED_AT, repository(1), repository(2, "gone"))
    save(database, LISTED_AT + DAY, repository(1, "renamed"))
    (first, gone) = rows(database, repositories)
    save(database, LISTED_AT + 2 * DAY, repository(1), repository(2, "back"))
    (_, back) = rows(database, repositories)

    assert (first["name"], first["first_seen_at"], first["seen_at"]) == ("renamed", LISTED_AT, LISTED_AT + DAY)
    assert (gone["name"], gone["seen_at"], gone["gone_at"]) == ("gone", LISTED_AT, LISTED_AT + DAY)
    assert (back["name"], back["first_seen_at"], back["gone_at"]) == ("back", LISTED_AT, None)


def test_drift_of_repositories_is_counted(database: Database) -> None:
    """Beside that of scans, with the deployment as its sample."""
    save(database, LISTED_AT, drift=((Drift("repository.managed", "unknown_field"), Pair(120, 0)),))

    assert [(row["path"], row["sample_deployment_id"]) for row in rows(database, schema_drift)] == [
        ("repository.managed", 120)
    ]


def test_a_deployment_keeps_its_first_sight_and_gets_its_new_name(database: Database) -> None:
    """And the slug is known by then."""
    for slug, days in (("old", 0), ("new", 1)):
        found = [Deployment(120, slug, slug.upper(), None)]
        database.run_here(partial(store.save_deployments, found=found, at=LISTED_AT + days * DAY))

    (row,) = rows(database, deployments)
    assert (row["slug"], row["name"]) == ("new", "NEW")
    assert (row["first_seen_at"], row["seen_at"], row["repositories_at"]) == (LISTED_AT, LISTED_AT + DAY, None)
    assert database.run_here(partial(store.slug_of, deployment_id=120)) == "new"
    assert database.run_here(partial(store.slug_of, deployment_id=121)) is None


def finish(database: Database, at: datetime, *, since: datetime | None = None, partial_: bool = False) -> None:
    """A complete walk of repository 1."""
    (one,) = known(database, at)
    replaces = one.walked_at is not None and one.walked_at > at + DAY
    listing_pass = ListingPass(120, since, at, at, at - HOUR, partial_, (), replaces, one)
    database.run_here(partial(store.finish_walk, listing_pass=listing_pass, repository=one))


def walked_at(database: Database) -> list[datetime]:
    return [row["walked_at"] for row in rows(database, repository_watermarks)]


def test_the_watermark_of_a_repository_moves_forwards_only(database: Database) -> None:
    """It knows what the repository showed then; one from a clock that was ahead is replaced."""
    save(database, LISTED_AT, repository(1))
    finish(database, LISTED_AT + DAY)
    finish(database, LISTED_AT)
    forwards = walked_at(database)
    (one,) = known(database, LISTED_AT + DAY)
    finish(database, LISTED_AT - 3 * DAY)

    assert forwards == [LISTED_AT + DAY]
    assert (one.walked_latest_scan_at, one.newest_started_at) == (LISTED_AT - HOUR, LISTED_AT + DAY - HOUR)
    assert walked_at(database) == [LISTED_AT - 3 * DAY]


def test_a_walk_that_leaves_something_out_moves_no_watermark(database: Database) -> None:
    """As that of a deployment."""
    save(database, LISTED_AT, repository(1))
    finish(database, LISTED_AT, since=LISTED_AT - DAY, partial_=True)
    nothing = walked_at(database)
    finish(database, LISTED_AT)
    finish(database, LISTED_AT + DAY, since=LISTED_AT + HOUR, partial_=True)
    hole = walked_at(database)
    finish(database, LISTED_AT + DAY, since=LISTED_AT - HOUR, partial_=True)

    assert (nothing, hole, walked_at(database)) == ([], [LISTED_AT], [LISTED_AT + DAY])


def test_what_is_long_gone_is_not_walked(database: Database) -> None:
    """The API would list nothing of it."""
    save(database, LISTED_AT, repository(1), repository(2))
    save(database, LISTED_AT + DAY, repository(1))

    assert [one.repository_id for one in known(database, LISTED_AT + 30 * DAY)] == [1, 2]
    assert [one.repository_id for one in known(database, LISTED_AT + 32 * DAY)] == [1]


def test_the_room_of_each_repository_is_its_own(database: Database) -> None:
    """The start of the scan at that place, among its own scans."""
    save(database, LISTED_AT, repository(7), repository(8))
    began = {1: (7, 3), 2: (7, 2), 3: (7, 1), 4: (8, 1)}
    put(
        database,
        *(
            listing(number, repository_id=str(of), started_at=(LISTED_AT - days * DAY).isoformat())
            for number, (of, days) in began.items()
        ),
    )

    assert {one.repository_id: one.room_at for one in known(database, LISTED_AT)} == {7: LISTED_AT - 2 * DAY, 8: None}


@pytest.fixture
def latin1(postgres_databases: PostgresDatabases) -> Iterator[Database]:
    """A database that lacks most characters."""
    with postgres_databases.database(encoding="LATIN1") as url:
        upgrade(url)
        with closing(Database(url)) as opened:
            yield opened


def test_a_name_that_the_database_lacks_characters_for_is_escaped(latin1: Database) -> None:
    """It costs neither the others of its page nor the walk of the scans; what can be stored is what it was."""
    found = [Deployment(120, "läden", "Läden 📦", None)]
    latin1.run_here(partial(store.save_deployments, found=found, at=LISTED_AT))
    save(latin1, LISTED_AT, repository(1, "größe"), repository(2, "a/📦", tags=["📦", "ä"], extra={"é🐙": ["🐙"]}))

    assert [row["name"] for row in rows(latin1, deployments)] == [r"L\xe4den \U0001f4e6"]
    assert [(row["name"], row["tags"], row["extra"]) for row in rows(latin1, repositories)] == [
        ("größe", ["x"], None),
        (r"a/\U0001f4e6", [r"\U0001f4e6", "ä"], {r"\xe9\U0001f419": [r"\U0001f419"]}),
    ]


def test_a_branch_that_the_database_lacks_characters_for_is_escaped(latin1: Database) -> None:
    """However many scans have one: all are listed and queued."""
    put(latin1, *(listing(number, branch="feat/📦") for number in range(1, 31)))

    assert [row["branch"] for row in rows(latin1, scan_listings)] == [r"feat/\U0001f4e6"] * 30
    assert len(queued(latin1)) == 30
