"""The files in deploy/ fit the command: its options, its variables, its exit codes, its times. And they work."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from patience import PATIENCE_SECONDS
from quiet_sandbox import quiet_sandbox
from sandbox_thread import TOKEN, finished_world, running_sandbox

from etl.app.run import LONGEST_STOP_SECONDS
from etl.cli.main import cli
from etl.cli.options import Duration
from etl.config.privacy_key import PRIVACY_KEY_VARIABLES
from etl.config.settings import load_settings, origins
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.sandbox import Behaviour
from etl.sandbox.faults import Fault

ROOT = Path(__file__).parents[2]
GUIDE = "docs/deploy.md"
CRONTAB = "deploy/crontab"
SYNC_UNIT = "deploy/systemd/scan-etl-sync.service"
WORKER_UNIT = "deploy/systemd/scan-etl-worker@.service"
CRONJOB = "deploy/kubernetes/cronjob.yaml"
WORKER_POD = "deploy/kubernetes/worker.yaml"
COMPOSE = "deploy/compose.yml"
DAG = "deploy/airflow/scan_etl_dag.py"
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / GUIDE, *(ROOT / "deploy").rglob("*")]
    if path.is_file() and path.suffix != ".pyc"
}


def command_lines(text: str) -> list[str]:
    """What follows the command's name, wherever a file says what to start."""
    in_shells = re.findall(r"/opt/scan-etl/bin/scan-etl((?: [\w./:=-]+)+)", text)
    return [*in_shells, *(line.replace(",", " ") for line in re.findall(r"(?:args|command): \[(.*)\]", text))]


COMMAND_LINES = [(name, line) for name, text in TEXTS.items() for line in command_lines(text)]


@pytest.mark.parametrize(("name", "line"), COMMAND_LINES)
def test_a_command_line_is_one_that_the_command_takes(name: str, line: str) -> None:
    """Each command and option exists, and takes the value that it is given."""
    words = shlex.split(line)
    command: click.Command | None = cli
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(cli), words.pop(0))

    assert command is not None, f"{name} starts {line}"
    command.make_context("scan-etl", words)


def test_each_way_to_start_it_is_among_them() -> None:
    """No file is passed over because it is written in another way."""
    named = {name for name, _ in COMMAND_LINES}

    assert named >= {GUIDE, CRONTAB, SYNC_UNIT, WORKER_UNIT, CRONJOB, WORKER_POD, COMPOSE, DAG}


@pytest.mark.parametrize("name", TEXTS)
def test_a_variable_is_one_that_is_read(name: str, tmp_path: Path) -> None:
    """Settings, tokens and the key of pseudonyms have the names that the command knows."""
    (tmp_path / "token").write_text(TOKEN)
    known = {
        "SCAN_ETL_" + origin.key.replace(".", "__").upper()
        for origin in origins(load_settings(config_file=None, flags={}, environ={}, directory=tmp_path))
    }
    settings = set(re.findall(r"\bSCAN_ETL_[A-Z_]+", TEXTS[name]))
    tokens = set(re.findall(r"\bSEMGREP_\w+", TEXTS[name]))

    assert settings <= known | {*PRIVACY_KEY_VARIABLES}
    for variable in tokens:
        value = str(tmp_path / "token") if variable.endswith("_FILE") else TOKEN
        assert load_tokens({variable: value}).variables == (variable,)


