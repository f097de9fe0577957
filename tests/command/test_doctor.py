"""`scan-etl doctor`: each thing that may be missing is found, said in one sentence, and turned into an exit code."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from command import Command, CommandResult
from sandbox_thread import TOKEN, finished_world, running_sandbox
from sqlalchemy import Connection, func, select, text

from etl.app.doctor import clock_finding
from etl.app.file_finding import disk_finding, file_system_findings
from etl.database.connection import Database
from etl.database.schema import fetch_queue
from etl.sandbox import Behaviour, Deployment, Fault, Token

AWAY = "http://127.0.0.1:1"
SECRET = "hunter2hunter2"


def sentences(outcome: CommandResult) -> dict[str, str]:
    """The sentences of the findings that aren't ok, by name."""
    return {found["name"]: found["sentence"] for found in outcome.json()["findings"] if not found["ok"]}


def execute(url: str, *statements: str) -> None:
    with closing(Database(url)) as database:
        for statement in statements:
            database.run_here(partial(Connection.execute, statement=text(statement)))


@contextmanager
def clock_server(ahead_seconds: float, status: int = 200) -> Iterator[str]:
    """A server whose clock is wrong, and which answers every call alike. The sandbox's clock is this machine's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"deployments": [{"id": 120, "slug": "small"}], "scans": [], "projects": []}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((timestamp or time.time()) + ahead_seconds)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_when_all_is_in_place_every_line_is_ok(cli: Command, database_url: str) -> None:
    """Exit 0; nothing is queued or fetched by it, and the token isn't shown."""
    execute(database_url, "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1), (120, 2)")
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment(SCAN_ETL_DATABASE__URL=database_url))
        asked = {endpoint: count for (endpoint, _), count in sandbox.sandbox.stats.requests.items()}

    found = {finding["name"]: finding["sentence"] for finding in outcome.json()["findings"]}
    is_sqlite = database_url.startswith("sqlite")
    assert (outcome.exit_code, outcome.json()["exit_code"], sentences(outcome)) == (0, 0, {}), outcome
    checks = ["settings", "tokens", "api", "clock", "token", "search of 120", "repositories of 120"]
    checks += [*(["file", "disk"] if is_sqlite else []), "database", "schema", "queue", "write"]
    assert list(found) == checks
    assert "database.url" in found["settings"]
    assert found["tokens"] == "SEMGREP_APP_TOKEN"
    assert found["token"] == "accepted; it sees deployment 120"
    assert found["queue"] == "2 due; no dead letters"
    assert re.match(r"(sqlite|postgresql|mariadb|mysql) \d+\.\d", found["database"])
    assert TOKEN not in outcome.stdout + outcome.stderr
    assert found["search of 120"] == "it lists the whole deployment"
    assert found["repositories of 120"] == "100 on the first page"
    assert asked == {"ping": 1, "deployments": 1, "search": 1, "projects": 1}
    with closing(Database(database_url)) as database:
        queued = database.run_here(
            lambda connection: connection.execute(select(func.count()).select_from(fetch_queue)).scalar_one()
        )
    assert queued == 2


@pytest.mark.parametrize(
    ("kind", "fault", "exit_code", "sentence"),
    [
        ("refused", None, 0, "it wants a repository, so a sync walks repository by repository: HTTP 400"),
        ("empty", None, 0, "it lists nothing, so a sync walks repository by repository: 5 show scans"),
        ("refused", "status-403", 4, "it wants a repository, and these aren't listed: HTTP 400"),
        ("whole", "status-403", 0, "it lists the whole deployment"),
    ],
)
def test_the_kind_of_search_is_said(
    cli: Command,
    sqlite_url: str,
    kind: Literal["whole", "refused", "empty"],
    fault: str | None,
    exit_code: int,
    sentence: str,
) -> None:
    """By one scan and one page of the repositories; where a sync could find nothing that is exit 4."""
    faults = (Fault(fault, times=0, endpoint="projects"),) if fault else ()
    with running_sandbox(finished_world(50, repositories=5), Behaviour(search=kind, faults=faults)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment(SCAN_ETL_DATABASE__URL=sqlite_url))

    found = {finding["name"]: finding for finding in outcome.json()["findings"]}
    assert outcome.exit_code == exit_code
    assert found["search of 120"]["sentence"].startswith(sentence)
    assert found["repositories of 120"]["warning"] is (fault is not None)


