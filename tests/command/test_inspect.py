"""The commands `inspect` and `drift`: which rows an answer becomes, and what came other than known."""

import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from command import Command
from scan_rows import document, rows_by_table, scan_rows
from sqlalchemy import update
from tables_of import change

from etl.database.schema import schema_drift
from etl.database.types import add_seconds, utc_now
from etl.model import Pair

DETAILS = document(Pair(120, 9))


def tables_of(answer: dict[str, Any]) -> dict[str, Any]:
    return {table: rows for table, rows in answer["tables"].items() if rows}


@pytest.mark.parametrize("indent", [None, 2])
def test_an_answer_becomes_the_rows_that_a_run_would_store(cli: Command, tmp_path: Path, indent: int | None) -> None:
    """Pretty or on one line, from a file or stdin, with no database and no token anywhere."""
    text = json.dumps(DETAILS, indent=indent)
    (tmp_path / "answer.json").write_text(text)
    found, again = cli("inspect", "answer.json", "--json"), cli("inspect", "-", "--json", stdin=text)

    (answer,) = found.json()["answers"]
    expected = {
        table: [{name: value for name, value in row.items() if name not in Pair._fields} for row in rows]
        for table, rows in rows_by_table([scan_rows(9)]).items()
    }
    assert found.exit_code == 0
    assert found.json() == again.json()
    assert (answer["deployment_id"], answer["scan_id"]) == (120, 9)
    assert tables_of(answer) == json.loads(json.dumps(expected, default=lambda at: at.isoformat()))
    assert answer["drift"] == [{"path": "meta.mood", "kind": "unknown_field"}]
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]


def test_answers_may_stand_one_a_line(cli: Command, tmp_path: Path) -> None:
    """Blank lines pass, a broken one is named by its number, and the rest is shown; gzip is read, too."""
    lines = ["", json.dumps(DETAILS), "{broken", "", "[1]", json.dumps({"id": "7"})]
    (tmp_path / "answers.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    found = cli("inspect", "answers.jsonl.gz", "--json")

    assert found.exit_code == 0
    assert [(one["deployment_id"], one["scan_id"]) for one in found.json()["answers"]] == [(120, 9), (None, 7)]
    assert found.json()["refused"] == 2
    assert "answers.jsonl.gz:3: " in found.stderr
    assert "answers.jsonl.gz:5: $: the answer is a list, not an object" in found.stderr


def test_a_page_of_the_search_becomes_listings(cli: Command) -> None:
    """Each entry has its row; what is odd about one that names no scan is said."""
    entries = [{"id": "5", "deployment_id": "3", "status": "SCAN_STATUS_ERROR", "mood": 1}, {"id": "0"}]
    found = cli("inspect", "-", "--json", stdin=json.dumps({"scans": entries, "cursor": "next"})).json()["answers"]

    assert [(one["deployment_id"], one["scan_id"]) for one in found] == [(3, 5), (3, None)]
    (row,) = found[0]["tables"]["scan_listings"]
    assert (row["status"], row["extra"]) == ("SCAN_STATUS_ERROR", {"mood": 1})
    assert [one["drift"] for one in found] == [
        [{"path": "listing.mood", "kind": "unknown_field"}],
        [{"path": "listing.id", "kind": "out_of_range"}],
    ]


def test_people_read_tables(cli: Command) -> None:
    """Each value that isn't null has a line with its table and column, and drift has a table."""
    found = cli("inspect", "-", stdin=json.dumps(DETAILS))

    assert "Scan 120/9" in found.stdout
    assert "scan_meta" in found.stdout
    assert "trigger_event" in found.stdout
    assert "pull_request_id" not in found.stdout
    assert "meta.mood" in found.stdout


@pytest.mark.parametrize("text", ["", "\n\n", "no JSON", "[]", "7"])
def test_a_file_without_an_answer_is_exit_2(cli: Command, text: str) -> None:
    """The sentence says what is wanted."""
    found = cli("inspect", "-", stdin=text)

    assert found.exit_code == 2
    assert "stdin holds no answer of the API: give the JSON of a scan's details, or of a search" in found.stderr


def drift_rows(url: str) -> None:
    """Two differences: one that came first long ago, and one of this hour."""
    for path, days in (("meta.old", 3), ("meta.new", 0)):
        at = add_seconds(utc_now(), -timedelta(days=days, minutes=10).total_seconds())
        values = {"path": path, "kind": "unknown_field", "count": 5, "first_seen_at": at, "last_seen_at": utc_now()}
        change(url, schema_drift.insert().values(**values, sample_deployment_id=120, sample_scan_id=7))


def test_drift_is_listed_the_newest_first(cli: Command, database_url: str) -> None:
    """With its sample, and with what is new; `--since` leaves out what came before."""
    drift_rows(database_url)
    database = ("--database-url", database_url)
    text, found = cli("drift", *database), cli("drift", "--json", *database).json()
    lately = cli("drift", "--json", "--since", "1h", *database).json()

    assert [(row["path"], row["is_new"]) for row in found["drift"]] == [("meta.new", True), ("meta.old", False)]
    assert found["new"] == 1
    assert [row["path"] for row in lately["drift"]] == ["meta.new"]
    assert "120/7" in text.stdout
    assert text.stdout.index("meta.new") < text.stdout.index("meta.old")


def test_new_drift_can_fail(cli: Command, sqlite_url: str) -> None:
    """For cron: exit 1 where something came first within the last day, or within `--since`; else 0."""
    database = ("--database-url", sqlite_url)
    assert cli("drift", "--fail-on-new", *database).exit_code == 0
    drift_rows(sqlite_url)

    assert cli("drift", *database).exit_code == 0
    assert cli("drift", "--fail-on-new", *database).exit_code == 1
    assert cli("drift", "--fail-on-new", "--since", "5m", *database).exit_code == 0
    change(sqlite_url, update(schema_drift).values(first_seen_at=add_seconds(utc_now(), -200_000.0)))
    assert cli("drift", "--fail-on-new", *database).exit_code == 0
    assert cli("drift", "--fail-on-new", "--since", "7d", *database).exit_code == 1
