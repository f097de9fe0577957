"""Settings and tokens: which source wins, what is refused and how that is said, and that no secret shows."""

import codecs
import tomllib
from pathlib import Path
from typing import Any

import pytest
from given_settings import SECRET, load, problems, written

from etl.config.settings import Origin, Settings, origins

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


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
    "database.schema": "scan_etl",
    "privacy.author": "hash",
    "observe.log_format": "json",
    "observe.log_level": "debug",
    "observe.metrics_file": "/var/lib/metrics/scan.prom",
    "notify.url": "https://chat.example.com/hook",
}


NEEDED: dict[str, dict[str, object]] = {"database.schema": {"database.url": "postgresql://localhost/scans"}}
"""What a setting makes no sense without."""


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key != "database.url_file"])
def test_every_setting_has_its_variable(key: str) -> None:
    """`rate` in `[api]` is SCAN_ETL_API__RATE, and so for all others."""
    needed = NEEDED.get(key, {})
    settings = load(environ={variable(key): OTHER_VALUES.get(key, "7")}, flags=needed)
    changed = [origin for origin in origins(settings) if origin.source != "default" and origin.key not in needed]

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
        {"SCAN_ETL_DATABASE_PORT": "tcp://10.96.0.7:5432", "SCAN_ETL_DATABASE_SERVICE_HOST": "10.96.0.7"},
        {"SCAN_ETL_DATABASE_SERVICE_PORT": "5432", "SCAN_ETL_DATABASE_SERVICE_PORT_POSTGRESQL": "5432"},
        {"SCAN_ETL_DATABASE_PORT_5432_TCP": "tcp://10.96.0.7:5432", "SCAN_ETL_DATABASE_PORT_5432_TCP_PROTO": "tcp"},
        {"SCAN_ETL_DATABASE_PORT_5432_TCP_PORT": "5432", "SCAN_ETL_DATABASE_PORT_5432_TCP_ADDR": "10.96.0.7"},
        {"SCAN_ETL_API_RW_PORT": "udp://10.96.0.7:5432", "SCAN_ETL_OBSERVE_METRICS_PORT": "tcp://10.96.0.7:9"},
    ],
)
def test_other_variables_and_empty_ones_are_ignored(environ: dict[str, str]) -> None:
    """A variable is ours if it has two underscores after our prefix, and unset if it is empty. Those that Kubernetes
    has for a Service of some name are nobody's slip."""
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
        (
            {"environ": {"SCAN_ETL_FOO__BAR": "1"}},
            "environment: SCAN_ETL_FOO__BAR is not a setting; `scan-etl config init` writes a file with all of them",
        ),
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
        ("[empty]", "empty is not a setting; `scan-etl config init` writes a file with all of them"),
        (
            "[sources]\n'api.rate' = 'x'",
            "sources is not a setting; `scan-etl config init` writes a file with all of them",
        ),
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
