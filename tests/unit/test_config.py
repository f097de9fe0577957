"""Settings and tokens: which source wins, what is refused and how that is said, and that no secret shows."""

import codecs
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.config.settings import Origin, Settings, load_settings, mask_url, origins
from etl.config.tokens import load_tokens
from etl.database.engine import parse_url
from etl.errors import ConfigError
from etl.model import INT64_MAX

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
NOWHERE = Path("/folder/that/is/not/there")
SECRET = "hunter2"


def load(
    *,
    config_file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path = NOWHERE,
) -> Settings:
    return load_settings(config_file=config_file, flags=flags or {}, environ=environ or {}, directory=directory)


def problems(**sources: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**sources)
    return str(caught.value).splitlines()


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def variable(key: str) -> str:
    return "SCAN_ETL_" + key.replace(".", "__").upper()


DEFAULTS = {origin.key: origin.value for origin in origins(load())}


def test_the_example_equals_the_defaults() -> None:
    """The example names every setting, in the order of the sections, with the default's value and type."""
    example = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    named = [(f"{section}.{key}", value) for section, table in example.items() for key, value in table.items()]
    frozen = [(key, tuple(value) if isinstance(value, list) else value) for key, value in named]

    assert [(key, value, type(value)) for key, value in frozen] == [(k, v, type(v)) for k, v in DEFAULTS.items()]


@pytest.mark.parametrize(
    ("text", "deployments"),
    [("120", (120,)), ("120,121", (120, 121)), ("[120, 121]", (120, 121)), (" 120 121 ", (120, 121)), ("", ())],
)
def test_deployments_are_a_list_in_the_environment_too(text: str, deployments: tuple[int, ...]) -> None:
    """In any of the forms in which people write one."""
    assert load(environ={"SCAN_ETL_DISCOVER__DEPLOYMENTS": text}).discover.deployments == deployments


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("deployments = [true]", "it must be ids of deployments, such as [120, 121]"),
        ("deployments = true", "it must be ids of deployments, such as [120, 121]"),
        ('deployments = ["acme"]', "it must be ids of deployments, such as [120, 121]"),
        ("deployments = [0]", "it must be greater than or equal to 1"),
        ('lookback = "31d"', "it must be 30d at most: the list goes back no further"),
        ('overlap = "long"', "it must be a duration such as 90s, 10m, 2h or 7d"),
    ],
)
def test_what_discovery_cannot_do_is_refused(tmp_path: Path, line: str, problem: str) -> None:
    """With one sentence that says what is right."""
    (said,) = problems(config_file=written(tmp_path / "some.toml", f"[discover]\n{line}\n"))

    assert said.endswith(problem)


def test_the_example_explains_every_setting() -> None:
    """Each setting has a comment on its line."""
    settings = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] != "#"]

    assert len(settings) == len(DEFAULTS)
    assert [line for line in settings if " # " not in line] == []


def test_the_example_can_be_loaded() -> None:
    """A copy of the example changes nothing but where the settings come from."""
    settings = load(config_file=EXAMPLE)

    assert {origin.key: origin.value for origin in origins(settings)} == DEFAULTS
    assert {origin.source for origin in origins(settings)} == {str(EXAMPLE)}


