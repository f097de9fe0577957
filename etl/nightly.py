"""The commands `discover` and `sync`: what cron calls."""

from datetime import datetime
from typing import Any

import click

from etl.intake import Order
from etl.options import Since, as_json, budget, budget_of, common, pace, report_run

since = click.option(
    "--since",
    type=Since(),
    metavar="TIME",
    help="Walk from here: 7d ago, or an instant. Moves the watermark only where that leaves nothing out.",
)


@click.command("discover")
@since
@click.option("--refresh", is_flag=True, help="Queue final scans too.")
@pace
@as_json
@common
@click.pass_context
def discover_command(ctx: click.Context, /, since: float | datetime | None, refresh: bool) -> None:
    """Walk the API's list of scans, and queue those that are new or not final. Fetches nothing.

    The list goes back 30 days. Each walk starts where the last complete one left off, less an overlap.
    """
    report_run(ctx, Order("discover", refresh=refresh, discovers=True, drains=False, since=since))


@click.command("sync")
@since
@click.option("--single", is_flag=True, help="Leave at once if another sync is at work.")
@budget
@pace
@as_json
@common
@click.pass_context
def sync_command(ctx: click.Context, /, since: float | datetime | None, single: bool, **options: Any) -> None:
    """Discover, then fetch what is due: what cron calls every night. Safe to start twice at once.

    It leaves the pairs of a `run FILE` to that run, and shares the API's pace with it.
    """
    report_run(ctx, Order("sync", discovers=True, since=since, single=single, **budget_of(options)))
