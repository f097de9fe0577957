"""A PgBouncer of our own for the tests, from the system's package: many clients share a few sessions of PostgreSQL."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from own_server import OwnServer, ServerUnavailableError
from postgres_server import accepts_connections
from sqlalchemy.engine import make_url

_SETTINGS = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
"""


class PgBouncer(OwnServer):
    """One pooler in front of the server of a database URL, which lends a session for one transaction at a time."""

    name = "PgBouncer"
    ending = signal.SIGKILL  # what else it obeys at once depends on its version

    def __init__(self, database_url: str, pool_size: int) -> None:
        if problem := pgbouncer_problem():
            raise ServerUnavailableError(problem)
        self._database = make_url(database_url)
        self._pool_size = pool_size
        super().__init__()

    def url(self) -> str:
        """The URL that leads to the same database through the pooler."""
        return self._database.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    def _prepare(self) -> None:
        users = self._folder / "users"
        users.write_text(f'"{self._database.username}" "{self._database.password}"\n')
        users.chmod(0o600)
        self._give_to_user(users)

    def _command(self) -> list[str]:
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            _SETTINGS.format(
                host=self._database.host,
                port=self._database.port or 5432,
                listen_port=self._port,
                folder=self._folder,
                pool_size=self._pool_size,
            )
        )
        return [_program() or "", str(settings)]

    def _answers(self) -> bool:
        return accepts_connections(self.url())


@contextmanager
def pooled(database_url: str, pool_size: int) -> Iterator[str]:
    """The URL of the same database, through a pooler that has so many sessions for all its clients together."""
    pooler = PgBouncer(database_url, pool_size)
    pooler.start()
    try:
        yield pooler.url()
    finally:
        pooler.stop()


def pgbouncer_problem() -> str | None:
    """What is missing here, told to the person who runs the tests."""
    if _program() is not None:
        return None
    return "PgBouncer: none on this machine, so its tests are left out. Install your system's pgbouncer package."


def _program() -> str | None:
    """Where the system has it; `sbin` isn't in everybody's PATH."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
