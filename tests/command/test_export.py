"""The command `export`: where it writes, what it says, and what is left of it when it is ended."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import Command
from exported import fill
from patience import PATIENCE_SECONDS
from sqlalchemy import Connection, text
from tables_of import ask

from etl.database.connection import Database
from etl.files.replacing import ABANDONED_SECONDS, UNFINISHED


def at(url: str) -> dict[str, str]:
    return {"SCAN_ETL_DATABASE__URL": url}


def test_a_folder_is_filled_and_the_summary_says_with_what(cli: Command, sqlite_url: str) -> None:
    """In JSON for machines, in lines for people; a second export takes the place of the first."""
    fill(sqlite_url)
    told = cli(
        "export", "bi_scan", "--out", "lake", "--changed-since", "2026-01-01", "--json", environment=at(sqlite_url)
    )
    shown = cli("export", "bi_scan", "--out", "lake", "--changed-since", "9000d", environment=at(sqlite_url))

    said = told.json()
    assert {name: said[name] for name in ("name", "format", "out", "changed_since", "rows", "files")} == {
        "name": "bi_scan",
        "format": "parquet",
        "out": str(cli.folder / "lake"),
        "changed_since": "2026-01-01T00:00:00+00:00",
        "rows": 5,
        "files": 4,
    }
    assert datetime.fromisoformat(said["read_at"]).tzinfo
    assert "rows: 5\nfiles: 4\n" in shown.stdout
    assert len(list((cli.folder / "lake").rglob("*.parquet"))) == 4


@pytest.mark.parametrize(("out", "form"), [("some/where/x.parquet", None), ("x.csv", None), ("x", "csv"), ("x", None)])
def test_the_name_says_the_form(cli: Command, sqlite_url: str, out: str, form: str | None) -> None:
    """A folder is Parquet unless it is to be CSV; folders that aren't there are made."""
    chosen = ("--format", form) if form else ()
    done = cli("export", "bi_exit_code", "--out", out, *chosen, "--json", environment=at(sqlite_url))

    path = cli.folder / out if "." in out else cli.folder / out / f"part-0.{form or 'parquet'}"
    assert done.json()["format"] == path.suffix.removeprefix(".")
    assert path.read_bytes()[:4] == (b"PAR1" if path.suffix == ".parquet" else b"exit")


def test_csv_goes_to_stdout(cli: Command, sqlite_url: str) -> None:
    """And nothing else does."""
    done = cli("export", "bi_exit_code", environment=at(sqlite_url))

    lines = done.stdout.splitlines()
    assert lines[0] == "exit_code,meaning,fault"
    assert len(lines) == 1 + ask(sqlite_url, text("SELECT COUNT(*) FROM bi_exit_code"))[0][0]


def test_whoever_reads_a_few_rows_ends_it(cli: Command, sqlite_url: str) -> None:
    """As `head` does: no error is told."""
    done = cli.in_shell("| head -n 1; exit 0", "export", "calendar", environment=at(sqlite_url))

    assert (done.stdout, done.stderr) == ("day,week,month,quarter,year,weekday\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bi_scans", "--out", "x.csv"), "no table or view 'bi_scans'; there are bi_author_daily, bi_coverage, "),
        (("bi_scan", "--format", "parquet"), "parquet doesn't go to stdout"),
        (("bi_scan", "--json"), "--json and the rows can't both go to stdout"),
        (("bi_scan", "--out", "x.csv", "--format", "parquet"), "has another ending than --format parquet writes"),
        (("bi_scan", "--out", "folder.csv"), "is a folder named as a file"),
        (("bi_scan", "--out", "scans.db/x.csv"), "--out scans.db/x.csv can't be written: File exists"),
        (("bi_day", "--out", "x.csv", "--changed-since", "30d"), "rows of bi_day have no time of change"),
        (("bi_day", "--out", "x.csv", "--deployment", "120"), "bi_day has no deployment_id"),
        (("bi_scan", "--out", "x.csv", "--changed-since", "soon"), "neither a duration such as 7d nor an instant"),
    ],
)
def test_what_can_not_be_is_wrong_usage(cli: Command, sqlite_url: str, arguments: tuple[str, ...], said: str) -> None:
    """It is said in one sentence, with exit code 2, and nothing is written."""
    (cli.folder / "folder.csv").mkdir()
    before = sorted(cli.folder.glob("[!s]*"))
    done = cli("export", *arguments, environment=at(sqlite_url))

    assert done.exit_code == 2
    assert said in done.stderr
    assert sorted(cli.folder.glob("[!s]*")) == before


