"""Runs commands by a process that has imported the program and forks, which takes an eighth of the time of a start."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forked_process import ForkedProcess, read_answer


class ForkServer:
    """The process of `forking_command.py`, which `starter`, the first words of its command line, may have start.

    A request holds the command's arguments, folder and environment.
    """

    def __init__(self, environment: Mapping[str, str], starter: Sequence[str] = ()) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*starter, sys.executable, str(Path(__file__).with_name("forking_command.py"))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for pytest, which then closes us
            )

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def run(self, request: Mapping[str, Any], streams: Sequence[int], timeout_seconds: float) -> int:
        """The exit code of a command. TimeoutError if it takes longer."""
        with self.fork(request, streams) as process:
            try:
                return process.wait(timeout_seconds)
            except subprocess.TimeoutExpired as exc:
                raise TimeoutError(f"{request['arguments']} took more than {timeout_seconds:g} s") from exc
            finally:
                process.kill()

    def start(self, request: Mapping[str, Any], stdin: int, stderr: int) -> ForkedProcess:
        """A command that runs: `stdin` and `stderr` as `subprocess.Popen` takes them, stdout a pipe."""
        given = os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else os.dup(stdin)
        stdout, out = os.pipe()
        said, err = os.pipe() if stderr == subprocess.PIPE else (None, os.dup(stderr))
        try:
            process = self.fork(request, [given, out, err])
        finally:
            for file in (given, out, err):
                os.close(file)
        process.stdout = os.fdopen(stdout, encoding="utf-8")
        process.stderr = None if said is None else os.fdopen(said, encoding="utf-8")
        return process

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> ForkedProcess:
        """A command that has these files as its stdin, stdout and stderr."""
        line = json.dumps(request).encode() + b"\n"
        answers, theirs = os.pipe()
        try:
            sent = socket.send_fds(self._requests, [line], [theirs, *streams])
            self._requests.sendall(line[sent:])
        finally:
            os.close(theirs)
        return ForkedProcess(request["arguments"], read_answer(answers), answers)