def test_wrong_settings_are_exit_2_and_the_token_file_is_looked_at_all_the_same(cli: Command) -> None:
    """What can't be looked at without settings says so."""
    given = {"SCAN_ETL_API__RATE": "-1", "SCAN_ETL_API__RETRIES": "many", "SEMGREP_APP_TOKEN_FILE": "nowhere"}

    outcome = cli("doctor", "--json", environment=given)

    wrong = sentences(outcome)
    assert outcome.exit_code == 2
    assert "api.rate" in wrong["settings"]
    assert "api.retries" in wrong["settings"]
    assert "the file can't be read" in wrong["tokens"]
    assert wrong["database"] == "not checked: fix the settings first"


def test_each_fault_of_a_token_is_told_apart_and_is_exit_3(cli: Command) -> None:
    """Refused, without the scope, of another deployment; and the folder of the database is found missing, too."""
    deployments = (
        Deployment(120, tokens=(Token(), Token("no-scope", web_api=False))),
        Deployment(121, slug="other", tokens=(Token("of-121"),)),
    )
    tokens = {"": SECRET, "__120": "no-scope", "__121": TOKEN, "__122": "of-121"}
    with running_sandbox(finished_world(5, deployments=deployments)) as sandbox:
        given = sandbox.environment(SCAN_ETL_DATABASE__URL="sqlite:///nowhere/scans.db")
        given |= {f"SEMGREP_APP_TOKEN{name}": token for name, token in tokens.items()}
        outcome = cli("doctor", "--json", environment=given)

    wrong = sentences(outcome)
    assert outcome.exit_code == 3
    assert "the token is refused" in wrong["token"]
    assert "lacks the Web API scope" in wrong["token for 120"]
    assert "belongs to deployment 120: set SEMGREP_APP_TOKEN__121" in wrong["token for 121"]
    assert "belongs to deployment 121: set SEMGREP_APP_TOKEN__122" in wrong["token for 122"]
    assert "there is no folder" in wrong["file"]
    assert not any(token in outcome.stdout + outcome.stderr for token in tokens.values())


def test_without_a_token_the_rest_is_looked_at_and_nothing_is_made(cli: Command) -> None:
    """Exit 3; the missing database is named, with what makes it, and isn't made: nothing is wrong with it."""
    with running_sandbox(finished_world(5)) as sandbox:
        given = sandbox.environment()
        del given["SEMGREP_APP_TOKEN"]
        outcome = cli("doctor", "--json", environment=given)

    wrong = sentences(outcome)
    assert outcome.exit_code == 3
    assert "set SEMGREP_APP_TOKEN" in wrong["tokens"]
    assert set(wrong) == {"tokens"}
    assert "a run makes it, or `scan-etl db upgrade`" in outcome.stdout
    assert list(cli.folder.iterdir()) == []


@pytest.mark.parametrize("content", [None, b""])
def test_before_a_first_run_there_is_nothing_wrong_with_a_file_that_is_not_there(
    cli: Command, content: bytes | None
) -> None:
    """Exit 0: a run would make it. So it would of one without content."""
    if content is not None:
        (cli.folder / "scans.db").write_bytes(content)
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment())

    found = {finding["name"]: finding["sentence"] for finding in outcome.json()["findings"]}
    assert (outcome.exit_code, sentences(outcome)) == (0, {}), outcome
    assert found["file"] == f"there is no {cli.folder / 'scans.db'} yet: a run makes it, or `scan-etl db upgrade`"
    assert "disk" in found
    assert not {"database", "schema", "queue", "write"} & set(found)
    assert [file.stat().st_size for file in cli.folder.glob("scans.db*")] == ([] if content is None else [0])


