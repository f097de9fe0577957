"""URLs in the settings: those that pass, those that are refused, and none that shows its password."""

from pathlib import Path

import pytest
from given_settings import SECRET, load, problems, written
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.config.masking import mask_url
from etl.config.settings import Origin, origins
from etl.database.engine import parse_url
from etl.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://semgrep.dev", "https://semgrep.dev"),
        ("https://acme.semgrep.dev/", "https://acme.semgrep.dev"),
        ("https://proxy.example:8443/semgrep//", "https://proxy.example:8443/semgrep"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_urls_are_https_or_of_this_machine(given: str, kept: str) -> None:
    """The slash at the end goes."""
    assert load(flags={"api.base_url": given}).api.base_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "http://semgrep.dev",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://[::2]",
        "ftp://localhost",
        "semgrep.dev",
        "https://",
        "https://:443",
        "https://[::1",
        "https://semgrep.dev:x",
        "https://semgrep.dev:99999",
        "https://user:hunter2@semgrep.dev",
        "https://hunter2@semgrep.dev",
        "https://semgrep.dev?token=hunter2",
        "https://semgrep.dev/#x",
        "https://semgrep.dev\\@localhost",
        "https://semgrep .dev",
        "https://semgrep.dev\n",
        "https://sämgrep.dev",
    ],
)
def test_other_base_urls_are_refused(url: str) -> None:
    """A token never goes over the network in the clear, and a URL with more than an address isn't one."""
    found = problems(flags={"api.base_url": url})

    assert len(found) == 1
    assert found[0].startswith("flag: api.base_url is '")
    assert "; it must be" in found[0]


@pytest.mark.parametrize(
    ("more", "base_url", "source"),
    [
        ({}, "https://acme.semgrep.dev", "environment SEMGREP_URL"),
        ({"SEMGREP_URL": ""}, "https://old.semgrep.dev", "environment SEMGREP_APP_URL"),
        (
            {"SCAN_ETL_API__BASE_URL": "https://own.example"},
            "https://own.example",
            "environment SCAN_ETL_API__BASE_URL",
        ),
        ({"SEMGREP_URL": "", "SEMGREP_APP_URL": ""}, "https://semgrep.dev", "default"),
    ],
)
def test_the_variables_of_semgreps_own_programs_give_the_default(
    more: dict[str, str], base_url: str, source: str
) -> None:
    """SEMGREP_URL before SEMGREP_APP_URL; our own setting wins, and the source is named."""
    environ = {"SEMGREP_URL": "https://acme.semgrep.dev/", "SEMGREP_APP_URL": "https://old.semgrep.dev", **more}

    assert Origin("api.base_url", base_url, source) in origins(load(environ=environ))


def test_a_file_wins_over_the_variables_of_semgreps_own_programs(tmp_path: Path) -> None:
    """And so a wrong one that isn't in force is no error."""
    config_file = written(tmp_path / "some.toml", '[api]\nbase_url = "https://own.example"\n')

    settings = load(config_file=config_file, environ={"SEMGREP_URL": "semgrep.dev"})

    assert settings.api.base_url == "https://own.example"


@pytest.mark.parametrize("variable", ["SEMGREP_URL", "SEMGREP_APP_URL"])
def test_a_wrong_address_in_a_variable_of_semgreps_is_named(variable: str) -> None:
    """As it would be in one of ours, without a password."""
    (said,) = problems(environ={variable: f"http://user:{SECRET}@semgrep.example"})

    assert said.startswith(f"environment {variable}: api.base_url is 'http://user:***@semgrep.example'; it must ")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///scans.db",
        "sqlite:////var/lib/scan etl/scäns.db",
        "sqlite:///C:\\scans.db",
        "postgresql://localhost/scans",
        "postgres://user@localhost/scans",
        "postgresql+psycopg://user:pass@db.example:5432/scans",
        "postgresql://user:p%40ss/w:rd#?@db.example/scans?sslmode=require",
        "postgresql://[::1]:5432/scans",
        "postgresql:///scans?host=/var/run/postgresql",
        "mysql://user:pass@localhost/scans",
        "mariadb://user@db.example:3307/scans?ssl_ca=/etc/ca.pem",
        "mysql+pymysql:///scans?unix_socket=/run/mysqld/mysqld.sock",
        "mariadb+pymysql://localhost/scans",
    ],
)
def test_database_urls_of_every_kind_pass(url: str) -> None:
    """They stay as they are, and SQLAlchemy understands them."""
    assert load(flags={"database.url": url}).database.url == url
    assert parse_url(url).database


