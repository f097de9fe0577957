"""Charts as SVG: text stays text, colours are variables of the page, and nothing is fetched."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import altair as alt
import vl_convert

from etl.errors import printable

WIDTH, HEIGHT = 340, 180
BAR_HEIGHT = 22
FONT_PIXELS = 12
MOST_LETTERS = 60
PADDING = {"left": 12, "right": 12, "top": 2, "bottom": 2}
"""Whoever looks at it has other fonts than what draws it, and wider ones."""
LONG_DAYS = 300
"""From so many days on the axis has months."""
GREATEST_GAP = 0.25


class Series(NamedTuple):
    """A name for the legend, and the variable of the page's palette that has its colour."""

    name: str
    colour: str


class Point(NamedTuple):
    """A value of a series; None is a gap."""

    x: date
    series: str
    value: float | None


class Bar(NamedTuple):
    """A horizontal bar, with the text at its end."""

    label: str
    value: float
    text: str


def stacked(points: Sequence[Point], series: Sequence[Series]) -> str:
    """Bars that stand on one another, in the order of the series, from below."""
    names = [one.name for one in series]
    rows = [{**_row(point), "order": names.index(point.series)} for point in points]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(x=_days(points), y=_values(), color=_colours(series), order=alt.Order("order:Q"))
    )
    return _svg(chart.properties(width=WIDTH, height=HEIGHT))


def lines(points: Sequence[Point], series: Sequence[Series]) -> str:
    """A line for each series, with a mark on each value; the shape of the marks tells them apart, too."""
    dashes = [[1, 0], [5, 3], [2, 2]][: len(series)]
    names = [one.name for one in series]
    base = alt.Chart(_data([_row(point) for point in points])).encode(
        x=_days(points), y=_values(), color=_colours(series)
    )
    line = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=dashes), legend=None)
    )
    dots = base.mark_point(filled=True, size=36, opacity=1)
    return _svg(alt.layer(line, dots).properties(width=WIDTH, height=HEIGHT))


def bars(rows: Sequence[Bar], colour: str, *, most: float | None = None) -> str:
    """Horizontal bars in the order in which they come, each with its text; `most` is where the axis ends."""
    # What draws the charts would end the whole process at a character that XML doesn't know.
    shown = [
        row._replace(label=printable(row.label, MOST_LETTERS), text=printable(row.text, MOST_LETTERS)) for row in rows
    ]
    base = alt.Chart(_data([row._asdict() for row in shown])).encode(
        x=alt.X("value:Q", axis=None, scale=alt.Scale(domainMin=0, domainMax=_room(rows, most))),
        y=alt.Y("label:N", sort=None, axis=alt.Axis(title=None, domain=False, ticks=False, labelLimit=WIDTH / 2)),
    )
    bar = base.mark_bar(color=f"var(--{colour})", height={"band": 0.7})
    text = base.mark_text(align="left", dx=5, fill="currentColor").encode(text="text:N")
    return _svg(alt.layer(bar, text).properties(width=WIDTH, height=len(rows) * BAR_HEIGHT))


def _room(rows: Sequence[Bar], most: float | None) -> float:
    """The end of the axis, with room for the text of the longest bar."""
    longest = most or max(row.value for row in rows)
    return longest * (1 + max(len(row.text) for row in rows) * 7 / WIDTH + 0.05) or 1


def _data(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def _row(point: Point) -> dict[str, Any]:
    return {"x": point.x.isoformat(), "series": point.series, "value": point.value}


def _days(points: Sequence[Point]) -> alt.X:
    """A band for each day, by its name: an axis of time would lean on the machine's time zone."""
    days = sorted({point.x for point in points})
    form = "%b %Y" if (days[-1] - days[0]).days > LONG_DAYS else "%-d %b"
    axis = alt.Axis(
        title=None,
        labelExpr=f"utcFormat(toDate(datum.value + 'T00:00Z'), '{form}')",
        labelAngle=0,
        labelOverlap="parity",
        labelSeparation=10,
        ticks=False,
    )
    scale = alt.Scale(paddingInner=GREATEST_GAP if len(days) < LONG_DAYS / 2 else 0)
    return alt.X("x:O", axis=axis, scale=scale)


def _values() -> alt.Y:
    axis = alt.Axis(title=None, tickCount=5, format=",~f", tickMinStep=1, domain=False, ticks=False)
    return alt.Y("value:Q", axis=axis)


def _colours(series: Sequence[Series]) -> alt.Color:
    colours = [f"var(--{one.colour})" for one in series]
    scale = alt.Scale(domain=[one.name for one in series], range=colours)
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolStrokeWidth=0) if len(series) > 1 else None
    return alt.Color("series:N", scale=scale, legend=legend)


def _svg(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> str:
    dressed = (
        chart.configure(font="sans-serif", background="transparent", aria=False, padding=PADDING)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="currentColor",
            labelFontSize=FONT_PIXELS,
            gridColor="var(--line)",
            domainColor="var(--line)",
            tickColor="var(--line)",
            labelPadding=6,
        )
        .configure_legend(labelColor="currentColor", labelFontSize=FONT_PIXELS, columnPadding=14)
        .configure_text(fontSize=FONT_PIXELS)
    )
    return vl_convert.vegalite_to_svg(dressed.to_dict(), vl_version="_".join(alt.SCHEMA_VERSION.split(".")[:2]))
