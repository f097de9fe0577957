"""The command `report`: its numbers are those of the tables, on each database, and it says what it can't do."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from command import Command
from reported_scans import IDLE_REPOSITORY, MIDDAY, STALE_REPOSITORY, listing, load, scan, two_months
from sqlalchemy import text
from tables_of import ask

PERIOD_DAYS = 30
FIRST = (MIDDAY - timedelta(days=PERIOD_DAYS - 1)).replace(hour=0, tzinfo=None)
END = FIRST + timedelta(days=PERIOD_DAYS)
BEFORE = FIRST - timedelta(days=PERIOD_DAYS)

OF_PERIOD = """
SELECT COUNT(*), SUM(CASE WHEN exit_code IN (0, 1) THEN 0 ELSE 1 END)
FROM scans WHERE started_at >= '{first}' AND started_at < '{end}'
"""
SCANNED = """
SELECT COUNT(*) FROM (
    SELECT DISTINCT deployment_id, repository_id FROM scans WHERE started_at >= '{first}' AND started_at < '{end}') AS x
"""
FINDINGS_NOW = """
SELECT SUM(findings) FROM (
    SELECT t.findings, ROW_NUMBER() OVER (
        PARTITION BY s.deployment_id, s.repository_id ORDER BY s.started_at DESC, s.scan_id DESC) AS newest
    FROM scans s JOIN scan_meta m USING (deployment_id, scan_id) JOIN scan_stats t USING (deployment_id, scan_id)
    WHERE m.is_full_scan AND s.exit_code IN (0, 1)) AS x
