"""Secrets that the other side quotes: no log, error or table shows one, in whatever dress it comes."""

import json
from base64 import b64encode, urlsafe_b64encode
from contextlib import closing
from functools import partial
from urllib.parse import quote

import pytest
from aiohttp import web
from command import Command
from faulty_runs import ONCE, rows, run
from forward_proxy import ForwardProxy
from scan_rows import document
from small_api import Call, SmallApi, in_thread, json_answer
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from etl.database.connection import Database
from etl.database.schema import dead_letters, fetch_queue, runs
from etl.errors import DatabaseError
from etl.model import Pair

TOKEN = 'q/7+"0123456789abcdef'
PASSWORD = "hunter2/hunter2"
WORKS = Pair(120, 99)
"""A scan that is answered, so that those that fail aren't taken for an outage."""


def dresses(secret: str) -> list[str]:
    in_json = json.dumps(secret)[1:-1]
    logins = (secret, f"Bearer {secret}", f"etl:{secret}")
    encoded = [encode(login.encode()).decode() for login in logins for encode in (b64encode, urlsafe_b64encode)]
    return [secret, quote(secret, safe=""), in_json, in_json.replace("/", "\\/"), *(one.rstrip("=") for one in encoded)]


@pytest.mark.parametrize("status", [418, 500, 302])
def test_a_token_that_the_api_sends_back_is_shown_nowhere(cli: Command, sqlite_url: str, status: int) -> None:
    """Neither in the log, nor in a dead letter, nor in the summary."""
    quotes = dresses(TOKEN)

    async def echoes(call: Call) -> web.StreamResponse:
        if call.pair == WORKS:
            return json_answer(document(call.pair))
        said = quotes[(call.pair.scan_id - 1) % len(quotes)]
        elsewhere = {"Location": f"https://{quote(TOKEN, safe='')}.example"}
        return web.Response(status=status, text=f"not with {said}!", headers=elsewhere)

    pairs = [Pair(120, number) for number in range(1, len(quotes) + 1)]
    with in_thread(SmallApi(echoes)) as base_url:
        outcome = run(cli, base_url, sqlite_url, [*pairs, WORKS], **ONCE | {"SEMGREP_APP_TOKEN": TOKEN})

    errors = [row["error"] for row in rows(sqlite_url, dead_letters) + rows(sqlite_url, fetch_queue)]
    everything = outcome.stdout + outcome.stderr + repr(rows(sqlite_url, runs)) + "\n".join(errors)
    assert len(errors) == len(pairs)
    assert all("not with " in error and "***" in error for error in errors)
    assert [dress for dress in dresses(TOKEN) if dress in everything] == []


def test_a_proxys_password_that_it_sends_back_is_shown_nowhere(cli: Command, sqlite_url: str) -> None:
    """Nor is the whole login in base64, as it went out."""

    async def echoes(call: Call) -> web.StreamResponse:
        return web.Response(status=418, text=f"not with {call.request.headers['Proxy-Authorization']}")

    with in_thread(SmallApi(echoes)) as base_url, ForwardProxy().in_thread() as place:
        given = ONCE | {"HTTP_PROXY": f"http://etl:{quote(PASSWORD, safe='')}@{place}"}
        outcome = run(cli, base_url, sqlite_url, [Pair(120, 1)], **given)

    [dead] = rows(sqlite_url, dead_letters)
    assert "not with Basic " in dead["error"]
    everything = outcome.stdout + outcome.stderr + dead["error"]
    assert [dress for dress in dresses(PASSWORD) if dress in everything] == []


def test_a_databases_password_that_it_sends_back_is_shown_nowhere(postgres_url: str) -> None:
    """A server, a pooler or somebody's trigger may quote it."""
    password = make_url(postgres_url).password
    assert password is not None
    for said in dresses(str(password)):
        quoted = f"convert_from(decode('{said.encode().hex()}', 'hex'), 'UTF8')"
        raising = text(f"DO $$ BEGIN RAISE EXCEPTION 'not with %!', {quoted}; END $$")
        with closing(Database(postgres_url)) as database, pytest.raises(DatabaseError) as caught:
            database.run_here(partial(Connection.execute, statement=raising))

        assert "not with " in str(caught.value)
        assert said not in str(caught.value)
