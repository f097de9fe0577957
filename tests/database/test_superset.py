"""Superset's dashboard in deploy/: it fits the views and the dictionary, and what it asks is SQL on both servers."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text
from tables_of import ask

from etl.database.migrate import dictionary

FOLDER = Path(__file__).parents[2] / "deploy" / "superset"


def read(kind: str) -> dict[str, dict[str, Any]]:
    """All files of a kind, by the names that they have for each other."""
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (FOLDER / kind).rglob("*.yaml"))
    return {file["uuid"]: file for file in files}


DATABASES, DATASETS, CHARTS, DASHBOARDS = map(read, ("databases", "datasets", "charts", "dashboards"))
BY_VIEW = {dataset["table_name"]: dataset for dataset in DATASETS.values()}


def test_each_file_finds_what_it_names() -> None:
    """Charts their datasets, datasets their database, and the dashboard has all charts. No file holds a password, or
    the name of a schema."""
    (dashboard,), (database,) = DASHBOARDS.values(), DATABASES.values()
    placed = [each for each in dashboard["position"].values() if isinstance(each, dict) and each["type"] == "CHART"]

    assert {chart["dataset_uuid"] for chart in CHARTS.values()} == DATASETS.keys()
    assert {dataset["database_uuid"] for dataset in DATASETS.values()} == {database["uuid"]}
    assert {each["meta"]["uuid"] for each in placed} == CHARTS.keys()
    assert ":XXXXXXXXXX@" in database["sqlalchemy_uri"]
    assert {(dataset["catalog"], dataset["schema"]) for dataset in DATASETS.values()} == {(None, None)}


@pytest.mark.parametrize("view", BY_VIEW)
def test_a_dataset_is_described_as_in_the_dictionary(view: str) -> None:
    """All columns of the view, in its order and in the same words."""
    entry, dataset = dictionary().views[view], BY_VIEW[view]
    described = {each["column_name"]: each["description"] for each in dataset["columns"]}

    assert dataset["description"] == entry.meaning
    assert list(described.items()) == [(name, column.sentence()) for name, column in entry.columns.items()]


def filters(view: str, clause: str) -> list[str]:
    """The conditions in SQL of all charts of the view."""
    charts = (chart for chart in CHARTS.values() if DATASETS[chart["dataset_uuid"]]["table_name"] == view)
    said = (each for chart in charts for each in chart["params"].get("adhoc_filters", []))
    return [each["sqlExpression"] for each in said if (each["expressionType"], each["clause"]) == ("SQL", clause)]


def test_what_it_asks_is_sql_on_both_servers(server_url: str) -> None:
    """Each metric and each condition, on a database without scans."""
    for view, dataset in BY_VIEW.items():
        metrics = ", ".join(metric["expression"] for metric in dataset["metrics"])
        where = " AND ".join(f"({each})" for each in ["1 = 1", *filters(view, "WHERE")])
        having = " AND ".join(f"({each})" for each in ["1 = 1", *filters(view, "HAVING")])
        column = dataset["columns"][0]["column_name"]
        sql = f"SELECT {metrics} FROM {view} WHERE {where} GROUP BY {column} HAVING {having}"  # noqa: S608 - our own

        assert ask(server_url, text(sql)) == []