def exit_codes(table: str) -> set[int]:
    """The numbers in the first column of the Markdown table of exit codes."""
    rows = re.search(r"\| exit code \|.*?\n\n", table, re.DOTALL)
    assert rows
    return {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", rows[0], re.MULTILINE) for code in row.split(", ")}


DOCUMENTED = exit_codes((ROOT / "docs" / "running.md").read_text())


def test_the_guide_tells_every_exit_code() -> None:
    """What each scheduler makes of an exit code is said for all of them."""
    assert exit_codes(TEXTS[GUIDE]) == DOCUMENTED


@pytest.mark.parametrize(
    ("name", "pattern", "count"),
    [
        (SYNC_UNIT, r"ExitStatus=([\d ]+)", 1),
        (WORKER_UNIT, r"ExitStatus=([\d ]+)", 3),
        (CRONJOB, r"values: \[([\d, ]+)\]", 5),
        (DAG, r"\$code = (\d+)", 1),
    ],
)
def test_an_exit_code_that_is_treated_apart_is_a_documented_one(name: str, pattern: str, count: int) -> None:
    """No rule waits for a code that never comes."""
    codes = [int(code) for line in re.findall(pattern, TEXTS[name]) for code in re.findall(r"\d+", line)]

    assert len(codes) == count
    assert set(codes) <= DOCUMENTED


def test_the_guides_query_runs(database_url: str) -> None:
    """What the guide tells a watch to ask is valid SQL on each dialect."""
    (query,) = re.findall(r"```sql\n(.*?);\n```", TEXTS[GUIDE], re.DOTALL)
    with closing(Database(database_url)) as database:
        newest = database.run_here(lambda connection: connection.exec_driver_sql(query).scalar())

    assert newest is None


def seconds(text: str) -> float:
    return Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (SYNC_UNIT, r"TimeoutStopSec=(\d+)"),
        (WORKER_UNIT, r"TimeoutStopSec=(\d+)"),
        (CRONJOB, r"terminationGracePeriodSeconds: (\d+)"),
        (WORKER_POD, r"terminationGracePeriodSeconds: (\d+)"),
        (COMPOSE, r"(?s)  worker:\n.*?stop_grace_period: (\d+)s"),
        (COMPOSE, r"(?s)  sync:\n.*?stop_grace_period: (\d+)s"),
    ],
)
def test_a_stop_has_the_time_that_it_takes(name: str, pattern: str) -> None:
    """The command is killed only after it would have ended by itself."""
    (given,) = re.findall(pattern, TEXTS[name])

    assert seconds(given) > LONGEST_STOP_SECONDS


@pytest.mark.parametrize(
    ("name", "pattern", "unit"),
    [
        (SYNC_UNIT, r"TimeoutStartSec=(\d+h)", ""),
        (CRONJOB, r"activeDeadlineSeconds: (\d+)", "s"),
        (DAG, r"execution_timeout=timedelta\(hours=(\d+)\)", "h"),
    ],
)
def test_the_deadline_comes_before_the_schedulers_own_limit(name: str, pattern: str, unit: str) -> None:
    """A long sync ends by itself, with its summary and its exit code."""
    (limit,) = re.findall(pattern, TEXTS[name])
    (deadline,) = re.findall(r"--deadline,? (\d+[smhd])", TEXTS[name])

    assert seconds(limit + unit) > seconds(deadline)


# The nightly commands, run as their schedulers run them: in an environment that holds nothing else.


@dataclass(frozen=True, slots=True)
class Start:
    """A command line, and the environment that it is started in."""

    words: list[str]
    environment: dict[str, str]


def cron_starts(text: str) -> Start:
    environment = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    (line,) = re.findall(r"^(?:[\d*]+ ){5}\S+ (.*)$", text, re.MULTILINE)
    return Start([environment["SHELL"], "-c", line], environment)


def systemd_starts(text: str) -> Start:
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    (credential, source) = re.findall(r"^LoadCredential=(.*):(.*)$", text, re.MULTILINE)[0]
    (variable,) = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
    name, _, value = variable.replace(f"%d/{credential}", source).partition("=")
    return Start(shlex.split(line), {name: value})


def airflow_starts(text: str) -> Start:
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (environment,) = re.findall(r"env=(\{.+\})", text)
    return Start(["bash", "-c", constants["SYNC"]], ast.literal_eval(environment))


def kubernetes_starts(text: str) -> Start:
    (line,) = command_lines(text)
    return Start(
        ["/opt/scan-etl/bin/scan-etl", *shlex.split(line)],
        {"SEMGREP_APP_TOKEN_FILE": "/etc/scan-etl/token", "SCAN_ETL_DATABASE__URL": "sqlite:////etc/scan-etl/scans.db"},
    )