@pytest.mark.parametrize(
    ("sources", "rate", "source"),
    [
        ("", 20.0, "default"),
        ("file", 1.0, "config.toml"),
        ("environment", 2.0, "environment SCAN_ETL_API__RATE"),
        ("flag", 3.0, "flag"),
        ("file environment", 2.0, "environment SCAN_ETL_API__RATE"),
        ("file flag", 3.0, "flag"),
        ("environment flag", 3.0, "flag"),
        ("file environment flag", 3.0, "flag"),
    ],
)
def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, sources: str, rate: float, source: str
) -> None:
    """The strongest source that names a setting decides, and is named as its origin; others stay in force beside it."""
    toml = "[api]\nretries = 7\n" + ("rate = 1\n" if "file" in sources else "")
    settings = load(
        directory=written(tmp_path / "config.toml", toml).parent,
        environ={"SCAN_ETL_API__RATE": "2" if "environment" in sources else "", "SCAN_ETL_API__CONCURRENCY": "8"},
        flags={"api.rate": 3 if "flag" in sources else None, "queue.max_attempts": 9},
    )

    assert (settings.api.rate, settings.api.retries) == (rate, 7)
    assert (settings.api.concurrency, settings.queue.max_attempts) == (8, 9)
    assert Origin("api.rate", rate, source) in origins(settings)
    assert Origin("api.retries", 7, "config.toml") in origins(settings)
    assert Origin("database.url", "sqlite:///scans.db", "default") in origins(settings)


OTHER_VALUES = {
    "api.base_url": "https://acme.semgrep.dev",
    "api.max_body_bytes": "2048",
    "database.url": "postgresql://localhost/scans",
    "privacy.author": "hash",
    "observe.log_format": "json",
    "observe.log_level": "debug",
    "observe.metrics_file": "/var/lib/metrics/scan.prom",
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_setting_has_its_variable(key: str) -> None:
    """`rate` in `[api]` is SCAN_ETL_API__RATE, and so for all others."""
    settings = load(environ={variable(key): OTHER_VALUES.get(key, "7")})
    changed = [origin for origin in origins(settings) if origin.source != "default"]

    assert [(origin.key, origin.source) for origin in changed] == [(key, f"environment {variable(key)}")]
    assert changed[0].value != DEFAULTS[key]


def test_only_the_environment_that_is_given_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the process's own environment nor a .env file in the folder has a say."""
    monkeypatch.setenv("SCAN_ETL_API__RATE", "5")
    monkeypatch.chdir(tmp_path)
    written(tmp_path / ".env", "SCAN_ETL_API__RETRIES=9\n")
    settings = load(directory=tmp_path)

    assert (settings.api.rate, settings.api.retries) == (20.0, 2)


@pytest.mark.parametrize(
    "environ",
    [
        {"SCAN_ETL_TEST_POSTGRES_URL": "postgresql://localhost"},
        {"SCAN_ETL_API": "not JSON"},
        {"SCAN_ETL_SOURCES": "not JSON"},
        {"SCAN_ETL_API__RATE": ""},
        {"SCAN_ETL_API__NO_SUCH_KEY": ""},
        {"OTHER__API__RATE": "5"},
    ],
)
def test_other_variables_and_empty_ones_are_ignored(environ: dict[str, str]) -> None:
    """A variable is ours if it has two underscores after our prefix, and unset if it is empty."""
    assert load(environ=environ) == Settings()


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As some editors on Windows save it."""
    (tmp_path / "config.toml").write_bytes(codecs.BOM_UTF8 + b"[api]\r\nrate = 1\r\n")

    assert load(directory=tmp_path).api.rate == 1


def test_a_file_that_is_named_takes_the_place_of_config_toml(tmp_path: Path) -> None:
    """With --config, config.toml isn't read, and the file's name is the origin."""
    written(tmp_path / "config.toml", "[api]\nrate = 1\n")
    other = written(tmp_path / "other.toml", "[api]\nretries = 1\n")
    settings = load(config_file=other, directory=tmp_path)

    assert settings.sources == {"api.retries": str(other)}
    assert (settings.api.rate, settings.api.retries) == (20.0, 1)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (
            {"environ": {"SCAN_ETL_API__RAT": "1"}},
            "environment: SCAN_ETL_API__RAT is not a setting; the nearest is SCAN_ETL_API__RATE",
        ),
        (
            {"environ": {"SCAN_ETL_APL__RATE": "1"}},
            "environment: SCAN_ETL_APL__RATE is not a setting; the nearest is SCAN_ETL_API__RATE",
        ),
        (
            {"environ": {"SCAN_ETL_DATABASE_URL": "sqlite:///x.db"}},
            "environment: SCAN_ETL_DATABASE_URL is not a setting; the nearest is SCAN_ETL_DATABASE__URL",
        ),
        (
            {"environ": {"SCAN_ETL_api__rate": "1"}},
            "environment: SCAN_ETL_api__rate is not a setting; the nearest is SCAN_ETL_API__RATE",
        ),
        (
            {"environ": {"SCAN_ETL_API__RATE__X": "1"}},
            "environment: SCAN_ETL_API__RATE__X is not a setting; the nearest is SCAN_ETL_API__RATE",
        ),
        ({"flags": {"api.rat": 1}}, "flag: api.rat is not a setting; the nearest is api.rate"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(sources: dict[str, Any], said: str) -> None:
    """A slip of the pen isn't passed over in silence."""
    assert problems(**sources) == [said]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[api]\nspeed = 1", "api.speed is not a setting; the nearest is api."),
        ("[databse]\nurl = 'x'", "databse is not a setting; the nearest is database.url"),
        ("[empty]", "empty is not a setting; the nearest is "),
        ("[sources]\n'api.rate' = 'x'", "sources is not a setting; the nearest is "),
        ("rate = 1", "rate is not a setting; the nearest is api.rate"),
        ("api = 1", "api is not a setting but a table of them: write [api]"),
        (
            "[api]\ntoken = 'hunter2'",
            "api.token is not a setting; a token comes from the environment variable SEMGREP_APP_TOKEN",
        ),
        ("[api.rate]\nx = 1", "api.rate is not a single value; it must be a valid number"),
        ("[database]\nurl = ['hunter2']", "database.url is not a single value; it must be a valid string"),
    ],
)
def test_unknown_tables_and_keys_are_refused(tmp_path: Path, toml: str, said: str) -> None:
    """The file is named, and no value is shown."""
    found = problems(directory=written(tmp_path / "config.toml", toml).parent)

    assert len(found) == 1
    assert found[0].startswith(f"config.toml: {said}")
    assert SECRET not in found[0]


