"""URLs in the settings: those that pass, those that are refused, and none that shows its password."""

from pathlib import Path

import pytest
from given_settings import SECRET, load, problems, written
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.config.masking import mask_url
from etl.config.settings import Origin, origins
from etl.config.urls import Address
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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://etl:hunter2@db/scans", "leave out the + and the driver behind it"),
        ("postgresql+psycopg2://etl:hunter2@db/scans", "leave out the + and the driver behind it"),
        ("mysql+aiomysql://etl:hunter2@db/scans", "leave out the + and the driver behind it"),
        ("sqlite+aiosqlite:///scans.db", "leave out the + and the driver behind it"),
        ("jdbc:postgresql://db/scans?user=etl&password=hunter2", "leave out jdbc:, and write user and password"),
        ("'postgresql://etl:hunter2@db/scans'", "leave out the quotes around it"),
        ("DATABASE_URL=postgresql://etl:hunter2@db/scans", "leave out what stands before the URL"),
        ("host=db user=etl password=hunter2", "these are names and values, and no URL"),
        ("Server=db;Password=hunter2;", "these are names and values, and no URL"),
        ("psql postgresql://etl:hunter2@db/scans", "that is a command, and no URL"),
        ("mysql -u etl -phunter2 -h db scans", "that is a command, and no URL"),
        ("postgresql://etl:hunter2@db/scans\n", "there is a line break or another control character in it"),
        ("postgresql://etl:hunter2@db/scans ", "there is a blank at its beginning or its end"),
        ("pgsql://etl:hunter2@db/scans", "it begins with no kind of database that is known"),
        ("etl:hunter2@db/scans", "it begins with no kind of database that is known"),
        ("PostgreSQL://etl:hunter2@db/scans", "the kind of database is written in small letters"),
        ("SQLITE:///scans.db", "the kind of database is written in small letters"),
        ("hunter2", "it must be like sqlite:///scans.db"),
        ("sqlite://scans.db", "three slashes stand before the name of a file, and four before its whole path"),
        ("postgresql://etl:hunter2@tail@db/scans", "an @ in a user, a password or a parameter is written %40"),
        ("postgresql://etl:pw@hunter2/more@127.0.0.1/db", "an @ in a user, a password or a parameter is written %40"),
        ("mysql://etl@azure:hunter2@db/scans", "an @ in a user, a password or a parameter is written %40"),
        ("postgresql://db?user=etl&password=hunter2@x", "an @ in a user, a password or a parameter is written %40"),
        ("postgresql://etl:hunter2@db:543210/scans", "behind the host and a colon stands the port, 65535 at most"),
        ("mysql://etl:hunter2@db:${PORT}/scans", "behind the host and a colon stands the port, 65535 at most"),
        ("postgresql://etl:hunter2@%2Fvar%2Frun/db", "a socket's folder is a parameter: postgresql://user@/name?host="),
        ("mysql://etl@%2frun%2fmysqld.sock/db", "a socket is a parameter: mysql://user@/name?unix_socket=/run/"),
        ("postgresql://etl:hunter2@db/scans?schema=etl", "the schema is a setting, [database] schema"),
        ("postgresql://db/scans?a=b&currentSchema=etl", "the schema is a setting, [database] schema"),
        ("postgresql://etl:hunter2@db/scans?ssl=true", "TLS is asked for by sslmode=require, or verify-full"),
        ("mysql://etl:hunter2@db/scans?ssl=true", "TLS is asked for by ssl_ca=FILE, whom to trust"),
        ("mariadb://db/scans?charset=utf8mb4&ssl-mode=REQUIRED", "TLS is asked for by ssl_ca=FILE, whom to trust"),
        ("mysql://etl:hunter2@db", "the name of the database is missing"),
        ("mysql://etl:hunter2@db/?charset=utf8mb4", "the name of the database is missing"),
    ],
)
def test_a_url_as_people_paste_it_gets_the_sentence_that_fits(url: str, said: str) -> None:
    """Without a piece of the password, and with a URL as it should be."""
    (problem,) = problems(flags={"database.url": url})

    assert f"; {said}" in problem
    assert problem.startswith("flag: database.url is ")
    assert "; it must be like sqlite:///scans.db or postgresql://" in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://etl:a/b?schema=x&ssl=true#c:d@db/scans",
        "mysql://etl:p?ssl=1@db/scans",
        "mysql://db/?database=scans",
        "postgresql://db:65535/scans?options=-csearch_path%3Detl",
        "postgresql://etl%40azure:x%40y@db/scans",
    ],
)
def test_what_only_looks_like_a_wrong_url_passes(url: str) -> None:
    """A password may hold anything but an @."""
    assert load(flags={"database.url": url}).database.url == url


