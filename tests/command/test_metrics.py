"""What Prometheus reads of a run: a file at its end, and a port of a worker."""

import os
import random
import re
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from postgres_server import StartPostgres
from sandbox_thread import RunningSandbox, finished_world, running_sandbox
from worker_processes import wait_until

from etl.database.migrate import upgrade
from etl.model import RUN_COUNTS
from etl.sandbox import Behaviour
from etl.telemetry.histogram import Histogram
from etl.telemetry.prometheus import CONTENT_TYPE, METRICS, Sample, exposition, write

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "metrics.md").read_text()
LINE = re.compile(r"scan_etl_([a-z_]+)(\{.*\})? (-?[0-9.e+]+)")


def read(text: str) -> dict[str, float]:
    """The value of each metric by its name, with its labels but for that of the command."""
    lines = [LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(lines), text
    return {
        f"scan_etl_{line[1]}{re.sub('{command=.[a-z]+.}', '', line[2] or '')}": float(line[3]) for line in lines if line
    }


def approved(promtool: str, text: str) -> str:
    """What `promtool check metrics` has to say: nothing."""
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}"


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


def served(port: int, path: str = "metrics") -> tuple[int, str]:
    """The status and the text; (0, "") as long as nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as response:
            assert path != "metrics" or response.headers["Content-Type"] == CONTENT_TYPE
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def scraped(port: int) -> dict[str, float]:
    return read(served(port)[1])


def with_port(sandbox: RunningSandbox, port: int) -> dict[str, str]:
    return sandbox.environment(SCAN_ETL_OBSERVE__METRICS_PORT=str(port))


def test_a_metric_has_its_meaning_its_type_and_its_samples() -> None:
    """What only rises while a run goes on is a counter, and says so in its name; durations are counted by bounds."""
    times = Histogram()
    times.observe(0.2)
    times.observe(99.0)
    text = exposition(
        [
            Sample("requests_total", 7, {"command": "worker"}),
            Sample("queue_pairs", 2, {"state": "due"}),
            Sample("request_duration_seconds", times, {"command": "worker"}),
            Sample("queue_pairs", 3, {"state": "leased"}),
        ]
    )

    assert text.startswith(
        "# HELP scan_etl_requests_total Since the start: HTTP requests sent.\n"
        "# TYPE scan_etl_requests_total counter\n"
        'scan_etl_requests_total{command="worker"} 7\n'
        "# HELP scan_etl_queue_pairs Pairs in the queue, by state.\n"
        "# TYPE scan_etl_queue_pairs gauge\n"
        'scan_etl_queue_pairs{state="due"} 2\n'
        'scan_etl_queue_pairs{state="leased"} 3\n'
    )
    buckets = re.findall(r'_bucket\{command="worker",le="(.+)"\} (\d)', text)
    assert [count for _, count in buckets] == ["0", "0", *["1"] * 8, "2"]
    assert (buckets[2], buckets[-1]) == (("0.25", "1"), ("+Inf", "2"))
    assert 'scan_etl_request_duration_seconds_sum{command="worker"} 99.2\n' in text
    assert 'scan_etl_request_duration_seconds_count{command="worker"} 2\n' in text


@pytest.mark.parametrize("name", METRICS)
def test_the_docs_say_what_each_metric_means(name: str) -> None:
    """docs/metrics.md has a row for each, word by word, in the table of where it is."""
    kind, meaning = METRICS[name]

    assert DOCS.count(f"| `scan_etl_{name}` | {kind} | {meaning} |\n") == 1


def test_the_docs_name_no_metric_that_there_is_not() -> None:
    """Nor do the alert rules."""
    rules = (ROOT / "deploy" / "prometheus" / "scan-etl.rules.yml").read_text()
    suffixed = {f"request_duration_seconds_{suffix}" for suffix in ("bucket", "sum", "count")}

    assert set(re.findall(r"scan_etl_(\w+)", DOCS + rules)) - suffixed <= METRICS.keys()


def test_promtool_finds_nothing_wrong(cli: Command, promtool: str) -> None:
    """Neither with the file of a run nor with the port of a worker."""
    port = free_port()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = with_port(sandbox, port) | {"SCAN_ETL_OBSERVE__METRICS_FILE": "scan-etl.prom"}
        cli("run", "-", stdin="120 1\n120 9999999\n", environment=variables)
        cli("enqueue", "-", stdin="120 2\n", environment=variables)
        with cli.start("worker", environment=variables):
            names = ("scan_etl_queue_pairs", "scan_etl_gate_open")
            wait_until("it has looked and asked", lambda: all(name in served(port)[1] for name in names))
            of_worker = served(port)[1]

    of_run = (cli.folder / "scan-etl.prom").read_text()
    assert approved(promtool, of_run) == ""
    assert approved(promtool, of_worker) == ""
    assert {name for name in METRICS if name not in of_run + of_worker} <= {"queue_oldest_due_timestamp_seconds"}


def test_the_alert_rules_ring_when_they_should(promtool: str) -> None:
    """Each of them, and none on a good night: tests/support/alerts.yml has the cases."""
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.yml"],
        cwd=ROOT / "tests" / "support",
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_the_file_has_what_the_tables_say(cli: Command, tmp_path: Path) -> None:
    """The depth of the queue by state, since when the oldest pair is due, the dead letters by kind of error, and when a
    run of each command last went well, also after one that didn't."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables = sandbox.environment(SCAN_ETL_OBSERVE__METRICS_FILE="scan-etl.prom")
        cli("run", "-", stdin="120 1\n120 9999999\n", environment=variables)
        good = read((tmp_path / "scan-etl.prom").read_text())
        cli("enqueue", "-", stdin="120 2\n120 3\n", environment=variables)
        cli("run", "nowhere.csv", environment=variables)
        bad = read((tmp_path / "scan-etl.prom").read_text())

    success = "scan_etl_last_success_timestamp_seconds"
    assert good[success] == pytest.approx(good["scan_etl_finished_timestamp_seconds"], abs=2.0)
    assert bad[success] == good[success]
    assert (good["scan_etl_exit_code"], bad["scan_etl_exit_code"]) == (1, 2)
    assert bad['scan_etl_dead_letters{error_kind="not_found"}'] == 1
    assert bad['scan_etl_dead_letters{error_kind="expired"}'] == bad["scan_etl_listing_gaps"] == 0
    assert (good['scan_etl_queue_pairs{state="due"}'], bad['scan_etl_queue_pairs{state="due"}']) == (0, 2)
    assert "scan_etl_queue_oldest_due_timestamp_seconds" not in good
    assert bad["scan_etl_queue_oldest_due_timestamp_seconds"] > good["scan_etl_finished_timestamp_seconds"] - 2.0
    assert good["scan_etl_request_duration_seconds_count"] == good["scan_etl_requests"]


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
    assert second["scan_etl_finished_timestamp_seconds"] > first["scan_etl_finished_timestamp_seconds"]
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


