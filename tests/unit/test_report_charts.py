"""Charts as SVG."""

import os
import re
import subprocess
import sys
from datetime import date
from functools import partial

import pytest

from etl.report.charts import Bar, Point, Series, bars, lines, stacked

SERIES = (Series("passed", "calm"), Series("failed", "bad"))
WEEK = [Point(date(2026, 11, day), one.name, day) for day in (2, 3, 4) for one in SERIES]
IN_LOS_ANGELES = """
from datetime import date
from etl.report.charts import Point, Series, stacked
print(stacked([Point(date(2026, 11, 2), "passed", 1)], [Series("passed", "calm")]))
"""


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("draw", [partial(stacked, WEEK), partial(lines, WEEK), partial(bars, [Bar("one", 1, "1")])])
def test_a_chart_fetches_nothing_and_takes_the_fonts_of_the_page(draw: "partial[str]") -> None:
    """Generic families, colours that are variables, no id that another chart may have, no address but of namespaces."""
    svg = draw("bad" if draw.func is bars else SERIES)

    assert set(re.findall(r'font-family="([^"]*)"', svg)) == {"sans-serif"}
    assert set(re.findall(r'[\w:]+="(https?:[^"]*)"', svg)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"\b(?:href|src|id|style)=|url\(|<(?:style|script|image|font)", svg)
    assert {colour for colour in re.findall(r'(?:fill|stroke)="([^"]*)"', svg) if colour.startswith("#")} <= {"#000"}


def test_text_in_a_chart_is_escaped() -> None:
    """Whatever stands in a label, however long: a control character alone would end the process that draws."""
    svg = bars([Bar("<script>alert(1)</script>", 1, '"&\x01\uffff\x1b'), Bar("w" * 2000, 1, "")], "bad")

    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_days_are_those_of_the_data_in_any_time_zone() -> None:
    """An axis of time would show the evening before in America."""
    command = [sys.executable, "-c", IN_LOS_ANGELES]
    environment = {**os.environ, "TZ": "America/Los_Angeles"}
    svg = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "2 Nov" in texts(svg)


def test_a_week_without_scans_is_a_gap() -> None:
    """Its day is on the axis, and no mark stands on it."""
    points = [Point(date(2026, 11, day), "passed", value) for day, value in ((2, 5.0), (9, None), (16, 7.0))]
    svg = lines(points, SERIES[:1])

    assert {"2 Nov", "9 Nov", "16 Nov"} <= set(texts(svg))
    assert len(re.findall(r"<path", re.findall(r'<g class="mark-symbol role-mark[^>]*>.*?</g>', svg)[0])) == 2


def test_a_year_has_months_on_its_axis() -> None:
    """A day and a month would mean two days."""
    points = [Point(date(2025, 1, 1), "passed", 1), Point(date(2025, 12, 31), "passed", 2)]

    assert {"Jan 2025", "Dec 2025"} <= set(texts(stacked(points, SERIES[:1])))


@pytest.mark.parametrize("value", [0, 1, 10**12])
def test_bars_have_room_for_their_texts(value: int) -> None:
    """However long they are: also where all of them are nothing."""
    assert f"{value:,} (100.0 %)" in texts(bars([Bar("AI", value, f"{value:,} (100.0 %)")], "calm"))
