"""What a scan costs: `scan-etl run` beside the leanest pipeline and the bare client of the same libraries.

    make bench
    .venv/bin/python benchmarks/bench.py [--scans N] [--rounds N] [--memory]

CPU is that of the client's process alone, user and system, with its start; so are the peaks of memory. The
programs take turns, and each `run` is compared with the lean pipeline just before it: so what else the machine does
hits both. Speed is limited by the CPU that client, server and database share, and is shown for orientation only.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from answering_server import DEPLOYMENT_ID
from bench_databases import NewDatabase, postgresql_databases, sqlite_database

HERE = Path(__file__).resolve().parent
WORKERS = 64
PROMISE = 1.5
"""`scan-etl run` may cost so many times the CPU of the lean pipeline, on either database."""
WARM_UP_SCANS = 200
ROWS_PER_SCAN = {
    "scans": 1,
    "scan_products": 2,
    "scan_meta": 1,
    "scan_stats": 1,
    "scan_stat_items": 3,
    "fetch_queue": 0,
    "dead_letters": 0,
}
"""What a right run leaves for each scan that the server sends."""


@dataclass(frozen=True, slots=True)
class Used:
    """What one run of a client took."""

    cpu_us_per_scan: float
    peak_mib: float
    scans_per_second: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share: the server, and where new databases come from."""

    base_url: str
    databases: dict[str, NewDatabase]
    folder: Path

    def bare(self, scans: int) -> Used:
        """Only fetch."""
        return self._measure([str(HERE / "bare_client.py"), self.base_url, str(scans), str(WORKERS)], scans)

    def lean(self, dialect: str, scans: int) -> Used:
        """Fetch, decode, flatten and write, and nothing else."""
        with self.databases[dialect]() as url:
            pairs = self._pairs(scans)
            used = self._measure([str(HERE / "lean_client.py"), url, self.base_url, pairs, str(WORKERS)], scans)
            check_rows(url, scans)
        return used

    def run(self, dialect: str, scans: int) -> Used:
        """The command, as it is installed."""
        with self.databases[dialect]() as url:
            command = ["-m", "etl", "run", self._pairs(scans), "--json", "--rate", "1000000"]
            used = self._measure([*command, "--concurrency", str(WORKERS)], scans, database_url=url)
            check_rows(url, scans)
        return used

    def _pairs(self, scans: int) -> str:
        path = self.folder / f"pairs-{scans}.csv"
        if not path.exists():
            lines = (f"{DEPLOYMENT_ID},{scan_id}\n" for scan_id in range(1, scans + 1))
            path.write_text("deployment_id,scan_id\n" + "".join(lines))
        return str(path)

    def _measure(self, arguments: Sequence[str], scans: int, database_url: str = "") -> Used:
        command = [sys.executable, "-I", "-S", str(HERE / "child_usage.py"), sys.executable, *arguments]
        # Nor what the shell asks of Python: with PYTHONDONTWRITEBYTECODE most of a start would be compiling.
        others = ("SCAN_ETL_", "SEMGREP_", "PYTHON")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        environment |= {
            "SCAN_ETL_API__BASE_URL": self.base_url,
            "SCAN_ETL_DATABASE__URL": database_url,
            "SEMGREP_APP_TOKEN": "benchmark",
        }
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        used = json.loads(done.stdout.splitlines()[-1])
        if used["exit_code"] != 0:
            sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr[-4000:]}")
        return Used(
            cpu_us_per_scan=used["cpu_seconds"] / scans * 1e6,
            peak_mib=used["peak_bytes"] / 2**20,
            scans_per_second=scans / used["elapsed_seconds"],
        )


def check_rows(url: str, scans: int) -> None:
    """Exit unless the tables hold what they should: a client that loads half is not twice as fast."""
    path = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path) if path != url else psycopg.connect(url)) as connection:
        for table, rows in ROWS_PER_SCAN.items():
            query = f"SELECT count(*) FROM {table}"
            found = next(iter(connection.execute(query)))[0]
            if found != rows * scans:
                sys.exit(f"{table} has {found} rows instead of {rows * scans}: the figures would be void")


@contextmanager
def answering_server() -> Iterator[str]:
    """The base URL of the server that answers at once."""
    command = [sys.executable, str(HERE / "answering_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        output: Any = server.stdout  # a pipe, as asked for
        yield output.readline().strip()
        server.communicate()


@contextmanager
def opened(dialects: Sequence[str]) -> Iterator[Bench]:
    """The server, the databases and a folder, as long as the block lasts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        databases: dict[str, NewDatabase] = {"sqlite": sqlite_database}
        if "postgresql" in dialects:
            databases["postgresql"] = stack.enter_context(postgresql_databases())
        yield Bench(stack.enter_context(answering_server()), databases, folder)


def compare(scans: int, rounds: int) -> None:
    """Print the table: all programs in turn, `rounds` times."""
    dialects = ("sqlite", "postgresql")
    found: dict[str, list[Used]] = {}
    with opened(dialects) as bench:
        for number in range(rounds + 1):
            # The round before the first fills the caches of the interpreter and of the disk; it doesn't count.
            size = scans if number else WARM_UP_SCANS
            results = {"bare": bench.bare(size)}
            for dialect in dialects:
                results[f"lean {dialect}"] = bench.lean(dialect, size)
                results[f"run {dialect}"] = bench.run(dialect, size)
            if number:
                for name, used in results.items():
                    found.setdefault(name, []).append(used)
                print(f"round {number} of {rounds}", file=sys.stderr)
    print(f"{scans:,} scans, {WORKERS} in flight, {rounds} rounds: medians\n")
    print(f"{'':18}{'CPU us/scan':>12}{'lowest':>9}{'highest':>9}{'peak MiB':>10}{'scans/s':>9}")
    for name, uses in found.items():
        cpu = [used.cpu_us_per_scan for used in uses]
        peak, speed = (median(values) for values in zip(*((u.peak_mib, u.scans_per_second) for u in uses), strict=True))
        print(f"{name:18}{median(cpu):12.1f}{min(cpu):9.1f}{max(cpu):9.1f}{peak:10.1f}{speed:9,.0f}")
    print(f"\nrun / lean, in the same round (promised: at most {PROMISE} of CPU)")
    for dialect in dialects:
        turns = list(zip(found[f"run {dialect}"], found[f"lean {dialect}"], strict=True))
        cpu = [run.cpu_us_per_scan / lean.cpu_us_per_scan for run, lean in turns]
        memory = median(run.peak_mib / lean.peak_mib for run, lean in turns)
        print(f"{dialect:18}CPU {median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}), memory {memory:.2f}")


def show_memory(sizes: Sequence[int]) -> None:
    """Print the peak of `run` on SQLite for each number of pairs: it should not grow with them."""
    with opened(["sqlite"]) as bench:
        bench.run("sqlite", WARM_UP_SCANS)
        for scans in sizes:
            print(f"run sqlite, {scans:9,} pairs: peak {bench.run('sqlite', scans).peak_mib:.1f} MiB", flush=True)


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description="Measure what a scan costs.")
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="show that memory doesn't grow with the pairs")
    options = parser.parse_args()
    if options.memory:
        show_memory([20_000, 100_000])
    else:
        compare(options.scans, options.rounds)


if __name__ == "__main__":
    main()
