"""A command that a fork server has begun, and that is no child of ours: what tests use of a `subprocess.Popen`."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TextIO

ANSWER_BYTES = 4


@dataclass(slots=True)
class ForkedProcess:
    """`answers` is a pipe that gives the exit code when the command has ended."""

    args: Sequence[str]
    pid: int
    answers: int
    stdout: TextIO | None = None
    stderr: TextIO | None = None
    returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        return self._awaited(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        exit_code = self._awaited(timeout)
        if exit_code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return exit_code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What there is still to read from each stream. Raises subprocess.TimeoutExpired, and then has killed it."""
        with ThreadPoolExecutor(2) as readers:
            stdout, stderr = (readers.submit(_read, stream) for stream in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return stdout.result(), stderr.result()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _awaited(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self.answers], [], [], timeout)[0]:
            self.returncode = read_answer(self.answers)
            os.close(self.answers)
        return self.returncode


def _read(stream: TextIO | None) -> str:
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()


def read_answer(answers: int) -> int:
    """The next number that comes. EOFError where none does."""
    answer = os.read(answers, ANSWER_BYTES)
    if len(answer) < ANSWER_BYTES:
        raise EOFError("the fork server has died")
    return int.from_bytes(answer, signed=True)
