"""The command `config`: the settings."""

import os

import click

from etl.cli.groups import WholeGroup
from etl.cli.options import as_json, common, pace, settings_of, wants_json
from etl.config.settings import PRIVACY_KEY, origins
from etl.config.tokens import load_tokens
from etl.telemetry.reporter import print_result, print_table


@click.group("config", cls=WholeGroup)
def config_group() -> None:
    """The settings: show what is in force."""


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
    rows = [{"setting": o.key, "value": o.value, "from": o.source} for o in origins(settings)]
    if wants_json(ctx):
        print_result({"settings": rows, "tokens": tokens.variables, "privacy_key": key or None}, as_json=True)
        return
    print_table("Settings", rows)
    click.echo(f"Tokens: {', '.join(tokens.variables) or 'none (set SEMGREP_APP_TOKEN)'}")
    click.echo(f"Privacy key: {key or 'none'}")