@pytest.mark.parametrize("name", [".", "..", "/", "metrics/..", "a\\u0000b"])
def test_what_is_no_name_of_a_metrics_file_is_refused(tmp_path: Path, name: str) -> None:
    """Before a run starts, not at its end."""
    [found] = problems(directory=written(tmp_path / "config.toml", f'[observe]\nmetrics_file = "{name}"').parent)

    assert "observe.metrics_file" in found
    assert "it must be the name of a file" in found


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One line for each, so that nobody fixes them one by one."""
    path = written(tmp_path / "config.toml", "[api]\nrate = -1\nretries = 1.5\n\n[privacy]\nauthor = 'no'\nx = 1\n")
    found = problems(config_file=path, environ={"SCAN_ETL_QUEUE__X": "1"}, flags={"database.batch_size": 0})

    assert found == [
        "environment: SCAN_ETL_QUEUE__X is not a setting; the nearest is SCAN_ETL_QUEUE__MAX_ATTEMPTS",
        f"{path}: privacy.x is not a setting; the nearest is privacy.author",
        f"{path}: api.rate is -1; it must be greater than 0",
        f"{path}: api.retries is 1.5; it must be a valid integer, got a number with a fractional part",
        "flag: database.batch_size is 0; it must be greater than or equal to 1",
        f"{path}: privacy.author is 'no'; it must be 'keep', 'hash' or 'drop'",
    ]


NUMBERS = [key for key, value in DEFAULTS.items() if isinstance(value, int | float)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e400", "9" * 400, "1_0x", "many", " "])
def test_numbers_are_finite_and_within_bounds(key: str, value: str) -> None:
    """The sentence names the variable, the key, the value cut to 60 characters, and what is allowed."""
    found = problems(environ={variable(key): value})

    assert len(found) == 1
    assert found[0].startswith(f"environment {variable(key)}: {key} is {value[:60]!r}; ")


@pytest.mark.parametrize("key", NUMBERS)
def test_true_is_no_number(tmp_path: Path, key: str) -> None:
    """TOML's booleans don't pass for 1."""
    section, _, name = key.partition(".")
    path = written(tmp_path / "x.toml", f"[{section}]\n{name} = true\n")

    assert problems(config_file=path) == [f"{path}: {key} is True; it must be a number or a text"]


@pytest.mark.parametrize("key", [key for key in NUMBERS if DEFAULTS[key] != 0 and key not in {"api.retries"}])
def test_zero_means_none_only_where_the_example_says_so(key: str) -> None:
    """No rate, no time limit and no batch of 0."""
    assert len(problems(flags={key: 0})) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[api]\nrate = \n", " isn't TOML: Invalid value (at line 2, column 8)"),
        ("[api\n", " isn't TOML: Expected ']' at the end of a table declaration (at line 1, column 5)"),
        ("[api]\nrate = " + "9" * 5000, " isn't TOML: "),
        (b"[api]\n# \xff\n", " isn't UTF-8 (at line 2): save it as UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    """The file and the line are named."""
    path = written(tmp_path / "x.toml", content)

    assert problems(config_file=path)[0].startswith(f"{path}{said}")


@pytest.mark.parametrize("name", ["missing.toml", "", "file/x", "nul\0", "x" * 300])
def test_a_file_that_is_named_must_be_there(tmp_path: Path, name: str) -> None:
    """Only config.toml may be missing."""
    written(tmp_path / "file", "")
    path = tmp_path / name

    assert problems(config_file=path)[0].startswith(f"{path} ")


def test_a_folder_named_config_toml_is_refused(tmp_path: Path) -> None:
    """What is there but can't be read isn't passed over."""
    (tmp_path / "config.toml").mkdir()

    assert problems(directory=tmp_path) == ["config.toml is not there, or is no regular file: check the path"]


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


def test_the_general_token_is_for_all_deployments() -> None:
    """One with a token of its own uses that."""
    tokens = load_tokens(
        {"SEMGREP_APP_TOKEN": "a", "SEMGREP_APP_TOKEN__120": "b", f"SEMGREP_APP_TOKEN__{INT64_MAX}": "c"}
    )

    assert [tokens.for_deployment(n) for n in (1, 120, INT64_MAX)] == ["a", "b", "c"]
    assert tokens.deployment_ids == (120, INT64_MAX)
    assert tokens.variables == ("SEMGREP_APP_TOKEN", "SEMGREP_APP_TOKEN__120", f"SEMGREP_APP_TOKEN__{INT64_MAX}")
    assert tokens


def test_without_a_general_token_others_have_none() -> None:
    """A deployment without a token gets none of another's."""
    tokens = load_tokens({"SEMGREP_APP_TOKEN__120": "b"})

    assert [tokens.for_deployment(n) for n in (1, 120)] == [None, "b"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SEMGREP_APP_TOKEN": ""},
        {"SEMGREP_APP_TOKEN": " \n", "SEMGREP_APP_TOKEN__120": "", "SEMGREP_APP_TOKEN_FILE": ""},
        {"SEMGREP_APP_TOKENS": "a", "SEMGREP_APP_TOKEN_120": "b", "semgrep_app_token": "c"},
    ],
)
def test_empty_variables_and_others_are_no_tokens(environ: dict[str, str]) -> None:
    """No token at all counts as False."""
    tokens = load_tokens(environ)

    assert not tokens
    assert tokens.variables == ()


