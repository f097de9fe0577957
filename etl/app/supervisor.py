"""Several worker processes on one machine, to use its cores: `worker --processes N`."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from etl.telemetry import systemd

RESTART_SECONDS = 1.0
LASTING_EXITS = frozenset({0, 2, 3, 4, 5})
"""Exit codes that a new start wouldn't change: a worker waits by itself for an unavailable API or database."""


def run_processes(count: int, arguments: Sequence[str], metrics_port: int = 0) -> int:
    """Keep `count` workers of this command line running until a signal, and return the exit code.

    One that crashes is started again. One that ends for good (settings, token, schema, no error at all) ends them all.
    They end by themselves when this process is gone. Where metrics are served, each has a port of its own, from
    `metrics_port` on.
    """
    words = [sys.executable, "-m", "etl", *_without_processes(arguments), "--end-with-stdin"]
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    # A group of their own: Ctrl-C reaches them through us, once.
    environments = [_environment(metrics_port + place if metrics_port else 0) for place in range(count)]
    workers = [_start(words, environment) for environment in environments]
    exit_code: int | None = None
    systemd.notify(systemd.READY)
    while not received and exit_code is None:
        time.sleep(0.2)
        if systemd.watchdog_seconds():
            systemd.notify(systemd.ALIVE)
        for place, worker in enumerate(workers):
            code = worker.poll()
            if code is None:
                continue
            if code in LASTING_EXITS:
                exit_code = code
                break
            time.sleep(RESTART_SECONDS)
            workers[place] = _start(words, environments[place])
    systemd.notify(systemd.STOPPING)
    return _end(workers, received, exit_code or 0)


def _environment(metrics_port: int) -> dict[str, str]:
    # systemd is told by this process alone: it listens to no other one.
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return {**kept, "SCAN_ETL_OBSERVE__METRICS_PORT": str(metrics_port)}


def _start(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Nothing is written into the pipe. It ends when this process does, however it ends.
    return subprocess.Popen(  # noqa: S603 - our own command line
        words, stdin=subprocess.PIPE, start_new_session=True, env=environment
    )


def end_with_stdin() -> None:
    """Ask this process to stop, as SIGTERM does, when its stdin ends."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _end(workers: Sequence[subprocess.Popen[bytes]], received: list[int], exit_code: int) -> int:
    """Pass the stop on and wait; a second signal ends them at once."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(received[0] if received else signal.SIGTERM)
    while any(worker.poll() is None for worker in workers):
        if len(received) > 1:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)
    return 128 + received[0] if received else exit_code


def _without_processes(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in arguments:
        if skip or word.startswith("--processes="):
            skip = False
        elif word == "--processes":
            skip = True
        else:
            kept.append(word)
    return kept