WHERE newest = 1
"""
TIMES = "SELECT started_at, completed_at FROM scans WHERE started_at >= '{first}' AND started_at < '{end}'"
WORST = """
SELECT m.repository, SUM(CASE WHEN s.exit_code IN (0, 1) THEN 0 ELSE 1 END) AS failed, COUNT(*) AS scans
FROM scans s JOIN scan_meta m USING (deployment_id, scan_id) WHERE s.started_at >= '{first}' AND s.started_at < '{end}'
GROUP BY s.deployment_id, s.repository_id, m.repository ORDER BY failed DESC, scans LIMIT 1
"""


def of(url: str, sql: str, *, before: bool = False) -> list[Any]:
    """The first row of a query of the tables, for the period or for the one before."""
    first, end = (BEFORE, FIRST) if before else (FIRST, END)
    return [x if isinstance(x, str) else int(x) for x in ask(url, text(sql.format(first=first, end=end)))[0]]


def p95_seconds(url: str, *, before: bool = False) -> float:
    """By hand, on the line between the two scans that are nearest."""
    first, end = (BEFORE, FIRST) if before else (FIRST, END)
    rows = ask(url, text("SELECT started_at, duration_seconds FROM bi_scan"))
    seconds = sorted(float(row[1]) for row in rows if str(first)[:10] <= str(row[0])[:10] < str(end)[:10])
    below, rest = divmod(0.95 * (len(seconds) - 1), 1)
    return seconds[int(below)] + rest * (seconds[int(below) + 1] - seconds[int(below)])


def report(cli: Command, url: str, *options: str) -> tuple[dict[str, Any], str]:
    """The summary, and the page without its tags."""
    summary = cli("report", "--json", "--database-url", url, *options).json()
    html = Path(summary["file"]).read_text(encoding="utf-8")
    return summary, " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_numbers_are_those_of_the_tables(cli: Command, database_url: str) -> None:
    """Each tile, its change against the period before, and the worst repository, are as a query of the tables gives."""
    listed = [*(listing(number, 3) for number in (900, 901, 902)), listing(1, 2), listing(950, 40)]
    load(database_url, two_months(), listed, dead=[900, 950])
    summary, page = report(cli, database_url)

    (scans, failed), (scans_before, failed_before) = (of(database_url, OF_PERIOD, before=b) for b in (False, True))
    (scanned,), (scanned_before,) = of(database_url, SCANNED), of(database_url, SCANNED, before=True)
    findings = int(ask(database_url, text(FINDINGS_NOW))[0][0])
    repository, worst_failed, worst_scans = of(database_url, WORST)
    assert summary | {"file": "", "bytes": 0} == {
        "file": "",
        "bytes": 0,
        "from_day": f"{FIRST:%Y-%m-%d}",
        "until_day": f"{MIDDAY:%Y-%m-%d}",
        "deployments": [120, 130],
        "repositories": 13,
        "repositories_scanned": scanned,
        "repositories_stale": 3,
        "scans": scans,
        "failed": failed,
        "failed_percent": round(100 * failed / scans, 2),
        "p95_seconds": pytest.approx(p95_seconds(database_url)),
        "findings": findings,
        "listed": 4,
        "lost": 3,
        "lost_percent": 75.0,
        "newest_scan_at": (MIDDAY - timedelta(days=2)).isoformat(),
        "summaries_behind_since": None,
    }
    assert 0 < scanned < scanned_before <= 12
    assert f"{scanned} of 13 {100 * scanned / 13:.1f} % of those listed; {13 - scanned} not scanned" in page
    assert f"▼ {scanned_before - scanned} from {scanned_before}" in page
    rates = [round(100 * part / whole, 1) for part, whole in ((failed, scans), (failed_before, scans_before))]
    assert f"{rates[0]:.1f} % {failed} of {scans} scans" in page
    assert f"from {rates[1]:.1f} % ({failed_before} of {scans_before})" in page
    assert f"{findings:,} in the newest full scan of each repository" in page
    assert "3 75.0 % of 4 listed scans ▼ 25.0 points from 100.0 % (1 of 1)" in page
    assert f"{repository} Acme" in page
    assert f"{worst_failed} {worst_scans} {100 * worst_failed / worst_scans:.1f} %" in page


def test_a_page_may_be_of_some_deployments(cli: Command, sqlite_url: str) -> None:
    """One, named twice, is one; percentiles of several can't be added up, so each has charts of its own."""
    load(sqlite_url, [*two_months(), scan(9_000, 3, deployment_id=140)])
    one, page_of_one = report(cli, sqlite_url, "--deployment", "130", "--deployment", "130")
    two, page_of_two = report(cli, sqlite_url, "--deployment", "120", "--deployment", "130")
    everything, page = report(cli, sqlite_url, "--deployment", "120", "--deployment", "all")

    assert (one["deployments"], two["deployments"], everything["deployments"]) == ([130], [120, 130], [120, 130, 140])
    assert two["scans"] + 1 == everything["scans"] > two["scans"] > one["scans"] > 0
    assert "Acme Bank" not in page_of_one
    assert "Full scans, in" in page_of_one
    assert "Full scans of Acme Bank, in" in page_of_two
    assert "Diff scans of Acme Labs, in" in page_of_two
    assert "Full scans, in" in page
    assert "deployment 140" in page


def test_stale_repositories_are_named(cli: Command, sqlite_url: str) -> None:
    """Those that were never scanned first; with more days, fewer of them. What is gone isn't named."""
    load(sqlite_url, two_months())
    _, page = report(cli, sqlite_url)
    later, _ = report(cli, sqlite_url, "--stale-days", "400")

    stale = page.split("Not scanned for 14 days")[1].split("Findings at the end")[0]
    assert re.findall(r"acme/[a-z]+(?:-\d)?", stale) == ["acme/idle", *[f"acme/repository-{STALE_REPOSITORY}"] * 2]
    assert "3 of 13 repositories listed now (23.1 %)" in stale
    assert later["repositories_stale"] == 1
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE repositories SET gone_at = seen_at WHERE repository_id = ?", [IDLE_REPOSITORY])
        connection.commit()
    without, _ = report(cli, sqlite_url)
    assert (without["repositories"], without["repositories_stale"]) == (12, 2)


def test_a_database_without_scans_gives_a_page_that_says_so(cli: Command, database_url: str) -> None:
    """With what to do, and without a chart; the summary has no percentages of nothing."""
    summary, page = report(cli, database_url)

    assert "There are no scans in this database yet. scan-etl sync fetches those that the API lists" in page
    assert (summary["scans"], summary["failed_percent"], summary["p95_seconds"], summary["findings"]) == (
        0,
        None,
        None,
        None,
    )


