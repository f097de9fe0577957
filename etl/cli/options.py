"""What the commands share: their options, the settings in force, the event loop."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from etl.config.settings import Settings, load_settings, seconds_of
from etl.telemetry.reporter import configure_logs

SETTING_OF = {
    "database_url": "database.url",
    "log_format": "observe.log_format",
    "log_level": "observe.log_level",
    "rate": "api.rate",
    "concurrency": "api.concurrency",
}
"""The options that stand for a setting."""

LONGEST_DURATION_SECONDS = 100 * 365 * 86_400
"""More is a slip of the finger, and beyond what databases can reckon."""

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class LazyGroup(click.Group):
    """A group some of whose commands are imported when they are called: `later` has `module:name` by command."""

    def __init__(self, *args: Any, later: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted([*super().list_commands(ctx), *self._later])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now if it is one of those."""
        if cmd_name not in self._later:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._later[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


class Duration(click.ParamType[float]):
    """`90`, `90s`, `10m`, `2h` or `7d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails with an example of what is right."""
        try:
            seconds = seconds_of(str(value))
            if seconds > LONGEST_DURATION_SECONDS:
                raise ValueError
            return seconds
        except ValueError:
            self.fail(f"{value!r} is not a duration such as 90s, 10m, 2h or 7d", param, ctx)


class Since(click.ParamType[float | datetime]):
    """A duration, or an instant with its offset; a day is taken as its beginning in UTC."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | datetime:
        """So many seconds ago, or an instant in UTC; fails with an example of what is right. 20260301 is a day."""
        text = str(value).strip()
        try:
            with suppress(ValueError):
                instant = datetime.fromisoformat(text)
                return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
            seconds = seconds_of(text)
            if seconds < (datetime.now(UTC) - datetime.min.replace(tzinfo=UTC)).total_seconds():
                return seconds
        except OverflowError:
            pass
        except ValueError:
            self.fail(
                f"{value!r} is neither a duration such as 7d nor an instant such as 2026-03-01T02:00Z", param, ctx
            )
        raise click.BadParameter(f"{value!r} is not between the years 1 and 9999", ctx, param)


# Options that many commands share


def given(ctx: click.Context) -> dict[str, Any]:
    kept: dict[str, Any] = ctx.find_root().meta.setdefault("etl.given", {})
    return kept


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """A shared option is welcome before and after the command's name; the last one counts."""
    if value is not None and param.name is not None:
        given(ctx)[param.name] = value


_option = partial(click.option, expose_value=False, callback=_keep)


def all_of(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


common = all_of(
    _option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings in TOML."),
    _option("--database-url", metavar="URL", help="Where the rows go: sqlite:///FILE or postgresql://..."),
    _option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log lines on stderr."),
    _option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level to log."),
)
rate = _option("--rate", type=float, metavar="N", help="Requests a second for a token.")
pace = all_of(
    rate,
    _option("--concurrency", type=int, metavar="N", help="Requests in flight for a deployment."),
)
as_json = _option("--json", is_flag=True, default=None, help="One JSON object on stdout, and nothing else there.")
strict = click.option("--strict", is_flag=True, help="A bad line refuses the input before anything is queued.")
assent = click.option("--yes", is_flag=True, help="Don't ask.")
files = click.argument("files", nargs=-1, metavar="[FILE|-]...")


def settings_of(ctx: click.Context) -> Settings:
    chosen = given(ctx)
    settings = load_settings(
        config_file=chosen.get("config"),
        flags={setting: chosen[name] for name, setting in SETTING_OF.items() if name in chosen},
        environ=os.environ,
        directory=Path.cwd(),
    )
    configure_logs(settings.observe.log_format, settings.observe.log_level)
    return settings


def wants_json(ctx: click.Context) -> bool:
    return bool(given(ctx).get("json"))


def is_interactive(settings: Settings) -> bool:
    """Whether somebody looks at a terminal, on which progress can be drawn."""
    return sys.stderr.isatty() and settings.observe.log_format == "text"


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it on the fastest event loop there is."""
    try:
        import uvloop  # noqa: PLC0415 - not on Windows
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def confirm(question: str, yes: bool) -> None:
    """Go on if somebody says so, here or on the command line."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: say --yes")
    click.confirm(question, abort=True, err=True)