def test_probes_say_whether_a_worker_lives_and_can_work(cli: Command, start_postgres: StartPostgres) -> None:
    """It is ready once its database is there, and not while that is away; it is alive in any case."""
    port = free_port()
    server = start_postgres()
    upgrade(server.url())
    server.kill()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = with_port(sandbox, port) | {"SCAN_ETL_DATABASE__URL": server.url()}
        with cli.start("worker", environment=variables):
            wait_until("it waits", lambda: served(port, "readyz")[1].startswith("the database is unavailable"))
            waiting, alive = served(port, "readyz")[0], served(port, "healthz")
            not_ready = scraped(port)["scan_etl_ready"]
            server.start()
            wait_until("it is ready", lambda: served(port, "readyz") == (200, "ready\n"))
            ready = scraped(port)["scan_etl_ready"]

    assert (waiting, alive) == (503, (200, "alive\n"))
    assert (not_ready, ready) == (0, 1)


def test_the_port_shows_the_pace_and_the_gate_of_each_token(cli: Command) -> None:
    """The gate is closed while the API refuses."""
    port = free_port()
    with running_sandbox(finished_world(50), Behaviour(rate_limit=1.0, retry_after="seconds")) as sandbox:
        variables = with_port(sandbox, port)
        cli("enqueue", "-", stdin=sandbox.pairs_text(), environment=variables)
        with cli.start("worker", environment=variables):
            gate = 'scan_etl_gate_open{deployment_id="120"}'
            wait_until("it is refused", lambda: scraped(port).get(gate) == 0)
            shown = scraped(port)

    assert shown['scan_etl_pace_requests_per_second{deployment_id="120"}'] > 0
    assert shown["scan_etl_rate_limited_total"] >= 1
    assert shown['scan_etl_halted_deployments{reason="token"}'] == 0


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