@pytest.mark.parametrize("content", ["a1", "  a1\r\n", "\ufeffa1\n"])
def test_a_token_may_stand_in_a_file(tmp_path: Path, content: str) -> None:
    """Blanks and line ends around it go, and so does a BOM."""
    path = str(written(tmp_path / "token", content))
    tokens = load_tokens({"SEMGREP_APP_TOKEN__120_FILE": path, "SEMGREP_APP_TOKEN": " b2 \n"})

    assert [tokens.for_deployment(n) for n in (1, 120)] == ["b2", "a1"]
    assert tokens.variables == ("SEMGREP_APP_TOKEN", "SEMGREP_APP_TOKEN__120_FILE")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SEMGREP_APP_TOKEN__abc", SECRET, "what follows __ must be a deployment's id, as in SEMGREP_APP_TOKEN__120"),
        ("SEMGREP_APP_TOKEN__", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__0", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__012", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__१२", SECRET, "what follows __ must be"),
        (f"SEMGREP_APP_TOKEN__{INT64_MAX + 1}", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__FILE", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN", f"{SECRET} x", "a token has no blanks, control characters or characters outside ASCII"),
        ("SEMGREP_APP_TOKEN", f"{SECRET}\nx", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN__120", f"{SECRET}\x7f", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN", f"{SECRET}ä", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN_FILE", "/no/such/file", "the file can't be read (No such file or directory): give"),
        ("SEMGREP_APP_TOKEN_FILE", "/", "the file can't be read (Is a directory): give"),
        ("SEMGREP_APP_TOKEN_FILE", f"{SECRET}\0", "the file can't be read (it isn't a path): give"),
        ("SEMGREP_APP_TOKEN_FILE", SECRET, "the file can't be read (No such file or directory): give"),
    ],
)
def test_a_wrong_token_is_named_by_its_variable_alone(name: str, value: str, said: str) -> None:
    """The error never shows what may be a token."""
    with pytest.raises(ConfigError) as caught:
        load_tokens({name: value})

    assert str(caught.value).startswith(f"{name}: {said}")
    assert SECRET not in str(caught.value)
    assert "FILE" not in name or value not in str(caught.value).removeprefix(name)


