"""Settings: what is in force, where each one came from, and one sentence for each that is wrong.

Flags win over the environment, that over a file (`config.toml`, unless another is named), and that over the defaults
below, of which that of `[api] base_url` may come from Semgrep's own variables. `[api] rate` is `SCAN_ETL_API__RATE` in
the environment.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from etl.config.duration import seconds_of
from etl.config.masking import mask_command, mask_database_url, mask_url, mask_webhook
from etl.config.privacy_key import PRIVACY_KEY_VARIABLES, load_privacy_key
from etl.config.service_links import is_service_link
from etl.config.suggestion import nearest
from etl.config.tokens import TOKEN_VARIABLE
from etl.config.urls import URL_FILE, Address, checked_base_url, checked_database_url, checked_schema, url_in
from etl.errors import ConfigError
from etl.model import INT64_MAX, RETENTION

DEFAULT_FILE = "config.toml"
CONFIG_VARIABLE = "SCAN_ETL_CONFIG"
_PREFIX = "SCAN_ETL_"
SEMGREP_URL_VARIABLES = ("SEMGREP_URL", "SEMGREP_APP_URL")
"""The first of them that is set counts."""
_SHOWN_CHARACTERS = 60

# A week is longer than any wait makes sense, and short enough for a slip of the finger to be seen.
_Seconds = Annotated[float, Field(gt=0, le=604_800)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("it must be a number or a text")  # or `rate = true` would mean 1
        return value

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """By the names that the settings have: some are pydantic's own, and a field can't be called so."""
        for name, value in super().__repr_args__():
            yield type(self).model_fields[name or ""].alias or name, value


class ApiSettings(_Section):
    """`[api]`: how the Semgrep API is asked."""

    base_url: str = "https://semgrep.dev"
    rate: float = Field(default=20.0, gt=0, le=1_000_000)
    concurrency: int = Field(default=16, ge=1, le=1_000)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3_600)
    retries: int = Field(default=2, ge=0, le=10)
    max_wait_seconds: _Seconds = 600.0
    max_body_bytes: int = Field(default=10_485_760, ge=1_024, le=1_073_741_824)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        return checked_base_url(url)


class DatabaseSettings(_Section):
    """`[database]`: where the rows go, and how many at a time. The password in `url` isn't shown by repr()."""

    url: str = "sqlite:///scans.db"
    url_file: str = ""
    schema_: str = Field(default="", alias="schema")
    batch_size: int = Field(default=1000, ge=1, le=10_000)
    flush_seconds: float = Field(default=1.0, gt=0, le=60)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        return checked_database_url(url)

    @field_validator("schema_")
    @classmethod
    def _check_schema(cls, schema: str, given: ValidationInfo) -> str:
        return checked_schema(schema, given.data.get("url", ""))

    @property
    def address(self) -> Address:
        """Where the rows go."""
        return Address(self.url, self.schema_, self.url_file)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _shown(f"database.{name}", value)


class QueueSettings(_Section):
    """`[queue]`: how often and when a pair is tried again."""

    max_attempts: int = Field(default=5, ge=1, le=100)
    backoff_seconds: _Seconds = 5.0
    backoff_max_seconds: _Seconds = 300.0
    lease_seconds: _Seconds = 60.0
    snooze_seconds: _Seconds = 300.0


class DiscoverSettings(_Section):
    """`[discover]`: which lists are walked, and how far back. No deployments mean those that the tokens see."""

    deployments: tuple[Annotated[int, Field(ge=1, le=INT64_MAX)], ...] = ()
    lookback: str = "30d"
    overlap: str = "6h"

    @field_validator("deployments", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """The environment has `120`, `120,121` or `[120, 121]`."""
        if isinstance(value, str):
            value = [part for part in re.split(r"[\s,\[\]]+", value) if part]
        each = value if isinstance(value, list | tuple) else [value]
        if not all(type(one) is int or (type(one) is str and one.isdecimal()) for one in each):
            raise ValueError("it must be ids of deployments, such as [120, 121]")
        return each

    @field_validator("lookback", "overlap")
    @classmethod
    def _check_duration(cls, value: str) -> str:
        if seconds_of(value) > RETENTION.total_seconds():
            raise ValueError("it must be 30d at most: the list goes back no further")
        return value

    @property
    def lookback_seconds(self) -> float:
        """How far back a first walk goes."""
        return seconds_of(self.lookback)

    @property
    def overlap_seconds(self) -> float:
        """How far each further walk goes back behind the one before, at the least."""
        return seconds_of(self.overlap)


class PrivacySettings(_Section):
    """`[privacy]`: what is kept of the people in a scan."""

    author: Literal["keep", "hash", "drop"] = "keep"


class ObserveSettings(_Section):
    """`[observe]`: logs and metrics. No metrics file and port 0 mean none."""

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_file: str = ""
    metrics_port: int = Field(default=0, ge=0, le=65_535)

    @field_validator("metrics_file")
    @classmethod
    def _check_metrics_file(cls, file: str) -> str:
        if "\0" in file or (file and Path(file).name in ("", "..")):
            raise ValueError("it must be the name of a file, e.g. /var/lib/node_exporter/scan-etl.prom")
        return file


class NotifySettings(_Section):
    """`[notify]`: whom a run tells of its end, once. Nothing means nobody. Secrets aren't shown by repr()."""

    url: str = ""
    command: str = ""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[!-~]+", url):
            raise ValueError("it must be a URL that begins with https:// or http://")
        return url

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: str) -> str:
        shlex.split(command)
        return command

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _shown(f"notify.{name}", value)


