"""The database servers of a run: each starts when the first test asks for it, in whichever process that test is."""

import os
import secrets
import threading
from multiprocessing.connection import Client, Listener
from pathlib import Path

import mysql_databases
import postgres_server
from mariadb_server import MariadbServer
from mysql_databases import MysqlDatabases
from own_server import OwnServer, ServerUnavailableError
from postgres_databases import PostgresDatabases, plain_url
from postgres_server import PostgresServer

Databases = PostgresDatabases | MysqlDatabases
Address = tuple[str, bytes]
"""A socket, and the password for it."""


class DatabaseServers:
    """What the tests of this process `ask`, and those of others where it `listen`s. `close` ends what has started."""

    def __init__(self, postgres_binaries: Path | None) -> None:
        self._postgres_binaries = postgres_binaries
        self._own: list[OwnServer] = []
        self._foreign: list[Databases] = []
        self._asked: dict[str, Databases] = {}

    def ask(self, kind: str) -> Databases:
        """The databases of a kind, `postgresql` or `mysql`. Raises ServerUnavailableError."""
        if kind not in self._asked:
            self._asked[kind] = self._postgres() if kind == "postgresql" else self._mysql()
        return self._asked[kind]

    def listen(self) -> Address:
        """Answer other processes from a thread, for as long as this one lives."""
        key = secrets.token_bytes(16)
        listener = Listener(authkey=key)
        threading.Thread(target=self._answer, args=(listener,), daemon=True).start()
        return str(listener.address), key

    def close(self) -> None:
        for server in self._own:
            server.stop()
        for databases in self._foreign:
            databases.drop_all()  # what a test that died left there

    def _answer(self, listener: Listener) -> None:
        while True:
            with listener.accept() as connection:
                try:
                    connection.send(self.ask(connection.recv()))
                except ServerUnavailableError as error:
                    connection.send(error)

    def _postgres(self) -> PostgresDatabases:
        variable = "SCAN_ETL_TEST_POSTGRES_URL"
        if (given := os.environ.get(variable)) and not self._postgres_binaries:
            url = plain_url(given)
            _require(postgres_server.accepts_connections(url), variable)
            databases = PostgresDatabases(url, _prefix())
            self._foreign.append(databases)
            return databases
        server = PostgresServer(postgres_server.find_binaries(self._postgres_binaries))
        return PostgresDatabases(self._started(server), _prefix())

    def _mysql(self) -> MysqlDatabases:
        variable = "SCAN_ETL_TEST_MYSQL_URL"
        if url := os.environ.get(variable):
            _require(mysql_databases.accepts_connections(url), variable)
            databases = MysqlDatabases(url, _prefix())
            self._foreign.append(databases)
            return databases
        return MysqlDatabases(self._started(MariadbServer()), _prefix())

    def _started(self, server: PostgresServer | MariadbServer) -> str:
        server.start()
        self._own.append(server)
        return server.url()


def ask(address: Address, kind: str) -> Databases:
    """What the `DatabaseServers` of another process say. Raises ServerUnavailableError."""
    name, key = address
    with Client(name, authkey=key) as connection:
        connection.send(kind)
        answer: Databases | ServerUnavailableError = connection.recv()
    if isinstance(answer, ServerUnavailableError):
        raise answer
    return answer


def _require(answers: bool, variable: str) -> None:
    if not answers:
        raise ServerUnavailableError(f"No server answers at the {variable} that is set.")


def _prefix() -> str:
    return f"scan_etl_{secrets.token_hex(4)}"
