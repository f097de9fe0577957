"""Pages of repositories, and deployments, as the API may write them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from etl.errors import TransientError
from etl.model import Deployment, Drift, Pair, Repository
from etl.transform.privacy import Privacy
from etl.transform.repositories_page import RepositoryPage, read_deployments, read_repositories

ENTRY: dict[str, Any] = {
    "id": "1234567",
    "name": "returntocorp/semgrep",
    "url": "https://github.com/returntocorp/semgrep",
    "tags": ["tag"],
    "created_at": "2020-11-18 23:28:12.391807+00:00",
    "default_branch": "refs/heads/main",
    "primary_branch": "refs/heads/custom-main",
    "latest_scan_at": "2023-01-13 20:51:51.449081+00:00",
}


def read(*entries: object, privacy: Privacy | None = None) -> RepositoryPage:
    return read_repositories(120, {"projects": list(entries)}, *([privacy] if privacy else []))


def test_each_documented_field_has_a_column() -> None:
    """The vendor's own example."""
    page = read(ENTRY)

    assert page == RepositoryPage(
        (
            Repository(
                repository_id=1234567,
                name="returntocorp/semgrep",
                url="https://github.com/returntocorp/semgrep",
                tags=["tag"],
                default_branch="refs/heads/main",
                primary_branch="refs/heads/custom-main",
                created_at=datetime(2020, 11, 18, 23, 28, 12, 391807, UTC),
                latest_scan_at=datetime(2023, 1, 13, 20, 51, 51, 449081, UTC),
                extra=None,
            ),
        ),
        (),
    )


def test_what_is_not_known_is_kept_and_told() -> None:
    """A new field, one of another type, and a time that can't be true."""
    page = read(ENTRY | {"managed": True, "tags": "tag", "latest_scan_at": "0001-01-01T00:00:00Z"})

    (found,) = page.repositories
    assert (found.tags, found.latest_scan_at) == (None, None)
    assert found.extra == {"managed": True, "tags": "tag", "latest_scan_at": "0001-01-01T00:00:00Z"}
    assert {drift for drift, _ in page.drift} == {
        Drift("repository.managed", "unknown_field"),
        Drift("repository.tags", "odd_type"),
        Drift("repository.latest_scan_at", "out_of_range"),
    }
    assert {pair for _, pair in page.drift} == {Pair(120, 0)}


def test_an_entry_that_names_no_repository_costs_no_other() -> None:
    """It is told, and the rest is read; one that comes twice counts once."""
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    page = read(None, {}, {"id": 0}, {"id": "x"}, ENTRY | {"deep": deep}, {"id": 2}, {"id": 2, "name": "b"})

    assert [(one.repository_id, one.name) for one in page.repositories] == [(2, "b")]
    assert {drift for drift, _ in page.drift} == {
        Drift("repository", "odd_type"),
        Drift("repository", "out_of_range"),
        Drift("repository.id", "odd_type"),
        Drift("repository.id", "out_of_range"),
    }


def test_what_databases_refuse_is_replaced() -> None:
    """NUL in a name."""
    page = read(ENTRY | {"name": "a\0b"})

    assert page.repositories[0].name == "a\ufffdb"
    assert page.drift == ((Drift("repository.name", "bad_text"), Pair(120, 0)),)


def test_people_in_unknown_fields_are_hidden() -> None:
    """As those of scans are."""
    page = read(ENTRY | {"owner_email": "ann@example.com"}, privacy=Privacy("drop"))

    assert page.repositories[0].extra is None


@pytest.mark.parametrize("document", [None, [], {}, {"error": "no"}, {"projects": None}, {"projects": {}}])
def test_an_answer_that_is_no_page_is_no_end(document: object) -> None:
    """An error that comes with status 200 doesn't mark every repository as gone."""
    with pytest.raises(TransientError):
        read_repositories(120, document)


def test_deployments_are_read_as_tolerantly() -> None:
    """What has no id is left out."""
    document = {"deployments": [{"id": "120", "slug": "a", "name": "A", "tier": 1, "findings": {"url": "u"}}, {}, 7]}

    assert read_deployments(document) == (Deployment(120, "a", "A", {"tier": 1, "findings": {"url": "u"}}),)
    assert read_deployments({"deployments": None}) == read_deployments([]) == ()