def test_a_database_in_memory_is_refused() -> None:
    """Nothing of what a command does would be left of it."""
    (said,) = problems(flags={"database.url": "sqlite:///:memory:"})

    assert said.endswith("such a database is gone when the command ends: name a file, e.g. sqlite:///scans.db")


@pytest.mark.parametrize(
    ("url", "schema", "said"),
    [
        ("sqlite:///scans.db", "etl", "an SQLite file has no schemas: leave it empty, and name another file in"),
        ("mariadb://localhost/scans", "etl", "MySQL and MariaDB have no schemas in a database: leave it empty, and"),
        ("postgresql://localhost/scans", "etl,public", "it must be one name of at most 63 letters, digits, _ and -"),
        ("postgresql://localhost/scans", 'e"tl', "it must be one name of at most 63 letters, digits, _ and -"),
        ("postgresql://localhost/scans", "s" * 64, "it must be one name of at most 63 letters, digits, _ and -"),
    ],
)
def test_a_schema_is_one_name_and_for_postgresql_alone(url: str, schema: str, said: str) -> None:
    """Elsewhere another file or database does the same."""
    (problem,) = problems(flags={"database.url": url, "database.schema": schema})

    assert problem.startswith(f"flag: database.schema is {schema[:60]!r}; {said}")


def test_of_a_wrong_url_the_schema_says_nothing() -> None:
    """One sentence for one mistake."""
    (problem,) = problems(flags={"database.url": "oracle://localhost", "database.schema": "etl"})

    assert problem.startswith("flag: database.url is")


IN_FILE = "postgresql://etl:hunter2@db.example/scans"
VARIABLE, FILE_VARIABLE = "SCAN_ETL_DATABASE__URL", "SCAN_ETL_DATABASE__URL_FILE"


@pytest.mark.parametrize("content", [IN_FILE, f"{IN_FILE}\n", f"\ufeff{IN_FILE}\r\n"])
def test_a_file_may_hold_the_database_url(tmp_path: Path, content: str) -> None:
    """The listing shows it without its password, and says where it came from."""
    file = written(tmp_path / "database-url", content)
    settings = load(environ={FILE_VARIABLE: str(file)})

    assert settings.database.address == Address(IN_FILE, url_file=str(file))
    assert Origin("database.url", "postgresql://etl:***@db.example/scans", "database.url_file") in origins(settings)
    assert Origin("database.url_file", str(file), f"environment {FILE_VARIABLE}") in origins(settings)


def test_the_stronger_of_a_url_and_of_a_file_with_one_is_in_force(tmp_path: Path) -> None:
    """As with all settings: a flag wins over the environment, and that over a file of settings."""
    file = written(tmp_path / "database-url", IN_FILE)
    names_file = written(tmp_path / "a.toml", f'[database]\nurl_file = "{file}"\n')
    names_url = written(tmp_path / "b.toml", '[database]\nurl = "sqlite:///b.db"\n')
    other = "sqlite:///scans.db"

    found = [
        load(config_file=names_file, environ={VARIABLE: other}),
        load(environ={FILE_VARIABLE: str(file)}, flags={"database.url": other}),
        load(config_file=names_url, environ={FILE_VARIABLE: str(file)}),
    ]

    assert [settings.database.url for settings in found] == [other, other, IN_FILE]
    assert [settings.database.url_file for settings in found] == ["", "", str(file)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "database.url_file: the file can't be read (No such file or directory): give the path of a file"),
        ("", "database.url_file: the file is empty: write the URL into it"),
        ("hunter2", "database.url_file: the file holds no URL, such as postgresql://"),
        ("postgresql://etl:hunter2@db@x/scans", "database.url_file: database.url is 'postgresql://etl:***@x/scans'; "),
    ],
)
def test_a_file_without_a_usable_url_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    """Its path isn't shown, for somebody may have put the URL itself there."""
    file = tmp_path / "database-url"
    if content is not None:
        written(file, content)
    (problem,) = problems(environ={FILE_VARIABLE: str(file)})

    assert problem.startswith(said)
    assert str(tmp_path) not in problem


def test_a_url_and_a_file_with_one_beside_it_are_refused(tmp_path: Path) -> None:
    """Nobody should have to guess which of the two counts."""
    file = written(tmp_path / "database-url", IN_FILE)
    (problem,) = problems(environ={VARIABLE: "sqlite:///scans.db", FILE_VARIABLE: str(file)})

    assert problem == (
        f"environment {FILE_VARIABLE}: database.url and database.url_file are both given: leave one of them out"
    )


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
        "host=db password={}",
        "DATABASE_URL=postgresql://user:{}@host",
        "mysql -p{} name",
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
