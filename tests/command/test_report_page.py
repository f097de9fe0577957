"""The page of `report` in a real Chromium: on a laptop, on a phone, in the dark and on paper."""

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from chromium import LAPTOP_PIXELS, PHONE_PIXELS, Tab
from reported_scans import listing, load, scan, two_months

from etl.app.report import make
from etl.database.connection import Database

pytestmark = pytest.mark.slow  # what a browser makes of a page depends on neither the Python nor the lowest versions

CHARTS = (
    "Findings at the end of each week",
    "Scans a day, by outcome",
    "Failures by exit code",
    "Full scans, in minutes",
    "Diff scans, in minutes",
    "Repositories scanned, by product",
    "Listed scans a day, by what became of them",
)
MARKS = """
[...document.querySelectorAll('figure')].map(figure => [
    figure.querySelector('h3').textContent,
    figure.querySelectorAll('.mark-rect path, .mark-symbol.role-mark path').length,
    figure.querySelectorAll('tbody tr').length,
    figure.querySelector('[role=img]').getAttribute('aria-label').length,
])
"""
CLIPPED = """
[...document.querySelectorAll('svg text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > innerWidth);
}).map(text => text.textContent)
"""
FONTS = (
    "[...new Set([...document.querySelectorAll('svg [font-family]')].map(text => text.getAttribute('font-family')))]"
)
COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill,
    getComputedStyle(document.querySelector('.mark-rect path[fill^=var]')).fill]
"""
ODD_NAMES = (
    "<script>document.title = 'run'</script>",
    '"><img src=x onerror="document.title = \'run\'">',
    "{{ 7 * 7 }} & ]]> </svg></style>",
    "\u202efdp.exe/\u0645\u0633\u062a\u0648\u062f\u0639",
    "\u0001\u2028control",
    "w" * 2000,
)


async def shown(
    tab: Tab, url: str, folder: Path, width: int, *, deployments: Sequence[int] = (), dark: bool = False
) -> None:
    """Make the page, and show it."""
    with closing(Database(url)) as database:
        html = make(database, deployments, 30, 14).html
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8")
    await tab.show(page, width=width, dark=dark)

    assert tab.requested() == [page.as_uri()]
    assert tab.complaints() == []


@pytest.fixture
def known_url(sqlite_url: str) -> str:
    """Two months of two deployments, with lists."""
    load(sqlite_url, two_months(), [listing(number, 3) for number in range(1, 9)], dead=[3])
    return sqlite_url


@pytest.mark.parametrize("deployments", [[], [130]])
async def test_each_chart_has_marks_words_and_numbers(
    tab: Tab, known_url: str, tmp_path: Path, deployments: Sequence[int]
) -> None:
    """On a laptop, of one deployment and of all: nothing is fetched, and nobody complains."""
    await shown(tab, known_url, tmp_path, LAPTOP_PIXELS, deployments=deployments)
    charts = await tab.ask(MARKS)

    assert [title for title, *_ in charts] == [title for title in CHARTS if not (deployments and "Listed" in title)]
    for title, marks, rows, letters in charts:
        assert marks >= 2, title
        assert rows >= 2, title
        assert letters > len(title) + 20, title
    assert await tab.ask(FONTS) == ["sans-serif"]


@pytest.mark.parametrize("width", [PHONE_PIXELS, LAPTOP_PIXELS])
async def test_nothing_is_wider_than_the_window(tab: Tab, known_url: str, tmp_path: Path, width: int) -> None:
    """The page doesn't scroll sideways, and no label of a chart is cut."""
    await shown(tab, known_url, tmp_path, width)

    assert await tab.ask("document.documentElement.scrollWidth") == width
    assert await tab.ask(CLIPPED) == []


async def test_the_dark_has_colours_of_its_own(tab: Tab, known_url: str, tmp_path: Path) -> None:
    """Paper, text and marks: those of the charts, too."""
    await shown(tab, known_url, tmp_path, LAPTOP_PIXELS)
    light = await tab.ask(COLOURS)
    await shown(tab, known_url, tmp_path, LAPTOP_PIXELS, dark=True)
    dark = await tab.ask(COLOURS)

    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert all(re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour) for colour in (*light, *dark))


async def test_it_prints(tab: Tab, known_url: str, tmp_path: Path) -> None:
    """In a few pages."""
    await shown(tab, known_url, tmp_path, LAPTOP_PIXELS)
    pages = re.findall(rb"/Type\s*/Page\b", await tab.pdf())

    assert 2 <= len(pages) <= 12


async def test_names_are_text_whatever_they_hold(tab: Tab, sqlite_url: str, tmp_path: Path) -> None:
    """Tags, the other direction, control characters and 2,000 letters: all are shown, none does anything."""
    rows = [
        scan(number, days_ago, repository_id=number, exit_code=2, meta={"repository": name, "is_full_scan": True})
        for days_ago in (3, 20)
        for number, name in enumerate(ODD_NAMES, days_ago * 100)
    ]
    load(sqlite_url, rows)
    await shown(tab, sqlite_url, tmp_path, PHONE_PIXELS)

    cells = await tab.ask("[...document.querySelectorAll('td bdi')].map(cell => cell.textContent)")
    assert set(ODD_NAMES) <= set(cells)
    assert await tab.ask("document.title") == "Semgrep scans of Acme Bank, Acme Labs"
    assert await tab.ask("document.querySelectorAll('script, img, iframe, object, embed').length") == 0
    assert await tab.ask("document.documentElement.scrollWidth") == PHONE_PIXELS


async def test_an_empty_page_is_a_page(tab: Tab, sqlite_url: str, tmp_path: Path) -> None:
    """It says what to do."""
    await shown(tab, sqlite_url, tmp_path, PHONE_PIXELS)

    assert "There are no scans in this database yet." in await tab.ask("document.body.innerText")
    assert await tab.ask("document.documentElement.scrollWidth") == PHONE_PIXELS
