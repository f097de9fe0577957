"""The command `config`: the settings, and the files that come with the program."""

import os
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import click

from etl.cli.groups import WholeGroup
from etl.cli.options import as_json, common, given, pace, settings_of, wants_json
from etl.config.settings import DEFAULT_FILE, PRIVACY_KEY, origins, settings_file
from etl.config.shipped import shipped
from etl.config.template import schema, template
from etl.config.tokens import load_tokens
from etl.errors import ConfigError
from etl.telemetry.layout import text
from etl.telemetry.log import terminal_width
from etl.telemetry.reporter import print_result, print_table


@click.group("config", cls=WholeGroup)
def config_group() -> None:
    """The settings: show those in force, write a file to start from, and those for cron and others."""


@config_group.command("show")
@as_json
@common
@pace
@click.pass_context
def config_show(ctx: click.Context) -> None:
    """The settings in force and where each came from; secrets are masked."""
    settings = settings_of(ctx)
    tokens = load_tokens(os.environ)
    key = settings.sources.get(PRIVACY_KEY, "").removeprefix("environment ")
    path = settings_file(given(ctx).get("config"), os.environ, Path.cwd())
    rows: list[dict[str, Any]] = [{"setting": o.key, "value": o.value, "from": o.source} for o in origins(settings)]
    if wants_json(ctx):
        file = str(path) if path.exists() else None
        found = {"file": file, "settings": rows, "tokens": tokens.variables, "privacy_key": key or None}
        print_result(found, as_json=True)
        return
    print_table("Settings", [{**row, "value": _as_in_the_file(row["value"])} for row in rows])
    where = f"{path}" if path.exists() else f"none; {path} would be read (`scan-etl config init` makes one)"
    click.echo("\n".join(text(f"File: {where}", terminal_width(sys.stdout))))
    click.echo(f"Tokens: {', '.join(tokens.variables) or 'none (set SEMGREP_APP_TOKEN)'}")
    click.echo(f"Privacy key: {key or 'none'}")


def _as_in_the_file(value: Any) -> str:
    """A number without separators, several values in brackets."""
    return "" if value is None else str(list(value) if isinstance(value, tuple) else value)


@config_group.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=Path(DEFAULT_FILE))
def config_init(file: Path) -> None:
    """Write FILE (config.toml) with every setting, its default and what it means. It may be read by its owner alone."""
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may hold a database's password
    except FileExistsError as error:
        raise ConfigError(f"{file.absolute()} is there already, and stays as it is: name another FILE") from error
    except OSError as error:
        raise ConfigError(f"{file.absolute()} can't be written: {error.strerror}") from error
    with os.fdopen(number, "w", encoding="utf-8") as stream:
        stream.write(template())
    click.echo(f"{file.absolute()} written, with every setting at its default")


@config_group.command("schema")
def config_schema() -> None:
    """Print a JSON schema of the file, for editors that check and complete TOML."""
    print_result(schema(), as_json=True)


@config_group.command("files")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def config_files(folder: Path) -> None:
    """Write what cron, systemd, containers, Kubernetes and others need into a new folder DIR, with the docs: see
    DIR/docs/deploy.md."""
    try:
        folder.mkdir()
        for name in ("deploy", "docs"):
            copytree(shipped(name), folder / name, ignore=ignore_patterns("__pycache__"))
    except FileExistsError as error:
        raise ConfigError(f"{folder.absolute()} is there already, and stays as it is: name another DIR") from error
    except OSError as error:
        raise ConfigError(f"{folder.absolute()} can't be written: {error.strerror or error}") from error
    click.echo(f"{folder.absolute()} has them: begin with docs/deploy.md")
