"""Runs commands by a process that has imported the program and forks, which takes an eighth of the time of a start."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ANSWER_BYTES = 4


class ForkServer:
    """The process of `forking_command.py`, which has one command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("forking_command.py"))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for pytest, which then closes us
            )

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def run(self, request: Mapping[str, Any], streams: Sequence[int], timeout_seconds: float) -> int:
        """The exit code of a command with these arguments, folder and environment. TimeoutError if it takes longer."""
        line = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._requests, [line], streams)
        self._requests.sendall(line[sent:])
        process_id, has_ended = self._answer(), False
        try:
            has_ended = bool(select.select([self._requests], [], [], timeout_seconds)[0])
        finally:
            if not has_ended:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            exit_code = self._answer()
        if not has_ended:
            raise TimeoutError(f"{request['arguments']} took more than {timeout_seconds:g} s")
        return exit_code

    def _answer(self) -> int:
        return int.from_bytes(self._requests.recv(ANSWER_BYTES, socket.MSG_WAITALL), signed=True)
