"""The dbt package in deploy/: it says what the dictionary says, and a real dbt finds its promises kept."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from dbt_package import PACKAGE, run_dbt
from postgres_databases import plain_url
from reported_scans import MIDDAY, NAMES, listing, load, two_months
from sqlalchemy import insert, text, update
from tables_of import ask, change

from etl.database.migrate import dictionary
from etl.database.schema import watermarks
from etl.database.summaries import scan_groups

(SOURCE,) = yaml.safe_load((PACKAGE / "models" / "sources.yml").read_text(encoding="utf-8"))["sources"]
TABLES: dict[str, dict[str, Any]] = {table["name"]: table for table in SOURCE["tables"]}
ENTRIES = {name: {**dictionary().tables, **dictionary().views}[name] for name in TABLES}


def test_all_views_are_described_as_in_the_dictionary() -> None:
    """Each view with each of its columns, in the same words."""
    described = {
        name: (table["description"], {each["name"]: each["description"] for each in table["columns"]})
        for name, table in TABLES.items()
    }

    assert TABLES.keys() >= dictionary().views.keys()
    assert described == {
        name: (entry.meaning, {column: said.sentence() for column, said in entry.columns.items()})
        for name, entry in ENTRIES.items()
    }


@pytest.mark.parametrize("name", TABLES)
def test_each_view_has_a_key(name: str) -> None:
    """Of one column or of several, that exist; of them NULL is allowed where the dictionary allows it."""
    columns = {each["name"]: [str(test) for test in each.get("data_tests", [])] for each in TABLES[name]["columns"]}
    of_several = [test["scan_etl_unique_key"]["arguments"]["columns"] for test in TABLES[name].get("data_tests", [])]
    (key,) = of_several or [[column for column, tests in columns.items() if "unique" in tests]]

    assert key
    assert {column for column, tests in columns.items() if any("not_null" in test for test in tests)} == {
        column for column in key if not ENTRIES[name].columns[column].nullable
    }


def loaded(url: str) -> None:
    """Two months of scans, of whose deployments the lists were walked just now."""
    load(url, two_months(), [listing(1, 2), listing(900, 3)], [900])
    now = ask(url, text("SELECT CURRENT_TIMESTAMP"))[0][0]
    walks = [{"deployment_id": key, "walked_at": now, "complete_since": MIDDAY, "token_key": "k"} for key in NAMES]
    change(url, insert(watermarks).values(walks))


@pytest.mark.slow
@pytest.mark.dbt
def test_a_real_dbt_finds_that_the_views_keep_their_contract(postgres_url: str, tmp_path: Path) -> None:
    """Fresh, unique, never NULL, in known words; its example is a table of the repositories. It tells nobody of it."""
    loaded(postgres_url)
    freshness = run_dbt(tmp_path / "dbt", plain_url(postgres_url), "source", "freshness")
    build = run_dbt(tmp_path / "dbt", plain_url(postgres_url), "build")
    sql = "SELECT deployment, repository FROM analytics.scan_etl_repositories WHERE is_stale ORDER BY 1, 2"

    assert freshness.returncode == 0, freshness.stdout
    assert "1 of 1 PASS freshness of scan_etl.bi_freshness" in freshness.stdout
    assert build.returncode == 0, build.stdout
    assert "ERROR=0 SKIP=0" in build.stdout
    assert ask(postgres_url, text(sql)) == [
        ("Acme Bank", "acme/idle"),
        ("Acme Bank", "acme/repository-6"),
        ("Acme Labs", "acme/repository-6"),
    ]
    assert list(tmp_path.rglob(".user.yml")) == []


@pytest.mark.slow
@pytest.mark.dbt
def test_a_real_dbt_finds_what_is_broken(postgres_url: str, tmp_path: Path) -> None:
    """A word that the contract doesn't know, and data that nobody has renewed for three days."""
    loaded(postgres_url)
    change(
        postgres_url,
        update(scan_groups).where(scan_groups.c.outcome == "passed").values(outcome="odd"),
        text("UPDATE watermarks SET walked_at = walked_at - INTERVAL '3 days' WHERE deployment_id = 130"),
    )
    freshness = run_dbt(tmp_path / "dbt", plain_url(postgres_url), "source", "freshness")
    test = run_dbt(tmp_path / "dbt", plain_url(postgres_url), "test", "--select", "source:scan_etl.bi_scan_group_daily")

    assert (freshness.returncode, test.returncode) == (1, 1)
    assert "ERROR STALE freshness of scan_etl.bi_freshness" in freshness.stdout
    assert "ERROR=1 " in test.stdout
    assert "accepted_values_scan_etl_bi_scan_group_daily_outcome" in test.stdout
