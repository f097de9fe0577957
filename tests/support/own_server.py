"""A database server of our own for the tests: in temporary folders, on a free port, gone afterwards.

A server that merely happens to run on the machine is never used: the tests create and drop databases.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

START_SECONDS = 120.0
"""How long a server may take to answer, on a loaded machine. As a rule it takes a tenth of a second."""

MEMORY = Path("/dev/shm")  # noqa: S108 # a folder of a random name is made in it
MEMORY_BYTES = 2 * 2**30
"""Data stand in memory where so much is free: a database is some 300 files, and to make and remove them takes a
PostgreSQL 0.02 s of a processor there, and 0.2 s on the journal of a disk."""

# Runs the server and names its process id. When the pipe on stdin ends without a line, the tests have died:
# then it stops the server and removes the folders. So no `kill -9` of pytest leaves a server behind.
# Descriptor 3, because a shell gives its background jobs an empty stdin.
_GUARD = """
folder=$1; data=$2; how=$3; shift 3
exec 2>>"$folder/log"
"$@" </dev/null >&2 &
server=$!
exec 3<&0
(
    read -r _ <&3 && exit
    kill "-$how" "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
    rm -rf "$folder" "$data" 2>/dev/null
) &
echo "$server"
wait "$server"
"""


class ServerUnavailableError(Exception):
    """No server could be had. The message is for the person who runs the tests."""


class OwnServer(ABC):
    """One server, which `start` makes answer and `stop` removes, its data too. `data` is its data folder, which is
    there as long as the server is; on the disk in any case if it is `durable`."""

    name: ClassVar[str]
    ending: ClassVar[signal.Signals] = signal.SIGQUIT
    """The signal at which it ends at once."""

    def __init__(self, *, durable: bool = False) -> None:
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._folder = self._new_folder()
        self.data = self._new_folder(None if durable else _memory())
        self._password = secrets.token_hex(16)
        self._port = 0
        self._guard: subprocess.Popen[str] | None = None
        self._process_id = 0
        try:
            self._prepare()
        except BaseException:
            self._remove_folders()
            raise

    @abstractmethod
    def _prepare(self) -> None:
        """Fill the data folder. Raises ServerUnavailableError."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What runs the server on its data folder and port."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it accepts connections."""

    def start(self) -> None:
        """Return when the server answers.

        It may take several attempts: somebody else may get the port first, or what was killed may not be
        quite gone. Raises ServerUnavailableError with the end of the server's log.
        """
        deadline = time.monotonic() + START_SECONDS
        port_is_known = self._port != 0
        while True:
            if not port_is_known:
                self._port = _free_port()
            if self._attempt(deadline):
                return
            if time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                self.stop()
                raise ServerUnavailableError(f"{self.name} did not start:\n{log}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server and remove its data."""
        self._end(self.ending)
        self._remove_folders()

    def _new_folder(self, parent: Path | None = None) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"scan-etl-{self.name}-", dir=parent))
        self._give_to_user(folder)
        return folder

    def _remove_folders(self) -> None:
        for folder in self._folder, self.data:
            shutil.rmtree(folder, ignore_errors=True)

    def _attempt(self, deadline: float) -> bool:
        guard = ("guard", self._folder, self.data, str(self.ending.value))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, *guard, *self._command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
            **self._as_user(),
        )
        assert self._guard.stdout is not None
        self._process_id = int(self._guard.stdout.readline())
        while self._guard.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.02)
        self._end(self.ending)
        return False

    def _end(self, how: signal.Signals, also: Sequence[int] = ()) -> None:
        if self._guard is None:
            return
        if self._guard.poll() is None:
            for process_id in (self._process_id, *also):
                with suppress(ProcessLookupError):
                    os.kill(process_id, how)
        self._guard.communicate("the tests are alive\n", timeout=START_SECONDS)
        self._guard = None

    def _run(self, *command: str | Path) -> None:
        """Run a command that prepares the data. Raises ServerUnavailableError with what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._as_user())
        if done.returncode != 0:
            raise ServerUnavailableError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _give_to_user(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _as_user(self) -> dict[str, Any]:
        """Arguments for `subprocess`: a bare environment, and not root, whom servers refuse."""
        # A MariaDB that starts removes the temporary tables of others from a folder that they share.
        environment = {"PATH": f"{os.defpath}:/usr/sbin", "LC_ALL": "C", "TMPDIR": str(self._folder)}
        place = {"cwd": self._folder, "env": environment}
        if self._user is None:
            return place
        return {**place, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _memory() -> Path | None:
    """The folder in memory that Linux has, if there is room in it. A soak's data may outgrow any."""
    is_there = os.access(MEMORY, os.W_OK) and "SCAN_ETL_SOAK_SECONDS" not in os.environ
    return MEMORY if is_there and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