def compose_starts(text: str) -> Start:
    sync = yaml.safe_load(text)["services"]["sync"]
    return Start(["/opt/scan-etl/bin/scan-etl", *sync["command"]], sync["environment"])


STARTS: dict[str, Callable[[str], Start]] = {
    CRONTAB: cron_starts,
    SYNC_UNIT: systemd_starts,
    DAG: airflow_starts,
    CRONJOB: kubernetes_starts,
    COMPOSE: compose_starts,
}
IN_CONTAINERS = (CRONJOB, COMPOSE)
PLACES = {
    "/opt/scan-etl/bin": "bin",
    "/etc/scan-etl": "etc",
    "/run/secrets": "etc",
    "/var/log/scan-etl": "log",
}
"""Where the files are, by where a machine has them."""


def start(name: str, folder: Path, base_url: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    """Run a file's nightly command, with `folder` in place of the machine's folders."""
    for each in ("bin", "etc", "log"):
        (folder / each).mkdir()
    program = folder / "bin" / "scan-etl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m etl "$@"\n')
    program.chmod(0o755)
    (folder / "etc" / "token").write_text(f"{token}\n")
    url = f"sqlite:///{folder}/etc/scans.db"
    settings = f'[api]\nrate = 5000.0\nbase_url = "{base_url}"\n[database]\nurl = "{url}"\n'
    (folder / "etc" / "config.toml").write_text(settings)
    (folder / "etc" / "database-url").write_text(url)
    text = TEXTS[name]
    chosen = STARTS[name](text)
    settings_of_container = {"SCAN_ETL_API__BASE_URL": base_url} if name in IN_CONTAINERS else {}
    environment = settings_of_container | chosen.environment

    def here(word: str) -> str:
        for there, place in PLACES.items():
            word = word.replace(there, str(folder / place))
        return word

    return subprocess.run(
        [here(word) for word in chosen.words],
        env={variable: here(value) for variable, value in environment.items()},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def summary(name: str, folder: Path, output: str) -> dict[str, int]:
    printed: dict[str, int] = json.loads((folder / "log" / "runs.jsonl").read_text() if name == CRONTAB else output)
    return printed


@pytest.mark.parametrize("name", STARTS)
def test_the_nightly_command_fetches_what_is_new(name: str, tmp_path: Path) -> None:
    """Started with nothing but what its file gives it, the sync stores every scan; cron has nothing to mail."""
    with quiet_sandbox(30) as (sandbox, scans_there):
        done = start(name, tmp_path, sandbox.base_url)

    assert done.returncode == 0, done
    counts = summary(name, tmp_path, done.stdout)
    assert counts["fetched"] == counts["discovered"] == scans_there
    assert name != CRONTAB or done.stdout + done.stderr == ""


@pytest.mark.parametrize("name", [CRONTAB, DAG])
def test_a_shell_lets_dead_letters_pass(name: str, tmp_path: Path) -> None:
    """Exit code 1 is in cron's mail, and Airflow leaves it to the task after; the summary is there as always."""
    gone = Behaviour(faults=(Fault("status-404", 1.0, 0),))
    with quiet_sandbox(30, gone) as (sandbox, scans_there):
        done = start(name, tmp_path, sandbox.base_url)

    assert done.returncode == 0, done
    counts = summary(name, tmp_path, done.stdout)
    assert counts["dead"] == counts["discovered"] == scans_there
    assert name != CRONTAB or "exit code 1:" in done.stdout


@pytest.mark.parametrize(("name", "exit_code"), [(CRONTAB, 0), (DAG, 3)])
def test_a_shell_tells_that_the_token_is_refused(name: str, exit_code: int, tmp_path: Path) -> None:
    """Exit code 3 is in cron's mail, and reaches Airflow as it is."""
    with running_sandbox(finished_world(3)) as sandbox:
        done = start(name, tmp_path, sandbox.base_url, token="wrong")

    assert done.returncode == exit_code, done
    assert name != CRONTAB or "exit code 3:" in done.stdout
