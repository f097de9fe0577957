"""The command behind a proxy: what the environment names is obeyed, shown by `doctor`, and its password by nobody."""

import os
from base64 import b64encode
from pathlib import Path

import pytest
from command import Command, CommandResult
from faulty_runs import ONCE, rows, run
from forward_proxy import ForwardProxy
from sandbox_thread import finished_world, running_sandbox
from small_api import HIDDEN, HIDDEN_HOST, UNTRUSTED, SmallApi, in_thread, tls_of

from etl.database.schema import fetch_queue, runs, scans
from etl.model import Pair

LOGIN = "etl:hunter2/hunter2"
SECRETS = ("hunter2", "hunter2%2Fhunter2", b64encode(LOGIN.encode()).decode())
PAIRS = [Pair(120, number) for number in range(1, 21)]
BASE_URL = f"https://{HIDDEN_HOST}"


def through(place: str, scheme: str = "http") -> dict[str, str]:
    """The environment in which the API is asked through the proxy at this place."""
    return {
        "SCAN_ETL_API__BASE_URL": BASE_URL,
        "HTTPS_PROXY": f"{scheme}://etl:hunter2%2Fhunter2@{place}",
        "SSL_CERT_FILE": str(HIDDEN),
        **ONCE,
    }


def shown(outcome: CommandResult) -> str:
    return outcome.stdout + outcome.stderr


def test_a_host_that_only_the_proxy_knows_is_reached(cli: Command, sqlite_url: str) -> None:
    """By tunnels that are kept, and to which the token isn't shown; `~/.netrc` isn't asked who logs in there."""
    (cli.folder / ".netrc").write_text(f"machine {HIDDEN_HOST} login somebody password else\n")
    api, proxy = SmallApi(), ForwardProxy(login=LOGIN)
    with in_thread(api, tls_of(HIDDEN)) as direct, proxy.in_thread() as place:
        proxy.hosts = {HIDDEN_HOST: int(direct.rpartition(":")[2])}
        outcome = run(cli, BASE_URL, sqlite_url, PAIRS, **through(place), SCAN_ETL_API__CONCURRENCY="2")

    assert outcome.exit_code == 0, outcome
    assert len(rows(sqlite_url, scans)) == len(api.details_seen()) == len(PAIRS)
    assert {asked.line for asked in proxy.asked} == {f"CONNECT {HIDDEN_HOST}:443 HTTP/1.1"}
    assert len(proxy.asked) <= 3
    assert not any("Bearer" in asked.headers for asked in proxy.asked)
    assert not any("Proxy-Authorization" in seen.headers for seen in api.seen)
    assert not any(secret in shown(outcome) for secret in SECRETS)


def test_a_proxy_may_be_reached_by_tls(cli: Command, sqlite_url: str, tmp_path: Path) -> None:
    """The API's TLS goes through the proxy's."""
    authorities = tmp_path / "both.pem"
    authorities.write_text(HIDDEN.read_text() + UNTRUSTED.read_text())
    proxy = ForwardProxy(login=LOGIN)
    with in_thread(SmallApi(), tls_of(HIDDEN)) as direct, proxy.in_thread(tls_of(UNTRUSTED)) as place:
        proxy.hosts = {HIDDEN_HOST: int(direct.rpartition(":")[2])}
        given = {**through(place, "https"), "SSL_CERT_FILE": str(authorities)}
        outcome = run(cli, BASE_URL, sqlite_url, PAIRS, **given)

    assert outcome.exit_code == 0, outcome
    assert len(rows(sqlite_url, scans)) == len(PAIRS)
    assert "Warning" not in outcome.stderr


def test_a_proxy_that_refuses_the_login_is_exit_4(cli: Command, sqlite_url: str) -> None:
    """At once, with what to do; the queue is whole, and no place shows the password."""
    proxy = ForwardProxy(login="etl:other")
    with proxy.in_thread() as place:
        outcome = run(cli, BASE_URL, sqlite_url, PAIRS, **through(place))
        status = cli("status", environment={"SCAN_ETL_DATABASE__URL": sqlite_url, **through(place)})

    assert outcome.exit_code == 4, outcome
    assert len(rows(sqlite_url, fetch_queue)) == len(PAIRS)
    assert f"the proxy http://***@{place} (HTTPS_PROXY) refuses with HTTP 407" in outcome.stderr
    everything = shown(outcome) + shown(status) + repr(rows(sqlite_url, runs) + rows(sqlite_url, fetch_queue))
    assert not any(secret in everything for secret in SECRETS)


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_socks_proxy_is_exit_2(cli: Command, sqlite_url: str, command: str) -> None:
    """For what asks the API; other commands don't mind."""
    environment = {"ALL_PROXY": "socks5h://etl:hunter2@127.0.0.1:1080", "SCAN_ETL_DATABASE__URL": sqlite_url, **ONCE}

    outcome = cli(command, environment=environment)

    assert outcome.exit_code == 2
    assert "ALL_PROXY: a SOCKS proxy can't be used" in " ".join(shown(outcome).split())
    assert "hunter2" not in shown(outcome)
    assert cli("status", environment=environment).exit_code == 0


def test_doctor_shows_the_proxy_and_the_certificates_in_force(cli: Command, sqlite_url: str) -> None:
    """Also where the API doesn't answer, and then what is wrong with them."""
    given = {"SCAN_ETL_DATABASE__URL": sqlite_url}
    proxy = ForwardProxy(login=LOGIN)
    with in_thread(SmallApi(), tls_of(HIDDEN)) as direct, proxy.in_thread() as place:
        proxy.hosts = {HIDDEN_HOST: int(direct.rpartition(":")[2])}
        fine = cli("doctor", "--json", environment=through(place) | given)
        unknown = cli("doctor", "--json", environment=through(place) | given | {"SSL_CERT_FILE": os.devnull})
    away = cli("doctor", "--json", environment=through("127.0.0.1:1") | given)

    sound, untrusted, unreachable = (
        {found["name"]: found["sentence"] for found in outcome.json()["findings"]} for outcome in (fine, unknown, away)
    )
    assert sound["proxy"] == f"http://***@{place} from HTTPS_PROXY"
    assert f"{HIDDEN} (SSL_CERT_FILE)" in sound["certificates"]
    assert untrusted["certificates"].startswith(f"SSL_CERT_FILE names {os.devnull}, which has no certificates")
    assert "SSL_CERT_FILE or SSL_CERT_DIR" in untrusted["api"]
    assert unreachable["proxy"] == "http://***@127.0.0.1:1 from HTTPS_PROXY"
    assert f"{BASE_URL} doesn't answer: can't connect to the proxy http://***@127.0.0.1:1" in unreachable["api"]
    assert not any(secret in shown(outcome) for outcome in (fine, unknown, away) for secret in SECRETS)


def test_the_sandbox_and_the_demo_need_no_proxy(cli: Command, sqlite_url: str) -> None:
    """They are on this machine, where the environment's proxy is not."""
    nowhere = {"ALL_PROXY": "http://proxy.invalid:3128", "HTTPS_PROXY": "http://127.0.0.1:1"}
    with running_sandbox(finished_world(5)) as sandbox:
        given = sandbox.environment(SCAN_ETL_DATABASE__URL=sqlite_url, **nowhere)
        outcome = cli("run", "-", "--json", stdin=sandbox.pairs_text(), environment=given)
    demo = cli("demo", "--scans", "20", environment=nowhere | {"HTTP_PROXY": "http://127.0.0.1:1"})

    assert (outcome.exit_code, demo.exit_code) == (0, 0), (outcome, demo)
