"""What Prometheus reads of a run: a file at its end, and a port of a worker."""

import os
import random
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from worker_processes import wait_until

from etl.model import RUN_COUNTS
from etl.telemetry.prometheus import CONTENT_TYPE, exposition, write

LINE = re.compile(r'scan_etl_[a-z_]+\{command="[a-z]+"\} -?[0-9.]+')


def read(text: str) -> dict[str, float]:
    """The value of each metric, without its label."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines), lines
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def free_port() -> int:
    """One that is free, and so is the one after it. Not of those that systems give to whoever asks for any: between
    this moment and the worker's, another test could get it."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            continue


def scraped(port: int) -> dict[str, float]:
    """Empty as long as nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            assert response.headers["Content-Type"] == CONTENT_TYPE
            return read(response.read().decode())
    except urllib.error.URLError:
        return {}


def with_port(sandbox: RunningSandbox, port: int) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_OBSERVE__METRICS_PORT=str(port))


def test_each_count_is_a_metric_with_its_type() -> None:
    """What only rises while a run goes on is a counter, and says so in its name. What a run has come to is a gauge."""
    going_on = exposition("worker", {"requests": 7, "remaining": 2})
    ended = exposition("sync", {"requests": 7, "exit_code": 0})

    assert going_on == (
        "# TYPE scan_etl_requests_total counter\n"
        'scan_etl_requests_total{command="worker"} 7\n'
        "# TYPE scan_etl_remaining gauge\n"
        'scan_etl_remaining{command="worker"} 2\n'
    )
    assert ended == (
        "# TYPE scan_etl_requests gauge\n"
        'scan_etl_requests{command="sync"} 7\n'
        "# TYPE scan_etl_exit_code gauge\n"
        'scan_etl_exit_code{command="sync"} 0\n'
    )


def test_a_run_leaves_its_metrics_in_the_file(cli: Command, tmp_path: Path) -> None:
    """All counts of the summary, those of the latest run, and nothing beside the file."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = sandbox.environment(SCAN_ETL_OBSERVE__METRICS_FILE=str(folder / "scan-etl.prom"))
        cli("run", "-", stdin="120 1\n120 9999999\n", environment=variables)
        first = read((folder / "scan-etl.prom").read_text())
        summary = cli("run", "-", "--json", stdin="120 1\n120 2\n120 3\n", environment=variables).json()
        second = read((folder / "scan-etl.prom").read_text())

    assert (first["scan_etl_dead"], first["scan_etl_exit_code"]) == (1, 1)
    assert second.keys() == first.keys()
    for name in RUN_COUNTS:
        assert second[f"scan_etl_{name}"] == summary[name]
    assert second["scan_etl_finished_at_seconds"] > first["scan_etl_finished_at_seconds"]
    assert [path.name for path in folder.iterdir()] == ["scan-etl.prom"]


def test_a_file_that_cannot_be_written_costs_the_run_nothing(cli: Command) -> None:
    """It is told of, with the setting to look at, and the exit code is that of the run."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables = sandbox.environment(SCAN_ETL_OBSERVE__METRICS_FILE="nowhere/scan-etl.prom")
        outcome = cli("run", "-", "--json", stdin="120 1\n", environment=variables)

    assert (outcome.exit_code, outcome.json()["fetched"]) == (0, 1)
    assert "check [observe] metrics_file" in outcome.stderr
    assert "nowhere/scan-etl.prom" in outcome.stderr


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """Root could: `/dev/null`, for one, is a way to say that nobody reads them."""
    device = tmp_path / "null"
    os.mkfifo(device)

    with pytest.raises(OSError, match="no regular file"):
        write(device, "text")

    assert device.is_fifo()


def test_a_worker_serves_its_metrics(cli: Command) -> None:
    """As they are at the moment."""
    port = free_port()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = with_port(sandbox, port)
        cli("enqueue", "-", stdin="120 1\n120 2\n", environment=variables)
        with cli.start("worker", environment=variables) as worker:
            wait_until("both are counted", lambda: scraped(port).get("scan_etl_fetched_total") == 2)
            cli("enqueue", "-", stdin="120 3\n", environment=variables)
            wait_until("the third is, too", lambda: scraped(port).get("scan_etl_fetched_total") == 3)
            worker.terminate()
            worker.wait(PATIENCE_SECONDS)

        assert worker.returncode == 143
    assert scraped(port) == {}


def test_each_of_several_workers_has_a_port_of_its_own(cli: Command) -> None:
    """From the one in the settings on."""
    port = free_port()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = with_port(sandbox, port)
        cli("db", "upgrade", environment=variables)
        with cli.start("worker", "--processes", "2", environment=variables) as supervisor:
            wait_until("both answer", lambda: scraped(port) and scraped(port + 1))
            supervisor.terminate()
            supervisor.wait(PATIENCE_SECONDS)

    assert supervisor.returncode == 143


def test_a_port_that_is_taken_is_a_wrong_setting(cli: Command) -> None:
    """The worker says which one, and starts nothing."""
    with running_sandbox(finished_world(5)) as sandbox, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cli("worker", environment=with_port(sandbox, port))

    assert outcome.exit_code == 2
    assert f"observe.metrics_port: can't listen on port {port}" in outcome.stderr
    assert "choose another" in outcome.stderr
