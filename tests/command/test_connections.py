"""The command and a server that closes its connections without a word, on the event loop of the command."""

import json
from pathlib import Path

import pytest
from aiohttp import web
from command import Command
from faulty_runs import ONCE, rows, run
from scan_rows import document
from small_api import UNTRUSTED, Call, SmallApi, in_thread, tls_of

from etl.database.schema import scans
from etl.model import Pair

PAIRS = [Pair(120, number) for number in range(1, 201)]


class LastAnswer(web.Response):
    """An answer after which the connection ends at once, which neither a header nor a word of TLS announces."""

    async def write_eof(self, data: bytes = b"") -> None:
        transport = self._req.transport if self._req else None
        await super().write_eof(data)
        assert transport is not None
        transport.abort()


async def found_and_closed(call: Call) -> web.StreamResponse:
    return LastAnswer(body=json.dumps(document(call.pair)), content_type="application/json")


@pytest.mark.parametrize("certificate", [None, UNTRUSTED])
def test_a_server_that_keeps_no_connection_costs_no_request(
    cli: Command, sqlite_url: str, certificate: Path | None
) -> None:
    """Neither a failure nor a slot of the pace: the server sees as many requests as the run counts, with TLS too."""
    api = SmallApi(found_and_closed)
    with in_thread(api, tls_of(certificate) if certificate else None) as base_url:
        outcome = run(cli, base_url, sqlite_url, PAIRS, **ONCE, SSL_CERT_FILE=str(certificate or ""))

    assert outcome.exit_code == 0, outcome
    assert len(rows(sqlite_url, scans)) == len(PAIRS)
    assert outcome.json()["requests"] == len(api.seen) == len(PAIRS) + 1
    assert outcome.json()["retried"] == 0
