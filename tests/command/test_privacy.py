"""People in a whole run, the key of their pseudonyms, and `scan-etl forget`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from command import Command
from sandbox_thread import finished_world, running_sandbox
from sqlalchemy import insert, select
from tables_of import ask, change

from etl.database.schema import fetch_queue, metadata, scan_meta, scans

KEY = "0123456789abcdef"
HASH = {"SCAN_ETL_PRIVACY__AUTHOR": "hash"}
ADDRESS = "ann@example.com"


def everything(url: str) -> str:
    """What all columns of all tables hold."""
    return "\n".join(str(tuple(row)) for table in metadata.sorted_tables for row in ask(url, select(table)))


def fill(url: str) -> None:
    """A scan of hers, and a pair whose error quotes her address."""
    key = {"deployment_id": 120, "scan_id": 1}
    instants = dict.fromkeys(("first_fetched_at", "fetched_at", "changed_at"), datetime(2026, 3, 1, tzinfo=UTC))
    author = {"commit_author_email": ADDRESS, "commit_author_username": "annm", "branch": "annm/x"}
    change(
        url,
        insert(scans).values(**key, content_hash="x", **instants),
        insert(scan_meta).values(**key, **author),
        insert(fetch_queue).values(**key, error=f"no, {ADDRESS}"),
    )


@pytest.mark.parametrize("author", ["hash", "drop"])
def test_a_night_stores_nobody(cli: Command, sqlite_url: str, author: str) -> None:
    """No name and no address of an author is anywhere in the database; with `hash` one person stays one."""
    with running_sandbox(finished_world(60)) as sandbox:
        environment = sandbox.environment(
            SCAN_ETL_DATABASE__URL=sqlite_url, SCAN_ETL_PRIVACY__AUTHOR=author, SCAN_ETL_PRIVACY_KEY=KEY
        )
        assert cli("sync", environment=environment).exit_code == 0
        found = ask(sqlite_url, select(scan_meta.c.scan_id, scan_meta.c.commit_author_email))
        meta = [sandbox.sandbox.truth(scan_id)["meta"] for scan_id, _ in found]

    stored = everything(sqlite_url)
    assert all(one["commit_author_name"] not in stored and one["commit_author_email"] not in stored for one in meta)
    assert not re.search("[a-z]-by:", stored, re.IGNORECASE)
    pairs = {(one["commit_author_email"], hidden) for one, (_, hidden) in zip(meta, found, strict=True)}
    people, pseudonyms = ({pair[at] for pair in pairs} for at in (0, 1))
    assert len(people) == len(pairs) > 1
    assert len(pseudonyms) == (len(people) if author == "hash" else 1)


@pytest.mark.parametrize(
    "words", ["run", "sync", "discover", "worker", "worker --processes 2", "forget --email a@b.de --dry-run"]
)
def test_nothing_is_hashed_without_a_key(cli: Command, empty_sqlite_url: str, words: str) -> None:
    """The command says how to make one, and nothing is started."""
    environment = {"SCAN_ETL_DATABASE__URL": empty_sqlite_url, "SEMGREP_APP_TOKEN": "t", **HASH}

    outcome = cli(*words.split(), environment=environment)

    assert outcome.exit_code == 2
    assert "openssl rand -hex 32" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not Path(empty_sqlite_url.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SCAN_ETL_PRIVACY_KEY": KEY, "SCAN_ETL_PRIVACY_KEY_FILE": "key"}, "are both set: keep one"),
        ({"SCAN_ETL_PRIVACY_KEY": KEY[:-1]}, "the key is shorter than 16 characters"),
        ({"SCAN_ETL_PRIVACY_KEY": f"{KEY} {KEY}"}, "a key has no blanks"),
        ({"SCAN_ETL_PRIVACY_KEY_FILE": "nowhere"}, "give the path of a file that may be read, not the key itself"),
        ({"SCAN_ETL_PRIVACY_KEY_FILE": "empty"}, "the file is empty: write the key into it"),
        ({"SCAN_ETL_PRIVACY__KEY": KEY}, "the key comes from the environment variable SCAN_ETL_PRIVACY_KEY"),
    ],
)
def test_a_wrong_key_is_refused(cli: Command, given: Mapping[str, str], said: str) -> None:
    """By the name of its variable alone."""
    (cli.folder / "key").write_text(KEY)
    (cli.folder / "empty").write_text("\n")

    outcome = cli("config", "show", environment={**HASH, **given})

    assert outcome.exit_code == 2
    assert said in outcome.stderr
    assert KEY[:-1] not in outcome.stderr + outcome.stdout


def test_the_key_is_never_shown(cli: Command, sqlite_url: str) -> None:
    """`config show` and `doctor` name its variable; a file with it may end in a line break."""
    (cli.folder / "key").write_text(f"{KEY}\n")
    environment = {**HASH, "SCAN_ETL_PRIVACY_KEY_FILE": "key", "SCAN_ETL_DATABASE__URL": sqlite_url}
    environment["SCAN_ETL_API__BASE_URL"] = "http://127.0.0.1:1"

    shown, as_json = (cli("config", "show", *more, environment=environment) for more in ((), ("--json",)))
    looked = cli("doctor", "--json", environment=environment)

    assert "Privacy key: SCAN_ETL_PRIVACY_KEY_FILE" in shown.stdout
    assert as_json.json()["privacy_key"] == "SCAN_ETL_PRIVACY_KEY_FILE"
    (finding,) = [one for one in looked.json()["findings"] if one["name"] == "privacy"]
    assert finding["ok"]
    assert "SCAN_ETL_PRIVACY_KEY_FILE" in finding["sentence"]
    assert KEY not in "".join(one.stdout + one.stderr for one in (shown, as_json, looked))


def test_doctor_misses_the_key(cli: Command, sqlite_url: str) -> None:
    """As the run would, with its exit code; everything else is looked at all the same."""
    environment = {**HASH, "SCAN_ETL_DATABASE__URL": sqlite_url, "SCAN_ETL_API__BASE_URL": "http://127.0.0.1:1"}

    outcome = cli("doctor", "--json", environment=environment)

    found = {one["name"]: one for one in outcome.json()["findings"]}
    assert outcome.exit_code == 2
    assert not found["privacy"]["ok"]
    assert found["schema"]["ok"]


# Forgetting


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--email", ADDRESS, "--username", "ann"),
        ("--email", "ann"),
        ("--email", "@example.com"),
        ("--username", " "),
        ("--username", ADDRESS),
        ("--email", ADDRESS, "--json"),
    ],
)
def test_a_call_that_names_nobody_is_wrong(cli: Command, sqlite_url: str, options: tuple[str, ...]) -> None:
    """Nor is anybody forgotten whom no one has confirmed: there is no terminal to ask on."""
    fill(sqlite_url)

    outcome = cli("forget", *options, "--database-url", sqlite_url)

    assert outcome.exit_code == 2
    assert ADDRESS in everything(sqlite_url)


def test_a_person_is_forgotten(cli: Command, sqlite_url: str) -> None:
    """A trial says what would change, and asks nobody; so does the change, which the second time finds nothing."""
    fill(sqlite_url)
    words = ("forget", "--email", ADDRESS.upper(), "--json", "--database-url", sqlite_url)

    trial = cli(*words, "--dry-run")
    kept = everything(sqlite_url)
    done, again = cli(*words, "--yes"), cli(*words, "--yes")

    assert ADDRESS in kept
    assert trial.json() == {**done.json(), "dry_run": True}
    assert {table: count for table, count in done.json()["changed"].items() if count} == {
        "scan_meta": 1,
        "fetch_queue": 1,
    }
    assert done.json()["other_names"] == ["annm"]
    assert set(again.json()["changed"].values()) == {0}
    assert again.exit_code == 0
    assert ADDRESS not in everything(sqlite_url)
    assert "annm/x" in everything(sqlite_url)


def test_people_read_a_table(cli: Command, sqlite_url: str) -> None:
    """With a hint at the person's other names."""
    fill(sqlite_url)

    outcome = cli("forget", "--username", "annm", "--dry-run", "--database-url", sqlite_url)

    assert re.search(r"Would change\n.*table +rows\n(.*\n)*scan_meta +1\n", outcome.stdout)
    assert outcome.stdout.endswith(f"others, to be forgotten by themselves: {ADDRESS}\n")