MOUNTS = """proc /proc proc rw,nosuid 0 0
/dev/sda1 / ext4 rw,relatime 0 0
filer:/export /srv/data nfs4 rw,vers=4.2 0 0
//filer/share /mnt/team\\040share cifs rw 0 0
/dev/sdb1 /srv/data/disk xfs rw 0 0
me@host:/ /home/me/far fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/scan-etl", None),
        ("/srv/data", "nfs4"),
        ("/srv/data/scans/deep", "nfs4"),
        ("/srv/database", None),
        ("/srv/data/disk/scans", None),
        ("/mnt/team share/scans", "cifs"),
        ("/home/me/far", "fuse.sshfs"),
    ],
)
def test_a_file_on_a_network_is_warned_of(folder: str, kind: str | None) -> None:
    """By the mount that holds it, whatever is mounted above and below."""
    found = file_system_findings(Path(folder), MOUNTS)

    assert [(finding.name, finding.warning, finding.ok) for finding in found] == [("file system", True, True)] * bool(
        kind
    )
    assert all(f"{folder} is on a network ({kind})" in finding.sentence for finding in found)


def test_a_queued_deployment_that_no_token_sees_is_exit_3(cli: Command, sqlite_url: str) -> None:
    """A run would leave its pairs where they are; the variable to set is named."""
    execute(sqlite_url, "INSERT INTO fetch_queue (deployment_id, scan_id) VALUES (120, 1), (121, 2)")
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment(SCAN_ETL_DATABASE__URL=sqlite_url))

    assert outcome.exit_code == 3
    assert sentences(outcome) == {
        "queue": "pairs of deployment 121 are queued, but no token sees it: set SEMGREP_APP_TOKEN__121"
    }


def test_an_api_that_is_away_is_exit_4_and_the_database_is_fine(cli: Command, sqlite_url: str) -> None:
    """The token isn't blamed for it."""
    given = {
        "SCAN_ETL_API__BASE_URL": AWAY,
        "SCAN_ETL_DATABASE__URL": sqlite_url,
        "SEMGREP_APP_TOKEN": TOKEN,
    }

    outcome = cli("doctor", "--json", environment=given)

    wrong = sentences(outcome)
    assert outcome.exit_code == 4
    assert set(wrong) == {"api", "clock", "token"}
    assert wrong["api"].startswith(f"{AWAY} doesn't answer: can't connect")
    assert wrong["token"] == "not checked: fix the api first"


def test_a_database_that_is_away_counts_before_an_api_that_is(cli: Command) -> None:
    """Exit 5, in a table for people, without the password of the database."""
    url = f"postgresql://someone:{SECRET}@127.0.0.1:1/nothing"
    given = {"SCAN_ETL_API__BASE_URL": AWAY, "SCAN_ETL_DATABASE__URL": url, "SEMGREP_APP_TOKEN": TOKEN}

    outcome = cli("doctor", environment=given)

    lines = {line.split()[0]: line for line in outcome.stdout.splitlines()}
    assert outcome.exit_code == 5, outcome
    assert "wrong" in lines["database"]
    assert "database postgresql://someone:***@127.0.0.1:1/nothing" in lines["database"]
    assert lines["tokens"].split()[1:] == ["ok", "SEMGREP_APP_TOKEN"]
    assert "not checked: fix the database first" in lines["write"]
    assert SECRET not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("ahead_seconds", "status", "exit_code", "sentence"),
    [
        (-95, 200, 0, "s ahead of the API's: set this machine's clock"),
        (0, 503, 4, "answers a ping with HTTP 503"),
    ],
)
def test_a_wrong_clock_is_a_warning_and_an_api_that_fails_is_exit_4(
    cli: Command, sqlite_url: str, ahead_seconds: float, status: int, exit_code: int, sentence: str
) -> None:
    """More than 30 seconds between the two clocks are said, and keep no run from working."""
    with clock_server(ahead_seconds, status) as base_url:
        given = {"SCAN_ETL_API__BASE_URL": base_url, "SEMGREP_APP_TOKEN": TOKEN}
        outcome = cli("doctor", "--json", "--database-url", sqlite_url, environment=given)

    loud = [found for found in outcome.json()["findings"] if found["warning"] or not found["ok"]]
    assert outcome.exit_code == exit_code
    assert sentence in next(found["sentence"] for found in loud if found["name"] in ("clock", "api"))
    assert [found["name"] for found in loud if found["ok"]] == (["clock"] if ahead_seconds else [])


