"""The command `runs`: which runs there were, how they stand, and all that is known of one."""

from contextlib import closing
from functools import partial
from typing import Any

import click

from etl.app.intake import open_database
from etl.cli.groups import WholeGroup
from etl.cli.options import Age, Positive, as_json, common, settings_of, wants_json
from etl.errors import ConfigError
from etl.store import runs
from etl.telemetry.reporter import print_result, print_table

SHOWN = ("started_at", "command", "state", "exit_code", "fetched", "dead", "remaining", "run_id")


@click.group("runs", cls=WholeGroup, invoke_without_command=True)
@click.option("--since", "since_seconds", type=Age(), metavar="TIME", help="Only those that began within it: 7d.")
@click.option("--state", type=click.Choice(runs.STATES), help="Only runs in this state.")
@click.option("--limit", type=Positive(), default=20, show_default=True, metavar="N", help="At most N.")
@as_json
@common
@click.pass_context
def runs_group(ctx: click.Context, since_seconds: float | None, state: str | None, limit: int) -> None:
    """The runs, the newest first: when they began, their state, what they did.

    A lost run was killed; a skipped one has left the work to another.
    """
    if ctx.invoked_subcommand is None:
        found = _ask(ctx, partial(runs.last_runs, count=limit, since_seconds=since_seconds, state=state))
        if wants_json(ctx):
            print_result({"runs": found}, as_json=True)
        else:
            print_table("Runs", [{name: row[name] for name in SHOWN} for row in found])


@runs_group.command("show")
@click.argument("run_id", metavar="ID")
@as_json
@common
@click.pass_context
def runs_show(ctx: click.Context, run_id: str) -> None:
    """All that is known of a run: its counts, why it ended, its files and settings. The beginning of its ID will do."""
    found = _ask(ctx, partial(runs.runs_like, beginning=run_id))
    if len(found) != 1:
        how_many = "more than one run begins" if found else "no run begins"
        raise ConfigError(f"{how_many} with {run_id!r}: `scan-etl runs` lists them")
    print_result(found[0], as_json=wants_json(ctx))


def _ask(ctx: click.Context, question: Any) -> list[dict[str, Any]]:
    with closing(open_database(settings_of(ctx).database.address, create=False, reads_only=True)) as opened:
        found: list[dict[str, Any]] = opened.run_here(question)
        return found