def test_who_is_hashed_is_forgotten_too(cli: Command, sqlite_url: str) -> None:
    """By the key, which makes the same pseudonym of the address."""
    with running_sandbox(finished_world(5)) as sandbox:
        environment = sandbox.environment(SCAN_ETL_DATABASE__URL=sqlite_url, SCAN_ETL_PRIVACY_KEY=KEY, **HASH)
        assert cli("sync", environment=environment).exit_code == 0
        address = sandbox.sandbox.truth(1)["meta"]["commit_author_email"]
    hashed = ask(sqlite_url, select(scan_meta.c.commit_author_email).where(scan_meta.c.scan_id == 1))[0][0]

    outcome = cli("forget", "--email", address, "--yes", "--json", environment=environment)

    assert outcome.json()["changed"]["scan_meta"] >= 1
    assert outcome.json()["other_names"] == []
    assert hashed not in everything(sqlite_url)


def test_an_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    """With what SQLite puts beside it; a file that is there keeps its mode."""
    program = (
        "import os; os.umask(0o022)\n"
        "from etl.database.migrate import upgrade; from etl.database.connection import Database\n"
        "upgrade('sqlite:///new.db'); open('old.db', 'w').close(); upgrade('sqlite:///old.db')\n"
        "import json; work = lambda _: {name: oct(os.stat(name).st_mode & 0o777) for name in os.listdir()}\n"
        "print(json.dumps(Database('sqlite:///new.db').run_here(work)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    modes: dict[str, Any] = json.loads(done.stdout)
    assert modes == {"new.db": "0o600", "new.db-wal": "0o600", "new.db-shm": "0o600", "old.db": "0o644"}
