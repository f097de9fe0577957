"""Workers to be ill-treated: the real `scan-etl worker` in processes of its own, with their logs in files."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import Command, Process
from patience import PATIENCE_SECONDS

STOPPED_BY_SIGTERM = 143


def wait_until(what: str, condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as `condition` is true. AssertionError, with `what`, when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


@dataclass(slots=True)
class Worker:
    """One process. `expendable` once the test itself has killed it."""

    process: Process
    log_file: Path
    expendable: bool = False

    def kill(self) -> None:
        """End it as a crash does."""
        self.expendable = True
        self.process.kill()
        self.process.wait()

    def said(self, words: str) -> list[dict[str, Any]]:
        """Its log lines with `words`, which have `timestamp`, `level` and the fields of the event."""
        return [line for line in map(json.loads, self._whole_lines()) if words in line["event"]]

    def log(self) -> str:
        return self.log_file.read_text()

    def _whole_lines(self) -> list[str]:
        return [line for line in self.log().splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n")]


@dataclass(frozen=True, slots=True)
class Workers(Command):
    """All workers of a test, whose home is `folder`."""

    all: list[Worker] = field(default_factory=list)

    def start_worker(self, environment: Mapping[str, str], *options: str) -> Worker:
        """One more, with a JSON log. `environment` is added to a bare one."""
        log_file = self.folder / f"worker-{len(self.all)}.log"
        words = ("worker", "--json", "--log-format", "json", *options)
        with log_file.open("wb") as log:
            process = self.begin(words, environment, subprocess.DEVNULL, log.fileno())
        self.all.append(Worker(process, log_file))
        return self.all[-1]

    def alive(self) -> list[Worker]:
        """Those that nobody has killed."""
        return [worker for worker in self.all if not worker.expendable]

    def all_well(self) -> bool:
        """True. AssertionError, with its log, if a worker has ended that nobody killed."""
        for worker in self.alive():
            code = worker.process.poll()
            assert code is None, f"a worker ended by itself with {code}:\n{worker.log()[-5000:]}"
        return True

    def stop(self) -> list[dict[str, Any]]:
        """End all in good order, and return their summaries. AssertionError if one leaves otherwise."""
        assert self.all_well()
        alive = self.alive()
        for worker in alive:
            worker.process.terminate()
        summaries = []
        for worker in alive:
            output, _ = worker.process.communicate(timeout=PATIENCE_SECONDS)
            worker.expendable = True
            # One that is still starting has nothing to give back: the signal just ends it.
            expected = {STOPPED_BY_SIGTERM} if output or worker.log() else {STOPPED_BY_SIGTERM, -signal.SIGTERM}
            assert worker.process.returncode in expected, worker.log()[-5000:]
            summaries += [json.loads(line) for line in output.splitlines()]
        return summaries

    def close(self) -> None:
        """Kill what is left, with the processes that it has started."""
        for worker in self.all:
            children = children_of(worker.process.pid) if worker.process.poll() is None else []
            worker.process.kill()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            worker.process.communicate()


def children_of(process_id: int) -> list[int]:
    """The processes that a process has started, as Linux tells it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            # The name, in parentheses, may hold spaces; the state and the parent follow it.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process_id:
                found.append(int(stat.parent.name))
    return sorted(found)


def open_files(process_id: int) -> set[str]:
    """The files that a process has open, as Linux tells it."""
    found = set()
    for link in Path(f"/proc/{process_id}/fd").glob("*"):
        with suppress(OSError):  # it has just been closed
            found.add(str(link.readlink()))
    return found
