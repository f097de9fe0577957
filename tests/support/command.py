"""Runs the real command in a process of its own, with an environment that holds nothing of the caller's."""

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fork_server import ForkServer
from forked_process import ForkedProcess
from patience import PATIENCE_SECONDS

BARE_ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    # Our servers are on loopback, without TLS. To read the system's authorities takes aiohttp 0.1 s a command.
    "SSL_CERT_FILE": os.devnull,
}
READ_AT_THE_START = ("PYTHON", "LANG", "SSL_CERT_FILE")
"""How variables begin that Python and the libraries read before the command does."""
Process = subprocess.Popen[str] | ForkedProcess


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a finished command ended."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The one JSON document on stdout. ValueError, with both streams in it, where there is none."""
        try:
            return json.loads(self.stdout)
        except ValueError as exc:
            raise ValueError(f"stdout is not JSON: {self}") from exc


@dataclass(frozen=True, slots=True)
class Command:
    """`scan-etl`, started in `folder`, which is also its home.

    With a `fork_server` it isn't started but forked, but for `started` and the ways that need a program of their own.
    """

    folder: Path
    fork_server: ForkServer | None = None

    def __call__(
        self, *arguments: str | Path, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run to the end. `environment` is added to the bare one."""
        if self.fork_server is None or _is_read_at_the_start(environment):
            return self.started(*arguments, stdin=stdin, environment=environment)
        with TemporaryFile("w+") as given, TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
            given.write(stdin)
            given.seek(0)
            streams = [file.fileno() for file in (given, stdout, stderr)]
            exit_code = self.fork_server.run(self._request(arguments, environment), streams, PATIENCE_SECONDS)
            stdout.seek(0)
            stderr.seek(0)
            return CommandResult(exit_code, stdout.read(), stderr.read())

    def on_terminal(self, columns: int, *arguments: str, environment: Mapping[str, str]) -> str:
        """What is on a terminal of so many columns when the command has ended, all of its streams in one."""
        screen, its_end = os.openpty()
        fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        request = self._request(arguments, {"TERM": "xterm", **environment})
        assert self.fork_server is not None
        with ThreadPoolExecutor(1) as reader:
            shown = reader.submit(_read_screen, screen)
            self.fork_server.run(request, [its_end] * 3, PATIENCE_SECONDS)
            os.close(its_end)
            text = shown.result(PATIENCE_SECONDS)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")

    def started(
        self, *arguments: str | Path, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run to the end in a Python of its own, for tests of the start itself."""
        return self._outcome(self._words(arguments), stdin, environment)

    def in_shell(
        self, redirections: str, *arguments: str, environment: Mapping[str, str] | None = None, first: str = ":"
    ) -> CommandResult:
        """Run to the end with redirections of a POSIX shell, such as `2>&-`, after what it does `first`."""
        shell = ["/bin/sh", "-c", f'{first} && exec "$@" {redirections}', "sh"]
        return self._outcome([*shell, *self._words(arguments)], "", environment)

    def limited(self, most_bytes: int, *arguments: str, environment: Mapping[str, str] | None = None) -> CommandResult:
        """Run to the end, where no file can get larger: the next write fails, as on a full disk."""
        shell = ["/bin/sh", "-c", f'ulimit -f {most_bytes // 512}; exec "$@"', "sh"]
        return self._outcome([*shell, *self._words(arguments)], "", environment)

    @contextmanager
    def start(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
    ) -> Iterator[Process]:
        """A running command, for tests that send signals. What still runs at the end is killed.

        `stdin` and `stderr` may be the number of an open file, such as a terminal.
        """
        with self.begin(arguments, environment, stdin, stderr) as process:
            try:
                yield process
            finally:
                process.kill()

    def begin(
        self, arguments: tuple[str | Path, ...], environment: Mapping[str, str] | None, stdin: int, stderr: int
    ) -> Process:
        """A running command, which the caller ends."""
        if self.fork_server is not None and not _is_read_at_the_start(environment):
            return self.fork_server.start(self._request(arguments, environment), stdin, stderr)
        return subprocess.Popen(
            self._words(arguments),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=self.folder,
            env=self._environment(environment),
        )

    def _outcome(self, words: list[str], stdin: str, environment: Mapping[str, str] | None) -> CommandResult:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            cwd=self.folder,
            env=self._environment(environment),
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)

    def _request(self, arguments: tuple[str | Path, ...], environment: Mapping[str, str] | None) -> dict[str, Any]:
        return {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(self.folder),
            "environment": self._environment(environment),
        }

    def _words(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "etl", *map(str, arguments)]

    def _environment(self, additions: Mapping[str, str] | None) -> dict[str, str]:
        # Coverage finds its settings in the environment: the lines that a subprocess runs count too.
        coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        return {**BARE_ENVIRONMENT, "HOME": str(self.folder), **coverage, **(additions or {})}


def _is_read_at_the_start(environment: Mapping[str, str] | None) -> bool:
    return any(name.startswith(READ_AT_THE_START) for name in environment or {})


def _read_screen(screen: int) -> str:
    """All that comes until nobody has the terminal any more."""
    pieces = []
    with open(screen, "rb", buffering=0) as stream, suppress(OSError):
        while data := stream.read(65_536):
            pieces.append(data)
    return b"".join(pieces).decode()
