"""The command `report`: one HTML page of charts, to be forwarded."""

import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from etl.app.intake import open_database
from etl.app.report import make
from etl.cli.options import Age, as_json, common, settings_of, wants_json
from etl.errors import ConfigError
from etl.model import INT64_MAX
from etl.telemetry.reporter import print_result

DAY_SECONDS = 86_400
MOST_DAYS = 3_660


class DeploymentId(click.ParamType[int | None]):
    """A deployment's id; None for all of them."""

    name = "deployment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number, or None for `all`."""
        if value == "all":
            return None
        if not re.fullmatch("[0-9]{1,19}", str(value)) or not 0 < int(value) <= INT64_MAX:
            self.fail(f"{value!r} is neither the id of a deployment nor `all`", param, ctx)
        return int(value)


@click.command("report")
@click.option(
    "--since",
    "since_seconds",
    type=Age(),
    default="30d",
    show_default=True,
    metavar="TIME",
    help="The days until today that it is about.",
)
@click.option(
    "--deployment",
    "deployments",
    type=DeploymentId(),
    multiple=True,
    metavar="ID|all",
    help="Only this one; may be repeated. [default: all]",
)
@click.option(
    "--stale-days",
    type=click.IntRange(1, MOST_DAYS),
    default=14,
    show_default=True,
    metavar="N",
    help="Name the repositories without a scan for N days.",
)
@click.option(
    "--out", default="report.html", show_default=True, metavar="FILE|-", help="Where the page goes; -: to stdout."
)
@as_json
@common
@click.pass_context
def report_command(
    ctx: click.Context, /, since_seconds: float, deployments: Sequence[int | None], stale_days: int, out: str
) -> None:
    """Write one HTML page with charts of what the views say: no script, nothing fetched, ready to be forwarded."""
    if out == "-" and wants_json(ctx):
        raise click.UsageError("--json and --out - both want stdout: give --out a file")
    days = max(math.ceil(since_seconds / DAY_SECONDS), 1)
    if days > MOST_DAYS:
        raise click.UsageError(f"--since goes back {MOST_DAYS:,} days at most")
    chosen = [] if None in deployments else [one for one in deployments if one]
    with closing(open_database(settings_of(ctx).database.address, create=False, reads_only=True)) as database:
        made = make(database, chosen, days, stale_days)
    if out == "-":
        sys.stdout.buffer.write(made.html.encode())
        return
    path = Path(out)
    write_page(path, made.html.encode())
    if wants_json(ctx):
        print_result({"file": str(path.absolute()), "bytes": path.stat().st_size, **made.summary}, as_json=True)
    else:
        click.echo(f"The page: {path.absolute()}")


def write_page(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that nobody sees half a page. ConfigError if that can't be done."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"--out {path} is no regular file")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"--out {path} can't be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
