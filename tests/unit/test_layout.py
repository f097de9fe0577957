"""Tables and texts on terminals of any width: nothing is cut, and no line is longer than it must be."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.telemetry import layout

AT = datetime(2026, 3, 1, 2, 17, 5, tzinfo=UTC)
REASON = "HTTP 500 from /api/v1/deployments/120/scan/16300000001: the upstream connection was closed; try again"
LETTER: dict[str, Any] = {
    "deployment_id": 120,
    "scan_id": 16300000001,
    "attempts": 1234,
    "died_at": AT,
    "error": REASON,
}

words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=30)
texts = st.lists(words, min_size=1, max_size=12).map(" ".join)
values = st.one_of(texts, st.integers(0, 10**12), st.just(AT), st.none(), st.floats(0, 10**9))
names = st.lists(st.sampled_from("deployment_id scan_id attempts died_at error kind".split()), min_size=1, unique=True)
tables = names.flatmap(
    lambda each: st.lists(st.fixed_dictionaries(dict.fromkeys(each, values)), min_size=1, max_size=4)
)


@given(tables, st.integers(20, 130))
def test_nothing_is_cut(rows: list[dict[str, Any]], width: int) -> None:
    """Each word of each value is there whole, whatever the width."""
    found = "\n".join(layout.table("Title", rows, width))

    said = [word for row in rows for name, value in row.items() for word in layout.shown(name, value).split()]
    assert [word for word in said if word not in found] == []


@given(tables, st.integers(20, 130))
def test_a_line_is_no_longer_than_the_terminal(rows: list[dict[str, Any]], width: int) -> None:
    """Unless a word, or a name with its value, is longer than that by itself."""
    cells = [layout.shown(name, value) for row in rows for name, value in row.items()]
    longest = max(layout.places(word) for cell in cells for word in cell.split() or [""])

    for line in layout.table("Title", rows, width):
        assert layout.places(line) <= max(width, longest + len("    ,")) or not line.isascii()


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            None,
            [
                "deployment id      scan id  attempts  died at              error",
                f"          120  16300000001     1,234  2026-03-01 02:17:05  {REASON}",
            ],
        ),
        (
            120,
            [
                "deployment      scan id  attempts  died at              error",
                "        id",
                f"       120  16300000001     1,234  2026-03-01 02:17:05  {REASON.partition(' upstream')[0]}",
                f"{56 * ' '}upstream connection was closed; try again",
            ],
        ),
        (
            60,
            [
                "deployment id 120, scan id 16300000001, attempts 1,234,",
                "  died at 2026-03-01 02:17:05,",
                "  error HTTP 500 from",
                "    /api/v1/deployments/120/scan/16300000001: the upstream",
                "    connection was closed; try again",
            ],
        ),
    ],
)
def test_what_is_too_wide_becomes_narrower(width: int | None, lines: list[str]) -> None:
    """A file has the whole table, a terminal long texts on several lines, a narrow one records."""
    assert layout.table("Dead letters", [LETTER], width) == ["Dead letters", *lines]


def test_what_is_empty_takes_no_place_on_a_narrow_terminal() -> None:
    """A file keeps its columns."""
    rows = [{"worker": "w" * 30, "slow_pace": None, "seen_at": AT}]

    assert "slow pace" in layout.table("Workers", rows, None)[1]
    assert layout.table("Workers", rows, 60) == [
        "Workers",
        "worker                          seen at",
        f"{'w' * 30}  2026-03-01 02:17:05",
    ]


def test_a_table_without_rows_says_so() -> None:
    """In a line, however long the title."""
    assert layout.table("Dead letters", [], 60) == ["Dead letters: none"]
    assert layout.table("Scans " * 12 + "lost", [], 60)[1].startswith("  Scans")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("scan_id", 16300000001, "16300000001"),
        ("count", 16300000001, "16,300,000,001"),
        ("per_second", 0.04, "0.0"),
        ("error", "a\nb\x1b[31mc", "a b [31mc"),
        (
            "settings",
            {"api.rate": 20.0, "notify.url": "", "database.batch_size": 1000},
            "api.rate 20.0, database.batch_size 1000",
        ),
        ("inputs", ["a.csv", "-"], "a.csv, -"),
        ("finished_at", None, ""),
    ],
)
def test_a_value_is_as_people_read_it(name: str, value: object, text: str) -> None:
    """Ids can be copied, and no value moves the cursor."""
    assert layout.shown(name, value) == text


def test_a_text_keeps_its_own_lines() -> None:
    """Several problems are a line each, and more where one is long."""
    assert layout.text("one\n\ntwo three", 20) == ["one", "", "two three"]
    assert layout.text("one two three\nfour", 9) == ["one two", "  three", "four"]
    assert layout.text("one two\nthree", None) == ["one two\nthree"]


def test_wide_letters_are_aligned() -> None:
    """Those of Chinese, Japanese and Korean take two places."""
    rows = [{"branch": "検査", "n": 1}, {"branch": "main", "n": 22}]

    assert layout.table("T", rows, 60)[2:] == ["検査     1", "main    22"]
