"""A page of the search call: every form in which it may come, and what is no page."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings_of import PAIR, entry, listing

from etl.database.schema import scan_listings
from etl.errors import TransientError
from etl.model import Drift, Listing, Pair
from etl.transform.fields import STATUS_MAX_CHARACTERS
from etl.transform.search_page import finality, read_page

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_an_entry_is_read_in_full() -> None:
    """64-bit integers are texts, and the one field without a column stays in `extra`, where it isn't drift."""
    page = read_page(120, {"scans": [entry(1)], "cursor": "abc"})

    assert page.cursor == "abc"
    assert page.drift == ()
    assert page.listings == (
        Listing(
            PAIR,
            "SCAN_STATUS_COMPLETED",
            True,
            3,
            2,
            0,
            1,
            90.25,
            "main",
            "94c5be1",
            7,
            datetime(2026, 3, 1, 12, tzinfo=UTC),
            datetime(2026, 3, 1, 12, 1, 30, 250_000, UTC),
            0,
            {"enabled_products": ["sast"]},
        ),
    )


def test_numbers_may_be_numbers() -> None:
    """The ids and counts of other versions of the API mean the same."""
    plain = entry(1, id=1, deployment_id=120, repository_id=7, exit_code=0, total_time="90.25", is_full_scan="true")
    plain["findings_counts"] = {"total": 3, "code": 2, "supply_chain": 0, "secrets": 1.0}

    assert read_page(120, {"scans": [plain]}).listings == (listing(1),)


@pytest.mark.parametrize("cursor", [{}, {"cursor": None}, {"cursor": ""}])
def test_a_page_without_a_cursor_is_the_last(cursor: dict[str, Any]) -> None:
    """Absent, null and empty are the same end; a page without scans is a page."""
    assert read_page(120, {**cursor, "scans": []}) == read_page(120, cursor) == ((), "", ())


@pytest.mark.parametrize(
    "document",
    [None, [], "x", {"error": "no"}, {"scans": {}}, {"scans": [], "cursor": []}, {"message": "x", "cursor": ""}],
)
def test_what_is_no_page_is_tried_again(document: object) -> None:
    """An error that comes with status 200 is never taken for the end of the list."""
    with pytest.raises(TransientError, match="the search's answer"):
        read_page(120, document)


def test_what_a_page_has_instead_of_scans_is_told_briefly() -> None:
    """A server may send keys of any number and length."""
    with pytest.raises(TransientError) as caught:
        read_page(120, {f"{number}\n" + "x" * 100_000: None for number in range(100)})

    assert "'0\\nxxx" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "drift"),
    [
        ({"id": None}, Drift("listing.id", "odd_type")),
        ({"id": "0"}, Drift("listing.id", "out_of_range")),
        ({"deployment_id": "121"}, Drift("listing.deployment_id", "conflict")),
    ],
)
def test_an_entry_that_names_no_scan_is_counted_and_passed_over(changes: dict[str, Any], drift: Drift) -> None:
    """The rest of its page is read: one bad entry doesn't cost the others."""
    page = read_page(120, {"scans": [entry(1, **changes), "x", entry(2)]})

    assert [one.pair for one in page.listings] == [Pair(120, 2)]
    assert {found for found, _ in page.drift} == {drift, Drift("listing.scans", "odd_type")}


def test_odd_and_unknown_fields_are_kept_and_counted() -> None:
    """What doesn't fit its column, and what nobody has documented, is in `extra` under its own name."""
    page = read_page(
        120,
        {
            "scans": [
                entry(1, exit_code="later", status="S" * 65, branch="a\0b", novelty=1, started_at="2026-03-01T12:00:00")
                | {"findings_counts": {"total": "many", "new": 1}}
            ]
        },
    )

    (one,) = page.listings
    assert (one.exit_code, one.status, one.branch, one.findings_total) == (None, None, "a\ufffdb", None)
    assert one.started_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert one.extra == {
        "enabled_products": ["sast"],
        "exit_code": "later",
        "findings_counts": {"total": "many", "new": 1},
        "novelty": 1,
        "status": "S" * 65,
    }
    assert {found for found, pair in page.drift if pair == PAIR} == {
        Drift("listing.exit_code", "odd_type"),
        Drift("listing.status", "out_of_range"),
        Drift("listing.branch", "bad_text"),
        Drift("listing.novelty", "unknown_field"),
        Drift("listing.started_at", "naive_time"),
        Drift("listing.findings_counts.total", "odd_type"),
        Drift("listing.findings_counts.new", "unknown_field"),
    }


def test_an_instant_that_cannot_be_true_is_kept_and_counted() -> None:
    """The zero of some clock is no start, and the end of the calendar no end."""
    zero, last = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
    page = read_page(120, {"scans": [entry(1, started_at=zero, completed_at=last)]})

    (one,) = page.listings
    assert (one.started_at, one.completed_at) == (None, None)
    assert one.extra == {"enabled_products": ["sast"], "started_at": zero, "completed_at": last}
    assert {found for found, _ in page.drift} == {
        Drift("listing.started_at", "out_of_range"),
        Drift("listing.completed_at", "out_of_range"),
    }


def test_of_two_entries_about_one_scan_the_more_final_one_counts() -> None:
    """A page that shifts while it is written may hold a scan twice."""
    done, open_ = entry(1), entry(1, status="SCAN_STATUS_RUNNING", completed_at=None)

    assert read_page(120, {"scans": [done, open_]}).listings == read_page(120, {"scans": [open_, done]}).listings
    assert finality(read_page(120, {"scans": [done, open_]}).listings[0]) == 3


@given(
    entries=st.lists(
        ANYTHING
        | st.fixed_dictionaries(
            {"id": st.just("5")},
            optional={name: ANYTHING for name in (*entry(1), "other") if name not in ("id", "deployment_id")},
        ),
        max_size=3,
    )
)
def test_nothing_in_an_entry_breaks_its_page(entries: list[Any]) -> None:
    """Whatever comes, a page is read, and each of its scans has its key."""
    page = read_page(120, {"scans": entries})

    assert {one.pair for one in page.listings} <= {Pair(120, 5)}


def test_the_longest_status_fits_its_column() -> None:
    """Or PostgreSQL would refuse a page."""
    assert scan_listings.c.status.type.length == STATUS_MAX_CHARACTERS  # type: ignore[attr-defined]  # a String