@pytest.mark.parametrize(
    "url",
    [
        "",
        "scans.db",
        "sqlite:scans.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://scans.db",
        "oracle://localhost/scans",
        "mysql+asyncmy://localhost/scans",
        "postgresql+asyncpg://localhost/scans",
        "postgresql:/localhost/scans",
        "postgresql://user:pa@ss@localhost/scans",
        "postgresql://localhost:port/scans",
        "postgresql://[::1/scans",
        "sqlite:///a\0b",
    ],
)
def test_other_database_urls_are_refused(url: str) -> None:
    """The sentence shows a URL of each kind."""
    found = problems(flags={"database.url": url})

    assert len(found) == 1
    assert "; it must be like sqlite:///scans.db or postgresql://" in found[0]


def test_a_database_in_memory_is_refused() -> None:
    """Nothing of what a command does would be left of it."""
    (said,) = problems(flags={"database.url": "sqlite:///:memory:"})

    assert said.endswith("such a database is gone when the command ends: name a file, e.g. sqlite:///scans.db")


PASSWORDS = st.tuples(st.text(max_size=8), st.text(max_size=8)).map(SECRET.join)
URL_SHAPES = st.sampled_from(
    [
        "postgresql://user:{}@host:5432/name",
        "postgresql://:{}@host",
        "postgresql+psycopg://user:{}@/name?host=a@b",
        "postgres:///user:{}@host/name",
        "postgresql:/user:{}@host/name",
        "postgresql//user:{}@host/name",
        "postgresql://user:5432/{}?token=x@host/name",
        "postgresql://user:5432/x?token={}@host/name",
        "user:{}@host/name",
        "mysql://user:{}@host/name",
        "sqlite://user:{}@host/name",
        "https://user:{}@semgrep.dev",
    ]
)
URLS = (
    st.builds(str.format, URL_SHAPES, PASSWORDS)
    | PASSWORDS.map(lambda password: "postgresql://user:x" + password.replace("@", "%40"))
    | PASSWORDS.map(lambda password: "postgresql://[::1]:5432/name?a=b&PASSWORD=" + password.replace("&", "%26"))
)


@given(url=URLS)
def test_no_url_shows_its_password(url: str) -> None:
    """Well-formed or not, and whatever is in the password."""
    assert SECRET not in mask_url(url)


@given(url=URLS, key=st.sampled_from(["database.url", "api.base_url"]))
def test_no_error_and_no_listing_shows_a_password(url: str, key: str) -> None:
    """A URL that is refused is told without it, and one that is in force is listed without it."""
    try:
        settings = load(flags={key: url})
    except ConfigError as error:
        told = str(error)
    else:
        told = f"{settings!r} {settings} {settings.database!r} {settings.database} {origins(settings)}"

    assert SECRET not in told


@given(url=URLS)
def test_database_urls_that_pass_are_understood(url: str) -> None:
    """What the settings let through, SQLAlchemy can take apart."""
    try:
        passed = load(flags={"database.url": url}).database.url
    except ConfigError:
        passed = "sqlite:///scans.db"

    assert parse_url(passed).drivername in {"sqlite", "postgresql+psycopg", "mysql+pymysql"}


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("sqlite:///scans.db", "sqlite:///scans.db"),
        ("sqlite:///C:/a@b:c.db", "sqlite:///C:/a@b:c.db"),
        ("postgresql://host:5432/name", "postgresql://host:5432/name"),
        ("postgresql://host:5432", "postgresql://host:5432"),
        ("postgresql://[::1]:5432/name", "postgresql://[::1]:5432/name"),
        ("postgresql://user@host/name", "postgresql://user@host/name"),
        ("postgresql://user:x@host:5432/name?a=b", "postgresql://user:***@host:5432/name?a=b"),
        ("postgresql://host/name?a=b&password=x&c=d", "postgresql://host/name?a=b&password=***&c=d"),
        ("postgresql://host/name?p%61ssword=x&sslpassword=y", "postgresql://host/name?p%61ssword=***&sslpassword=***"),
    ],
)
def test_the_rest_of_a_url_stays(url: str, masked: str) -> None:
    """What is no password can be read."""
    assert mask_url(url) == masked


def test_settings_are_frozen() -> None:
    """Nobody changes them on the way."""
    settings = load()

    with pytest.raises(ValidationError):
        settings.api.rate = 1.0
    with pytest.raises(ValidationError):
        settings.api = settings.api