_MASKS = {"database.url": mask_database_url, "notify.url": mask_webhook, "notify.command": mask_command}


def _shown(key: str, value: Any) -> Any:
    """A setting as it may be shown."""
    return _MASKS.get(key, mask_url)(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """All settings, by section. `sources` says where each one came from that isn't a default; `privacy_key`, which is
    none of them, is empty if there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api: ApiSettings = ApiSettings()
    database: DatabaseSettings = DatabaseSettings()
    queue: QueueSettings = QueueSettings()
    discover: DiscoverSettings = DiscoverSettings()
    privacy: PrivacySettings = PrivacySettings()
    observe: ObserveSettings = ObserveSettings()
    notify: NotifySettings = NotifySettings()
    privacy_key: SecretStr = Field(default=SecretStr(""), repr=False)
    sources: dict[str, str] = Field(default_factory=dict, repr=False)


SECTIONS = [name for name in Settings.model_fields if name not in ("privacy_key", "sources")]
PRIVACY_KEY = "privacy.key"
"""What `sources` calls the key, which isn't in `_KEYS`: no file and no flag may hold it."""
_KEYS = [
    f"{section}.{field.alias or name}"
    for section in SECTIONS
    for name, field in type(getattr(Settings(), section)).model_fields.items()
]


class Origin(NamedTuple):
    """A setting: its key, e.g. `api.rate`, its value, and where that came from, e.g. `config.toml`."""

    key: str
    value: object
    source: str


def load_settings(
    *, config_file: Path | None, flags: Mapping[str, object], environ: Mapping[str, str], directory: Path
) -> Settings:
    """Read the settings. `flags` has keys like `api.rate`; one whose value is None wasn't given.

    The file is that of `settings_file`, which has to be there if it is named. Raises ConfigError, with one line for
    each problem.
    """
    named = _named_file(config_file, environ)
    given = [*_from_semgrep(environ), *_from_file(named, directory), *_from_environment(environ)]
    given += [Origin(key, value, "flag") for key, value in flags.items() if value is not None]
    problems = _unknown_variables(environ)
    try:
        given = _with_url_of_file(given)
    except ConfigError as error:
        problems.append(str(error))
    problems += [f"{one.source}: {_unknown(one.key, _KEYS)}" for one in given if one.key not in _KEYS]
    known = {one.key: one for one in given if one.key in _KEYS}  # the last one of a key wins
    values: dict[str, Any] = {section: {} for section in SECTIONS}
    for one in known.values():
        section, _, key = one.key.partition(".")
        values[section][key] = one.value
    sources = {one.key: one.source for one in known.values()}
    settings, key = None, ""
    try:
        variable, key = load_privacy_key(environ)
        if key:
            sources[PRIVACY_KEY] = f"environment {variable}"
    except ConfigError as error:
        problems.append(str(error))
    try:
        settings = Settings(**values, privacy_key=SecretStr(key), sources=sources)
    except ValidationError as error:
        problems += [_invalid(known["{}.{}".format(*each["loc"])], each["msg"]) for each in error.errors()]
    if settings is None or problems:
        raise ConfigError("\n".join(problems))  # not from the cause, which shows values as they are
    return settings


def settings_file(config_file: Path | None, environ: Mapping[str, str], directory: Path) -> Path:
    """The whole path of the file that is read, if it is there: `config_file`, else that in SCAN_ETL_CONFIG, else the
    `config.toml` in `directory`."""
    return (directory / (_named_file(config_file, environ) or DEFAULT_FILE)).absolute()


def _named_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = environ.get(CONFIG_VARIABLE)
    return config_file or (Path(named) if named else None)


def origins(settings: Settings) -> list[Origin]:
    """All settings in force, with passwords masked, and where each came from."""
    return [
        Origin(f"{section}.{key}", value, settings.sources.get(f"{section}.{key}", "default"))
        for section in SECTIONS
        for key, value in getattr(settings, section).__repr_args__()
    ]


def _from_semgrep(environ: Mapping[str, str]) -> list[Origin]:
    """The API's address as Semgrep's own programs are told it: a default."""
    variable = next((name for name in SEMGREP_URL_VARIABLES if environ.get(name)), None)
    return [Origin("api.base_url", environ[variable], f"environment {variable}")] if variable else []


def _from_file(config_file: Path | None, directory: Path) -> list[Origin]:
    name = str(config_file or DEFAULT_FILE)
    path = config_file or directory / DEFAULT_FILE
    try:
        if not config_file and not path.exists():
            return []
        if not path.is_file():
            raise ConfigError(f"{name} is not there, or is no regular file: check the path")
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{name} can't be read ({error.strerror}): check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name} isn't UTF-8 (at line {line}): save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} isn't TOML: {error}") from error
    given = []
    for section, table in tables.items():
        if section in SECTIONS and isinstance(table, dict):
            given += [Origin(f"{section}.{key}", value, name) for key, value in table.items()]
        else:
            given.append(Origin(section, table, name))
    return given


