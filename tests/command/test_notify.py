"""Who is told how a run has ended: by a program, by a POST, once, and without a word of secrets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from command import Command
from sandbox_thread import TOKEN, finished_world, running_sandbox
from sqlalchemy import delete, insert, select
from stored_rows import environment, rows
from tables_of import ask, change

from etl.app.notify import news
from etl.config.masking import mask_command, mask_webhook
from etl.database.schema import dead_letters, listing_gaps, runs, schema_drift
from etl.database.types import utc_now
from etl.store.notices import Known

SECRET = "T0/B0/s3cret"
PROGRAM = "tee -a told.txt"


@contextmanager
def chat(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A chat tool: the URL of a channel, and what was posted there."""
    posted: list[Any] = []

    class Channel(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Channel) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{SECRET}", posted
        server.shutdown()


def told(cli: Command) -> list[str]:
    """What the program was told, line by line."""
    path = cli.folder / "told.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_bad_end_is_told_once_until_it_is_good_again(cli: Command, database_url: str) -> None:
    """Each command has its own; another exit code is news. The line says which run, and where."""
    with running_sandbox(finished_world(5)) as sandbox:
        variables = environment(sandbox, database_url, SCAN_ETL_NOTIFY__COMMAND=PROGRAM)

        def told_by(*arguments: str, **others: str) -> int:
            before = len(told(cli))
            cli(*arguments, stdin="120 1\n", environment=variables | others)
            return len(told(cli)) - before

        bad, refused = ("run", "nowhere.csv"), {"SEMGREP_APP_TOKEN": "wrong"}
        counts = [told_by(*bad), told_by(*bad), told_by("discover", **refused), told_by("run", "-", **refused)]
        counts += [told_by("run", "-"), told_by(*bad)]

    assert counts == [2, 0, 2, 2, 0, 2]
    first, where = told(cli)[:2]
    assert first.startswith("scan-etl run ended with exit code 2: nowhere.csv can't be read")
    assert ask(database_url, select(runs.c.run_id).order_by(runs.c.started_at).limit(1))[0][0] in where
    assert where.startswith("(run ")


def test_what_is_lost_or_new_is_told_once(cli: Command, database_url: str) -> None:
    """Also after a good run."""
    key = {"deployment_id": 120, "scan_id": 9}
    drift = {"path": "a", "kind": "new", "count": 1, "first_seen_at": utc_now(), "last_seen_at": utc_now()}
    gap = {"deployment_id": 120, "from_at": utc_now(), "until_at": utc_now()}
    variables = {"SCAN_ETL_NOTIFY__COMMAND": PROGRAM, "SCAN_ETL_DATABASE__URL": database_url, "SEMGREP_APP_TOKEN": "a"}
    cli("run", environment=variables)
    silent = told(cli)
    change(
        database_url,
        insert(schema_drift).values(drift | {"sample_deployment_id": 120, "sample_scan_id": 9}),
        insert(listing_gaps).values(gap),
        insert(dead_letters).values(key | {"died_at": utc_now(), "error_kind": "expired"}),
    )
    cli("run", environment=variables)
    first = told(cli)
    change(database_url, delete(dead_letters))
    cli("run", environment=variables)

    assert silent == []
    assert first[:3] == news(Known(), Known(1, 1, 1))
    assert told(cli) == first


def test_a_chat_tool_takes_it(cli: Command, sqlite_url: str) -> None:
    """By a POST with a text, and with nothing else, which some refuse."""
    with chat() as (url, posted):
        variables = {"SCAN_ETL_NOTIFY__URL": url, "SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": TOKEN}
        cli("run", "nowhere.csv", environment=variables)

    [(path, content_type, body)] = posted
    assert (path, content_type) == (f"/{SECRET}", "application/json")
    assert list(body) == ["text"]
    assert body["text"].startswith("scan-etl run ended with exit code 2: nowhere.csv")


@pytest.mark.parametrize(
    ("variables", "exit_code"),
    [({}, 3), ({"SEMGREP_APP_TOKEN": "a", "SCAN_ETL_DATABASE__URL": "postgresql://u:hunter2@127.0.0.1:1/nothing"}, 5)],
)
def test_what_cannot_be_looked_up_is_told_each_time(cli: Command, variables: dict[str, str], exit_code: int) -> None:
    """Without a database, or one that answers, nobody knows what was told."""
    variables = variables | {"SCAN_ETL_NOTIFY__COMMAND": PROGRAM}
    outcomes = [cli("run", "-", stdin="120 1\n", environment=variables) for _ in range(2)]

    assert [outcome.exit_code for outcome in outcomes] == [exit_code] * 2
    assert [line.partition(":")[0] for line in told(cli)[::2]] == [f"scan-etl run ended with exit code {exit_code}"] * 2
    assert "hunter2" not in "".join(told(cli))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("URL", "", "[notify] url answers HTTP 500"),
        ("URL", f"http://127.0.0.1:1/{SECRET}", "[notify] url can't be reached (Connection refused)"),
        ("COMMAND", f"no-such-program {SECRET}", "[notify] command can't be started (No such file or directory)"),
        ("COMMAND", f"false {SECRET}", "[notify] command ended with 1"),
    ],
)
def test_who_cannot_be_told_is_told_by_the_next_run(
    cli: Command, sqlite_url: str, name: str, value: str, problem: str
) -> None:
    """The log says why, without the secret; the exit code is that of the run."""
    with chat(500) as (url, _):
        variables = {"SCAN_ETL_DATABASE__URL": sqlite_url, "SEMGREP_APP_TOKEN": TOKEN}
        notify = {f"SCAN_ETL_NOTIFY__{name}": value or url}
        failed = [cli("run", "nowhere.csv", environment=variables | notify) for _ in range(2)]
        shown = cli("config", "show", environment=variables | notify)
    cli("run", "nowhere.csv", environment=variables | {"SCAN_ETL_NOTIFY__COMMAND": PROGRAM})

    for outcome in failed:
        assert outcome.exit_code == 2
        assert problem in outcome.stderr
    assert SECRET not in repr((failed, shown, rows(sqlite_url, runs)))
    assert len(told(cli)) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("URL", f"ftp://example.com/{SECRET}"), ("COMMAND", f"tell '{SECRET}"), ("URL", SECRET)]
)
def test_a_wrong_setting_is_refused_without_its_secret(cli: Command, name: str, value: str) -> None:
    """As every wrong setting, with exit code 2."""
    outcome = cli("status", environment={f"SCAN_ETL_NOTIFY__{name}": value})

    assert outcome.exit_code == 2
    assert f"notify.{name.lower()} is " in outcome.stderr
    assert SECRET not in outcome.stderr


def test_a_secret_place_is_shown_by_its_beginning() -> None:
    """Of a URL the host, without a user; of a command its program."""
    assert mask_webhook(f"https://me:x@chat.example.com:8443/{SECRET}") == "https://chat.example.com:8443/***"
    assert (mask_webhook(""), mask_webhook("https://["), mask_webhook(SECRET)) == ("", "***", "***")
    assert (mask_command("mail -s x"), mask_command("tell"), mask_command("")) == ("mail ***", "tell", "")