def test_parquet_without_its_library_is_said(cli: Command, sqlite_url: str, tmp_path: Path) -> None:
    """With how to install it; CSV needs none."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "pyarrow.py").write_text("raise ModuleNotFoundError('pyarrow', name='pyarrow')")
    without = {**at(sqlite_url), "PYTHONPATH": str(tmp_path / "without")}
    parquet = cli("export", "bi_scan", "--out", "lake", environment=without)
    csv = cli("export", "bi_scan", "--out", "scans.csv", environment=without)

    assert (parquet.exit_code, csv.exit_code) == (2, 0)
    assert "pip install 'scan-etl[parquet]'" in parquet.stderr
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("out", ["calendar.csv", "calendar.parquet", "calendar"])
def test_a_full_disk_leaves_what_was_there(cli: Command, sqlite_url: str, out: str) -> None:
    """It has an exit code of its own, and the next export has room: nothing of this one is left."""
    assert cli("export", "bi_exit_code", "--out", out, environment=at(sqlite_url)).exit_code == 0
    if "." not in out:
        (cli.folder / out / ".scan-etl-export-bi_exit_code-parquet-all").rename(
            cli.folder / out / ".scan-etl-export-calendar-parquet-all"
        )
    before = {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file() and ".db" not in path.name}
    done = cli.limited(65_536, "export", "calendar", "--out", out, environment=at(sqlite_url))

    assert done.exit_code == 74, done
    assert "the output can't be written (File too large)" in done.stderr
    after = {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file() and ".db" not in path.name}
    assert after == before


WAITING_FOR_A_LOCK = text(
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Nobody can read the table."""
    with closing(Database(url)) as database, database.engine.begin() as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
        connection.execute(text(f"LOCK TABLE {table}"))
        yield


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_leaves_what_was_there(cli: Command, postgres_url: str, number: int, exit_code: int) -> None:
    """What an earlier export has written is whole, and nothing of this one is left."""
    fill(postgres_url)
    cli("export", "scans", "--out", "x.parquet", environment=at(postgres_url))
    before = (cli.folder / "x.parquet").read_bytes()
    arguments = ("export", "scans", "--out", "x.parquet")
    with locked(postgres_url, "scans"), cli.start(*arguments, environment=at(postgres_url)) as process:
        while not ask(postgres_url, WAITING_FOR_A_LOCK)[0][0]:
            time.sleep(0.01)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)

    assert process.returncode == exit_code
    assert (cli.folder / "x.parquet").read_bytes() == before
    assert list(cli.folder.glob(f"{UNFINISHED}*")) == []


def test_a_kill_leaves_what_was_there(cli: Command, postgres_url: str) -> None:
    """A day later an export removes what the killed one had begun."""
    fill(postgres_url)
    arguments = ("export", "bi_scan", "--out", "lake")
    cli(*arguments, environment=at(postgres_url))
    files = sorted((cli.folder / "lake").rglob("*.parquet"))
    before = [path.read_bytes() for path in files]
    with locked(postgres_url, "scans"), cli.start(*arguments, environment=at(postgres_url)) as process:
        while not (begun := list((cli.folder / "lake").glob(f"{UNFINISHED}*"))):
            time.sleep(0.01)
        process.kill()
        process.wait(PATIENCE_SECONDS)

    assert [path.read_bytes() for path in files] == before
    assert cli(*arguments, environment=at(postgres_url)).exit_code == 0
    assert begun[0].exists()
    long_ago = time.time() - ABANDONED_SECONDS - 1
    os.utime(begun[0], (long_ago, long_ago))
    assert cli(*arguments, environment=at(postgres_url)).exit_code == 0
    assert not begun[0].exists()
    assert pq.read_table(cli.folder / "lake").num_rows == 5


MANY = (
    "INSERT INTO staged_pairs (batch, deployment_id, scan_id)"
    " SELECT 'fedcba9876543210fedcba98765432{0}', 120, ROW_NUMBER() OVER (ORDER BY a.day, b.day)"
    " FROM calendar a CROSS JOIN (SELECT day FROM calendar ORDER BY day LIMIT {0}) b"
)
"""So many times 20,000 rows."""


@pytest.mark.slow
def test_millions_take_no_more_memory_than_a_few(cli: Command, database_url: str) -> None:
    """Rows are read as a stream, however many there are."""
    assert more_memory_for_more_rows(cli, database_url, "x.csv") < 30_000


@pytest.mark.slow
def test_millions_in_parquet_take_no_more_memory_either(cli: Command, sqlite_url: str) -> None:
    """They are written as a stream, too."""
    assert more_memory_for_more_rows(cli, sqlite_url, "x.parquet") < 30_000


def more_memory_for_more_rows(cli: Command, url: str, out: str) -> int:
    """How many kilobytes more four times as many rows take."""
    peaks = []
    for times in (5, 25):
        with closing(Database(url)) as database:
            database.run_here(partial(Connection.exec_driver_sql, statement=MANY.format(times)))
        peaks.append(peak_kilobytes(cli, "export", "staged_pairs", "--out", out, url=url))
    return peaks[1] - peaks[0]


def peak_kilobytes(cli: Command, *arguments: str, url: str) -> int:
    """The most memory that the command had, in a Python of its own."""
    with Command(cli.folder).start(*arguments, environment=at(url)) as process:
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return used.ru_maxrss
