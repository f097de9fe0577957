"""Grafana's dashboard in deploy/: Grafana keeps all of it, and each panel shows what is counted by hand."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from counted_panels import BY_HAND, DEAD, LISTED, RANGE, Rows, period
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from grafana_panels import Frame, ask, expand, panels_of
from postgres_databases import PostgresDatabases, plain_url
from reported_scans import NAMES, load, two_months

from etl.database.migrate import dictionary

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "grafana" / "scan-etl.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
PANELS = panels_of(DASHBOARD)
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
CHOICES = {"all": (VARIABLES["deployment"]["allValue"], NAMES), "one": ("'130'", [130])}
"""What Grafana puts in the place of the variable, and the deployments that this means."""


def lost_on_the_way(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """What isn't there any more, or is another. What Grafana adds are its defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        parts = [lost_on_the_way(value, theirs.get(name), f"{path}.{name}") for name, value in ours.items()]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        parts = [lost_on_the_way(*both, f"{path}[{n}]") for n, both in enumerate(zip(ours, theirs, strict=True))]
    else:
        return [] if ours == theirs else [path]
    return [each for part in parts for each in part]


def test_grafana_keeps_all_of_the_dashboard() -> None:
    """Its own types read it and write it again, and nothing is lost: no option is misspelled."""
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))

    assert lost_on_the_way(DASHBOARD, kept) == []
    assert lost_on_the_way({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == [".a[0].b"]


def test_it_can_be_imported_as_it_stands() -> None:
    """No panel names a data source of somebody's own, no two overlap, and it has no number of its own."""
    sources = [panel["datasource"] for panel in PANELS.values()]
    sources += [target["datasource"] for panel in PANELS.values() for target in panel["targets"]]
    squares = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert {(source["type"], source["uid"]) for source in sources} == {
        (VARIABLES["datasource"]["query"], "${datasource}")
    }
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) < 24
    assert "id" not in DASHBOARD
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_files_set_up_the_data_source_that_it_asks_for() -> None:
    """And the folder that the guide copies it to."""
    guide = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
    sources, folders = (
        yaml.safe_load((FILE.parent / "provisioning" / kind / "scan-etl.yaml").read_text(encoding="utf-8"))
        for kind in ("datasources", "dashboards")
    )

    assert [each["type"] for each in sources["datasources"]] == [VARIABLES["datasource"]["query"]]
    assert [f"{each['options']['path']}/scan-etl.json" in guide for each in folders["providers"]] == [True]


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_reads_views_alone(title: str) -> None:
    """Those that are a contract."""
    sql = sql_of(title)
    own = re.findall(r"(\w+) (?:\([a-z_, ]+\) )?AS \(", sql)
    read = set(re.findall(r"\b(?:FROM|JOIN) ([a-z_]+)", sql)) - set(own)

    assert read
    assert read <= dictionary().views.keys()


def sql_of(title: str) -> str:
    (target,) = PANELS[title]["targets"]
    sql: str = target["rawSql"]
    return sql


@pytest.fixture(scope="module")
def filled_url(postgres_databases: PostgresDatabases, postgres_template: str) -> Iterator[str]:
    """Two months of two deployments; a few of the scans were listed."""
    with postgres_databases.database(template=postgres_template) as url:
        load(url, two_months(), LISTED, DEAD)
        yield plain_url(url)


def asked(url: str, sql: str, deployments: str) -> Frame:
    return ask(url, expand(sql, RANGE, {"deployment": deployments, "stale_days": "14"}))


def plain(rows: Rows) -> list[list[Any]]:
    return [[float(value) if isinstance(value, Decimal) else value for value in row] for row in rows]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("title", PANELS)
def test_a_panel_shows_what_is_counted_by_hand(filled_url: str, title: str, choice: str) -> None:
    """Of whole days in UTC, wherever the server stands; of all deployments and of one."""
    deployments, chosen = CHOICES[choice]
    frame = asked(filled_url, sql_of(title), deployments)
    expected = BY_HAND[title](period(chosen))

    shown = [row[: len(expected[0])] for row in plain(frame.rows)] if expected else frame.rows
    assert len(shown) == len(expected)
    for row, by_hand in zip(shown, expected, strict=True):
        assert row == [pytest.approx(x) if isinstance(x, float) else x for x in by_hand]


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_has_what_grafana_needs(postgres_url: str, title: str) -> None:
    """A series has instants named time, in their order; colours and units are for columns that are there. Nothing fails
    where there are no scans."""
    frame = asked(plain_url(postgres_url), sql_of(title), VARIABLES["deployment"]["allValue"])
    instants = [row[0] for row in frame.rows]
    styled = {each["matcher"]["options"] for each in PANELS[title]["fieldConfig"]["overrides"]}

    if PANELS[title]["targets"][0]["format"] == "time_series":
        assert frame.names[0] == "time"
        assert all(isinstance(instant, datetime) for instant in instants)
        assert instants == sorted(instants)
    assert styled <= {*frame.names} or "metric" in frame.names


def test_the_choice_of_deployments_has_their_names(filled_url: str) -> None:
    """And gives their ids to the panels."""
    frame = ask(filled_url, VARIABLES["deployment"]["query"])

    assert (frame.names, frame.rows) == (["__value", "__text"], list(NAMES.items()))
