"""Every command behind a pooler that lends a session for one transaction at a time."""

import pytest
from command import Command
from every_command import still_sandbox, use
from pgbouncer_server import pooled

pytestmark = pytest.mark.pgbouncer


@pytest.mark.slow
def test_every_command_works_behind_a_pooler(cli: Command, empty_postgres_url: str, empty_sqlite_url: str) -> None:
    """Migrations too, with one session for all, and the rows are those of a database without one."""
    with still_sandbox() as sandbox, pooled(empty_postgres_url, pool_size=1) as url:
        found = use(cli, sandbox, url)

        assert found == use(cli, sandbox, empty_sqlite_url)
        assert all(found[name] for name in found.keys() - {"queued"})