@pytest.mark.parametrize("content", ["", " \n", f"{SECRET} x", b"\xff\xfeh\0", f"{SECRET}\n{SECRET}"])
def test_a_wrong_token_file_is_named(tmp_path: Path, content: str | bytes) -> None:
    """A file with nothing or too much in it gives no token."""
    path = written(tmp_path / "token", content)

    with pytest.raises(ConfigError, match=r"^SEMGREP_APP_TOKEN_FILE: ") as caught:
        load_tokens({"SEMGREP_APP_TOKEN_FILE": str(path)})
    assert SECRET not in str(caught.value)
    assert ("the file is empty: write the token into it" in str(caught.value)) == (not path.read_bytes().strip())


def test_a_token_is_given_once(tmp_path: Path) -> None:
    """A variable and its file are one too many; every problem has its line."""
    path = str(written(tmp_path / "token", "a1"))

    with pytest.raises(ConfigError) as caught:
        load_tokens(
            {
                "SEMGREP_APP_TOKEN": "a",
                "SEMGREP_APP_TOKEN_FILE": path,
                "SEMGREP_APP_TOKEN__7": "a b",
                "SEMGREP_APP_TOKEN__7_FILE": path,
                "SEMGREP_APP_TOKEN__8": "c",
            }
        )
    assert str(caught.value).splitlines() == [
        "SEMGREP_APP_TOKEN and SEMGREP_APP_TOKEN_FILE are both set: keep one",
        "SEMGREP_APP_TOKEN__7: a token has no blanks, control characters or characters outside ASCII",
        "SEMGREP_APP_TOKEN__7 and SEMGREP_APP_TOKEN__7_FILE are both set: keep one",
    ]


def test_no_repr_shows_a_token() -> None:
    """Tokens may stand in a log or a traceback by mistake."""
    tokens = load_tokens({"SEMGREP_APP_TOKEN": SECRET, "SEMGREP_APP_TOKEN__120": SECRET})

    assert SECRET not in f"{tokens} {tokens!r} {[tokens]}"
    assert "SEMGREP_APP_TOKEN__120" in repr(tokens)
