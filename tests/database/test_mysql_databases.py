"""The fixtures that give tests their MariaDB, tested on the server itself."""

import pymysql
import pytest
from mysql_databases import MysqlDatabases, accepts_connections, ask
from sqlalchemy.engine import make_url


def tables(url: str) -> list[str]:
    return [name for (name,) in ask(url, "SHOW TABLES")]


def test_databases_are_isolated(mysql_databases: MysqlDatabases) -> None:
    """A table of one test's database isn't in another's."""
    with mysql_databases.database() as first, mysql_databases.database() as second:
        ask(first, "CREATE TABLE kept (number BIGINT)")

        assert tables(first) == ["kept"]
        assert tables(second) == []


def test_a_database_goes_with_its_clients(mysql_databases: MysqlDatabases) -> None:
    """It is dropped even while a client has a transaction open in it."""
    with mysql_databases.database() as url:
        ask(url, "CREATE TABLE kept (number BIGINT)")
        parts = make_url(url)
        where = {"host": parts.host, "port": parts.port, "user": parts.username, "database": parts.database}
        client = pymysql.connect(**where, password=parts.password)
        client.cursor().execute("SELECT * FROM kept")

    assert not accepts_connections(url)
    with pytest.raises(pymysql.MySQLError):
        client.cursor().execute("SELECT 1")


def test_drop_all_takes_only_ours(mysql_databases: MysqlDatabases) -> None:
    """What a dead run left on a borrowed server goes, and nothing else does."""
    with mysql_databases.database() as theirs:
        ours = MysqlDatabases(mysql_databases.server_url, f"{make_url(theirs).database}_ours")
        with ours.database() as left:
            ours.drop_all()

            assert not accepts_connections(left)
        assert accepts_connections(theirs)