def _with_url_of_file(given: list[Origin]) -> list[Origin]:
    """The stronger of a URL and of a file that holds one. ConfigError if neither is, or the file can't be read."""
    named = [one for one in given if one.key in ("database.url", URL_FILE) and one.value]
    files = [one for one in named if one.key == URL_FILE]
    if not files:
        return given
    last = named[-1]
    others = [one for one in named if one.key != last.key and one.source.split()[0] == last.source.split()[0]]
    if others:
        raise ConfigError(f"{last.source}: database.url and {URL_FILE} are both given: leave one of them out")
    if last.key != URL_FILE:
        return [one for one in given if one not in files]
    return [*given, Origin("database.url", url_in(str(last.value)), URL_FILE)]


def _variable(key: str) -> str:
    return _PREFIX + key.replace(".", "__").upper()


def _from_environment(environ: Mapping[str, str]) -> list[Origin]:
    variables = {key: _variable(key) for key in _KEYS}
    return [Origin(key, environ[name], f"environment {name}") for key, name in variables.items() if environ.get(name)]


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    variables = [_variable(key) for key in _KEYS]
    known = {*variables, *PRIVACY_KEY_VARIABLES}
    return [
        f"environment: {_unknown(name, variables)}"
        for name, value in environ.items()
        if value
        and name.startswith(_PREFIX)
        and _means_setting(name.removeprefix(_PREFIX))
        and name not in known
        and not is_service_link(name, value)
    ]


def _means_setting(rest: str) -> bool:
    """Whether a variable's name behind the prefix is that of a setting, or one with an underscore missing."""
    return "__" in rest or (rest.partition("_")[0].lower() in SECTIONS and "_" in rest)


def _unknown(name: str, names: list[str]) -> str:
    if "token" in name.lower():
        return f"{name} is not a setting; a token comes from the environment variable {TOKEN_VARIABLE}"
    if name in (PRIVACY_KEY, _variable(PRIVACY_KEY)):
        return f"{name} is not a setting; the key comes from the environment variable {PRIVACY_KEY_VARIABLES[0]}"
    if name in SECTIONS:
        return f"{name} is not a setting but a table of them: write [{name}]"
    known = nearest(name, names, _PREFIX)
    hint = f"the nearest is {known}" if known else "`scan-etl config init` writes a file with all of them"
    return f"{name} is not a setting; {hint}"


def _invalid(one: Origin, message: str) -> str:
    """One sentence for pydantic's message, e.g. `Input should be greater than 0`."""
    if isinstance(one.value, str):
        shown = repr(_shown(one.key, one.value)[:_SHOWN_CHARACTERS])
    else:
        shown = "not a single value" if isinstance(one.value, dict | list) else str(one.value)[:_SHOWN_CHARACTERS]
    said = message.removeprefix("Value error, ").replace("Input should", "it must", 1).partition(", unable")[0]
    return f"{one.source}: {one.key} is {shown}; {said}"