def test_scans_that_are_not_counted_yet_are_told(cli: Command, sqlite_url: str) -> None:
    """An empty page would say that there are none."""
    load(sqlite_url, two_months())
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("INSERT INTO summary_marks (deployment_id, day) VALUES (120, '2026-01-01')")
        connection.commit()
        _, behind = report(cli, sqlite_url)
        for table in ("repository_summaries", "scan_days", "deployments", "repositories"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - the names are above
        connection.commit()
        _, nothing = report(cli, sqlite_url)

    assert "aren't counted yet: scan-etl db refresh counts them" in behind
    assert "There are scans in this database, but none is counted yet." in nothing


def test_a_period_without_scans_has_no_percentages(cli: Command, sqlite_url: str) -> None:
    """Each section says that there was nothing, and of which days."""
    load(sqlite_url, [scan(1, 50)])
    summary, page = report(cli, sqlite_url, "--since", "7d")

    assert (summary["scans"], summary["failed_percent"], summary["lost_percent"]) == (0, None, None)
    assert "No scan started from" in page
    assert "None of 0 scans failed from" in page
    assert "No scan of these weeks has a duration." in page
    assert "nothing to compare with before" in page


def test_no_writer_waits_for_it_and_it_waits_for_none(cli: Command, sqlite_url: str) -> None:
    """A worker may hold the write lock of an SQLite file for as long as it likes."""
    load(sqlite_url, two_months())
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as worker:
        worker.execute("BEGIN IMMEDIATE")
        summary, _ = report(cli, sqlite_url)
        worker.execute("ROLLBACK")

    assert summary["scans"] > 0


def test_the_page_goes_to_stdout_or_replaces_a_file(cli: Command, sqlite_url: str) -> None:
    """In one step: beside it nothing is left."""
    load(sqlite_url, two_months())
    folder = cli.folder / "pages"
    folder.mkdir()
    (folder / "page.html").write_text("old")
    printed = cli("report", "--out", "-", "--database-url", sqlite_url)
    written = cli("report", "--out", "pages/page.html", "--database-url", sqlite_url)

    assert printed.stdout.startswith("<!doctype html>")
    assert printed.stdout.rstrip().endswith("</html>")
    assert written.stdout == f"The page: {folder / 'page.html'}\n"
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    assert (folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--deployment", "7"], "the database knows no deployment 7"),
        (["--deployment", "acme"], "'acme' is neither the id of a deployment nor `all`"),
        (["--deployment", "0"], "'0' is neither the id of a deployment nor `all`"),
        (["--since", "soon"], "'soon' is not a duration"),
        (["--since", "9999d"], "--since goes back 3,660 days at most"),
        (["--stale-days", "0"], "0 is not in the range"),
        (["--out", "-", "--json"], "--json and --out - both want stdout"),
        (["--out", "nowhere/page.html"], "--out nowhere/page.html can't be written"),
        (["--out", "."], "--out . is no regular file"),
    ],
)
def test_what_cannot_be_is_exit_2(cli: Command, sqlite_url: str, options: Sequence[str], said: str) -> None:
    """With the reason in one sentence."""
    load(sqlite_url, [scan(1, 3)])
    done = cli("report", *options, "--database-url", sqlite_url)

    assert done.exit_code == 2, done
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("package", ["altair", "jinja2", "vl_convert"])
def test_without_its_packages_it_says_how_to_install_them(cli: Command, sqlite_url: str, package: str) -> None:
    """They are an extra: 100 MB that only those need who want a page."""
    absent = cli.folder / "absent"
    absent.mkdir()
    (absent / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    done = cli.started("report", "--database-url", sqlite_url, environment={"PYTHONPATH": str(absent)})

    assert done.exit_code == 2
    assert "a report needs more packages: pip install 'scan-etl[report]'" in done.stderr


def test_without_a_database_it_is_exit_5(cli: Command) -> None:
    """As for every command that reads."""
    done = cli("report", "--database-url", "sqlite:///none.db")

    assert done.exit_code == 5
    assert "none.db: is this the place?" in done.stderr
