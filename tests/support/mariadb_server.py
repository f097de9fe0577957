"""A MariaDB server of our own for the tests, from the system's packages: no wheel brings one."""

import shutil
from pathlib import Path

from mysql_databases import accepts_connections
from own_server import OwnServer, ServerUnavailableError


class MariadbServer(OwnServer):
    """One server, whose settings are unlike ours on purpose: what leans on them shows itself. `options` are more."""

    name = "MariaDB"

    def __init__(self, *options: str) -> None:
        if problem := mariadb_problem():
            raise ServerUnavailableError(problem)
        self._options = options
        super().__init__()

    def url(self) -> str:
        return f"mysql://scan_etl:{self._password}@127.0.0.1:{self._port}/"

    def _prepare(self) -> None:
        # Root may enter by its own account alone, and the user of the tests by a password.
        self._run(
            *(_program("mariadb-install-db") or "", "--no-defaults", f"--datadir={self.data}", "--skip-test-db"),
            *("--auth-root-authentication-method=socket", "--innodb-log-file-size=8M"),
        )
        users = self._folder / "users.sql"
        users.write_text(
            f"CREATE OR REPLACE USER 'scan_etl'@'127.0.0.1' IDENTIFIED BY '{self._password}';\n"
            "GRANT ALL ON *.* TO 'scan_etl'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        self._give_to_user(users)
        users.chmod(0o600)

    def _command(self) -> list[str]:
        return [
            *(
                _program("mariadbd") or "",
                "--no-defaults",
                f"--datadir={self.data}",
                f"--init-file={self._folder / 'users.sql'}",
            ),
            *("--bind-address=127.0.0.1", f"--port={self._port}", f"--socket={self._folder / 'socket'}"),
            *(f"--pid-file={self._folder / 'pid'}", "--skip-name-resolve", "--max-connections=200"),
            *("--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0", "--innodb-fast-shutdown=2"),
            *("--default-time-zone=+05:45", "--sql-mode=", "--character-set-server=latin1"),
            *self._options,
        ]

    def _answers(self) -> bool:
        return accepts_connections(self.url())


def mariadb_problem() -> str | None:
    """What is missing here for a server of our own, told to the person who runs the tests."""
    server = _program("mariadbd")
    if server is None:
        lack = "none on this machine"
    elif _program("mariadb-install-db") is None:
        lack = f"{server} is here, but no mariadb-install-db"
    elif not any(Path(server).resolve().parents[1].glob("share/*/*_system_tables.sql")):
        lack = f"{server} is here, but not the SQL of its own tables in share/"
    else:
        return None
    return (
        f"MariaDB: {lack}, so its tests are left out. Install your system's mariadb-server package, or set "
        "SCAN_ETL_TEST_MYSQL_URL to a server for tests to use."
    )


def _program(name: str) -> str | None:
    """Where the system has it; `sbin` isn't in everybody's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/libexec")
