"""The lines that the README gives a newcomer do what it says, as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
from patience import PATIENCE_SECONDS
from quiet_sandbox import quiet_sandbox
from sandbox_thread import TOKEN

from etl.cli.main import cli

README = (Path(__file__).parents[2] / "README.md").read_text()
SYSTEM_PATH = "/usr/bin:/bin"


def block(begins: str) -> str:
    """The block of code that begins so."""
    [found] = re.findall(rf"^```(?:sh)?\n({re.escape(begins)}.*?)^```", README, re.DOTALL | re.MULTILINE)
    return str(found)


def install(folder: Path) -> None:
    """Put the command where pipx puts it in this home."""
    program = folder / ".local" / "bin" / "scan-etl"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m etl "$@"\n')
    program.chmod(0o755)


def shell(folder: Path, script: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run lines in this home, with nothing in the environment but what a login or cron gives."""
    return subprocess.run(
        ["/bin/sh", "-e", "-c", script],
        cwd=folder,
        env={"HOME": str(folder), "LOGNAME": "you", "SHELL": "/bin/sh", "PATH": SYSTEM_PATH, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def test_three_lines_lead_to_a_report(tmp_path: Path) -> None:
    """With a token in place of the dots, they store the scans of the last 30 days and draw them."""
    install(tmp_path)
    [path] = re.findall("^export PATH.*$", README, re.MULTILINE)
    lines = block("export SEMGREP_APP_TOKEN").replace("...", TOKEN)
    with quiet_sandbox(20) as (sandbox, scans):
        done = shell(tmp_path, f"{path}\n{lines}", SCAN_ETL_API__BASE_URL=sandbox.base_url)

    assert len(lines.splitlines()) == 3
    assert done.returncode == 0, done
    assert re.search(f"^fetched +{scans}$", done.stdout, re.MULTILINE), done
    assert (tmp_path / "scans.db").exists()
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_the_line_for_cron_works_in_its_environment(tmp_path: Path) -> None:
    """The folder and the token are made as the README says; cron gives the line a home and a bare path, and no more."""
    install(tmp_path)
    [prepare, edit] = block("mkdir").splitlines()
    [line] = block("17 2 * * *").splitlines()
    prepared = shell(tmp_path, prepare)
    folder = tmp_path / "scan-etl"
    (folder / "token").write_text(f"{TOKEN}\n")
    with quiet_sandbox(20) as (sandbox, scans):
        (folder / "config.toml").write_text(f'[api]\nbase_url = "{sandbox.base_url}"\n')
        done = shell(tmp_path, line.split(maxsplit=5)[5])

    assert (edit, prepared.returncode, prepared.stderr) == ("crontab -e", 0, "")
    assert (folder / "token").stat().st_mode & 0o077 == 0
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    assert json.loads((folder / "runs.jsonl").read_text())["fetched"] == scans
    assert "run ended" in (folder / "sync.log").read_text()
    assert "%" not in line


def test_the_container_gets_a_command_that_there_is() -> None:
    """Its image has the name under which it was built, from a file that is there."""
    build, start = block("docker build").splitlines()
    words = shlex.split(start)
    image = shlex.split(build)[shlex.split(build).index("-t") + 1]
    name, *rest = words[words.index(image) + 1 :]
    command = cli.get_command(click.Context(cli), name)

    assert (Path(__file__).parents[2] / shlex.split(build)[3]).is_file()
    assert command is not None
    command.make_context("scan-etl", rest)
