"""What the commands share: their options, the settings in force, the event loop."""

import os
import re
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl.cli.groups import ending_quietly
from etl.config.duration import seconds_of
from etl.model import INT64_MAX
from etl.telemetry.log import configure_logs

if TYPE_CHECKING:
    from etl.config.settings import Settings

SETTING_OF = {
    "database_url": "database.url",
    "log_format": "observe.log_format",
    "log_level": "observe.log_level",
    "rate": "api.rate",
    "concurrency": "api.concurrency",
}
"""The options that stand for a setting."""

LEVEL_OF = {"quiet": ("log_level", "warning"), "verbose": ("log_level", "debug")}
"""The options that are short for another one."""

LONGEST_DURATION_SECONDS = 100 * 365 * 86_400
"""More is a slip of the finger, and beyond what databases can reckon."""

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Positive(click.ParamType[int]):
    """A whole number from 1 on, as databases take them. `--help` doesn't show where they end."""

    name = "number"
    _range = click.IntRange(1, INT64_MAX)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; fails with the range."""
        return int(self._range.convert(value, param, ctx))


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


def _with_unit(text: str) -> str:
    """The text of an age. click.BadParameter for a number alone: 30 would be seconds, and nobody means those."""
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        raise click.BadParameter(f"{text!r} has no unit: say {text}d for days, or {text}h for hours")
    return text


class Age(Duration):
    """A duration with its unit."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails with an example of what is right."""
        return super().convert(_with_unit(str(value).strip()), param, ctx)


class Since(click.ParamType[float | datetime]):
    """A duration with its unit, or an instant with its offset; a day is taken as its beginning in UTC."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | datetime:
        """So many seconds ago, or an instant in UTC; fails with an example of what is right. 20260301 is a day."""
        text = str(value).strip()
        try:
            with suppress(ValueError):
                instant = datetime.fromisoformat(text)
                return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
            _with_unit(text)
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
        name, said = LEVEL_OF.get(param.name, (param.name, value))
        given(ctx)[name] = said


_option = partial(click.option, expose_value=False, callback=_keep)


def all_of(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


common = all_of(
    _option(
        "--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings in TOML; also SCAN_ETL_CONFIG."
    ),
    _option("--database-url", metavar="URL", help="Where the rows go: sqlite:///FILE or postgresql://..."),
    _option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log lines on stderr."),
    _option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="The lowest level that is logged."
    ),
    _option("-q", "--quiet", is_flag=True, default=None, help="Log only warnings and errors, and show no progress."),
    _option("-v", "--verbose", is_flag=True, default=None, help="Log at level debug, too."),
)
rate = _option("--rate", type=float, metavar="N", help="Requests a second for a token.")
pace = all_of(
    rate,
    _option("--concurrency", type=int, metavar="N", help="Requests in flight for a deployment."),
)
as_json = _option("--json", is_flag=True, default=None, help="One JSON object on stdout, and nothing else there.")
strict = click.option("--strict", is_flag=True, help="A bad line refuses the input before anything is queued.")
assent = click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
PATH = click.Path(allow_dash=True, readable=False)
"""A file that shells complete. Whoever reads it says what is wrong with it."""
files = click.argument("files", nargs=-1, type=PATH, metavar="[FILE|-]...")


def settings_of(ctx: click.Context) -> "Settings":
    with ending_quietly():
        from etl.config.settings import load_settings  # noqa: PLC0415 - 0.1 s that `--help` and a completion don't need

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


def is_interactive(settings: "Settings") -> bool:
    """Whether somebody looks at a terminal, on which progress can be drawn, and wants to see it."""
    observe = settings.observe
    return sys.stderr.isatty() and observe.log_format == "text" and observe.log_level in ("debug", "info")


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it on the fastest event loop there is."""
    import asyncio  # noqa: PLC0415 - few commands need it

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
        raise click.UsageError("there is no terminal to ask on: add --yes")
    click.confirm(question, abort=True, err=True)