def test_tables_that_are_missing_are_exit_5_with_the_fix(cli: Command, empty_postgres_url: str) -> None:
    """The database is reached all the same, and its version shown."""
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment(SCAN_ETL_DATABASE__URL=empty_postgres_url))

    wrong = sentences(outcome)
    assert outcome.exit_code == 5, outcome
    assert set(wrong) == {"schema", "queue", "write"}
    assert "run `scan-etl db upgrade`" in wrong["schema"]


def test_a_database_that_takes_no_rows_is_exit_5(cli: Command, postgres_url: str) -> None:
    """It can be read, and so only the trial finds it out."""
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    execute(postgres_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment(SCAN_ETL_DATABASE__URL=postgres_url))

    wrong = sentences(outcome)
    assert outcome.exit_code == 5, outcome
    assert set(wrong) == {"write"}
    assert "read-only transaction" in wrong["write"]


def test_a_database_whose_driver_is_missing_is_exit_2(cli: Command) -> None:
    """The sentence says what to install; an unavailable API is found all the same."""
    (cli.folder / "pymysql.py").write_text("raise ModuleNotFoundError")
    given = {"SCAN_ETL_API__BASE_URL": AWAY, "SEMGREP_APP_TOKEN": TOKEN}

    outcome = cli("doctor", "--json", "--database-url", f"mysql://me:{SECRET}@127.0.0.1:1/scans", environment=given)

    wrong = sentences(outcome)
    assert outcome.exit_code == 2, outcome
    assert "pip install 'scan-etl[mysql]'" in wrong["database"]
    assert set(wrong) == {"api", "clock", "token", "database"}
    assert SECRET not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("name", "sentence"), [("file", "can't be written (Is a directory)"), ("database", "file is not a database")]
)
def test_a_file_that_holds_no_database_is_exit_5(cli: Command, name: str, sentence: str) -> None:
    """A folder in its place can't be written; another file is found out by opening it."""
    path = cli.folder / "scans.db"
    if name == "file":
        path.mkdir()
    else:
        path.write_bytes(b"something else " * 1000)
    with running_sandbox(finished_world(5)) as sandbox:
        outcome = cli("doctor", "--json", environment=sandbox.environment())

    assert outcome.exit_code == 5, outcome
    assert sentence in sentences(outcome)[name]


@pytest.mark.parametrize(
    ("behind_seconds", "warning", "sentence"),
    [
        (0.4, False, "within 1 s of the API's"),
        (30, False, "within 30 s of the API's"),
        (-30, False, "within 30 s of the API's"),
        (31, True, "31 s behind the API's: set this machine's clock"),
        (-3700, True, "3,700 s ahead of the API's: set this machine's clock"),
    ],
)
def test_clocks_may_differ_by_30_seconds(behind_seconds: float, warning: bool, sentence: str) -> None:
    """From there on the difference and its side are said."""
    now = datetime.now(UTC)

    found = clock_finding(now + timedelta(seconds=behind_seconds), now)

    assert (found.ok, found.warning, found.sentence) == (True, warning, sentence)


def test_a_disk_with_less_than_a_gibibyte_left_is_a_warning() -> None:
    """There is room, or there is a warning; neither keeps a run from working."""
    full, roomy = (disk_finding(Path("/data"), free_bytes) for free_bytes in (2**30 - 1, 2**30))

    assert (full.ok, full.warning, full.sentence) == (True, True, "only 1.0 GiB free in /data: make room")
    assert (roomy.ok, roomy.warning, roomy.sentence) == (True, False, "1.0 GiB free in /data")
