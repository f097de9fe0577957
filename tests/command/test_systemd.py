"""What systemd is told of a worker, over a real socket."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command import Command
from patience import PATIENCE_SECONDS
from postgres_server import StartPostgres
from sandbox_thread import finished_world, running_sandbox

from etl.telemetry.systemd import notify, watchdog_seconds


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The end of systemd."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(PATIENCE_SECONDS)
        yield end


def told(systemd: socket.socket, words: str) -> list[str]:
    """What it is told, up to something that begins with these words."""
    messages = list[str]()
    while not messages or not messages[-1].startswith(words):
        messages.append(systemd.recv(4096).decode())
    return messages


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_is_ready_alive_and_stopping(
    cli: Command, systemd: socket.socket, tmp_path: Path, sqlite_url: str, processes: str
) -> None:
    """It says that it lives as often as systemd wants to hear it; of several processes the first one speaks."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables = sandbox.environment(
            NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000", SCAN_ETL_DATABASE__URL=sqlite_url
        )
        with cli.start("worker", "--processes", processes, environment=variables) as worker:
            before = told(systemd, "READY=1")
            told(systemd, "WATCHDOG=1")
            told(systemd, "WATCHDOG=1")
            worker.terminate()
            after = told(systemd, "STOPPING=1")
            worker.wait(PATIENCE_SECONDS)

    assert worker.returncode == 143
    assert set(before[:-1]) <= {"WATCHDOG=1"}
    assert set(after[:-1]) <= {"WATCHDOG=1"}


def test_a_worker_that_waits_for_its_database_is_up(
    cli: Command, systemd: socket.socket, tmp_path: Path, start_postgres: StartPostgres
) -> None:
    """A start of the service doesn't hang for it, and the status tells."""
    server = start_postgres()
    server.kill()
    with running_sandbox(finished_world(5)) as sandbox:
        variables = sandbox.environment(NOTIFY_SOCKET=str(tmp_path / "notify"), SCAN_ETL_DATABASE__URL=server.url())
        with cli.start("worker", environment=variables):
            [message] = told(systemd, "READY=1")

    assert message == "READY=1\nSTATUS=waiting for the database"


def test_what_is_no_socket_is_let_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without systemd nothing is told, and a socket that nobody reads ends nothing. An abstract one has an @."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    notify("READY=1")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as end:
        end.bind(f"\0{tmp_path}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        notify("READY=1", "STATUS=at work")
        message = end.recv(4096)

    assert message == b"READY=1\nSTATUS=at work"


@pytest.mark.parametrize(
    ("microseconds", "process_id", "expected"),
    [("10000000", None, 5.0), ("10000000", os.getpid, 5.0), ("10000000", os.getppid, None), ("", None, None)],
)
def test_the_watchdog_hears_twice_as_often_as_it_must(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, process_id: Callable[[], int] | None, expected: float | None
) -> None:
    """If it watches this process, and not the one that has started it."""
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if process_id is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(process_id()))

    assert watchdog_seconds() == expected
