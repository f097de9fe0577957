"""Grafana's part of a dashboard: what becomes of a panel's SQL before PostgreSQL gets it."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

MACRO = re.compile(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)")


class TimeRange(NamedTuple):
    """What somebody has chosen in the corner of the dashboard."""

    start: datetime
    end: datetime


class Frame(NamedTuple):
    """What a panel draws."""

    names: list[str]
    rows: list[tuple[Any, ...]]


def expand(sql: str, chosen: TimeRange, variables: Mapping[str, str]) -> str:
    """First the variables, in the browser; then the macros, in the data source. KeyError for an unknown macro."""
    for name, value in variables.items():
        sql = sql.replace(f"${name}", value)
    start, end = (f"'{instant:%Y-%m-%dT%H:%M:%S.%fZ}'" for instant in chosen)

    def macro(found: re.Match[str]) -> str:
        name, argument = found.groups()
        between = f"{argument} BETWEEN {start} AND {end}"
        return {"__timeFilter": between, "__timeFrom": start, "__timeTo": end}[name]

    return MACRO.sub(macro, sql)


def ask(url: str, sql: str) -> Frame:
    """In a session far from UTC: no number may depend on where a server stands."""
    with psycopg.connect(url, options="-c TimeZone=Pacific/Auckland") as connection:
        cursor = connection.execute(sql.encode())
        return Frame([column.name for column in cursor.description or []], cursor.fetchall())


def panels_of(dashboard: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those that ask something, by their titles."""
    return {panel["title"]: panel for panel in dashboard["panels"] if panel["type"] != "row"}
