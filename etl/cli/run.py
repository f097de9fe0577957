"""The commands that run the job: `run`, `worker`, `discover`, and `sync`, which is what cron calls."""

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import click

from etl.app import supervisor
from etl.app.privacy import privacy_of
from etl.app.run import run
from etl.cli.options import (
    Duration,
    Since,
    all_of,
    as_json,
    common,
    files,
    is_interactive,
    pace,
    run_async,
    settings_of,
    strict,
    wants_json,
)
from etl.config.proxies import proxy_for
from etl.config.tokens import load_tokens
from etl.database.engine import display_url
from etl.model import RETENTION
from etl.pipeline.run_state import RunRequest
from etl.telemetry.reporter import print_summary

budget = all_of(
    click.option("--refresh", is_flag=True, help="Fetch final scans again."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Fetch at most N pairs, then exit 4."),
    click.option("--max-failures", type=click.IntRange(min=1), metavar="N", help="Stop at N dead letters: exit 4."),
    click.option("--deadline", type=Duration(), metavar="TIME", help="Stop after 90s, 10m, 2h: exit 4."),
)


def _within_the_list(ctx: click.Context, param: click.Parameter, value: float | datetime | None) -> Any:
    """A duration that the API's list covers: it would be cut to that without a word."""
    if isinstance(value, float) and value > RETENTION.total_seconds():
        raise click.BadParameter("it must be 30d at most: the list goes back no further", ctx, param)
    return value


since = click.option(
    "--since",
    type=Since(),
    callback=_within_the_list,
    metavar="TIME",
    help="Start of the walk: 7d ago, or an instant. The watermark moves only where that leaves no gap.",
)


@click.command("run")
@files
@budget
@strict
@pace
@as_json
@common
@click.pass_context
def run_command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Fetch the pairs of FILEs (`-` is stdin), or all that is due in the queue."""
    request = RunRequest("run", files, **_budget_of(options))
    _report_run(ctx, request)


@click.command("worker")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes.")
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when stdin ends, as it does with a parent.")
@pace
@as_json
@common
@click.pass_context
def worker_command(ctx: click.Context, processes: int, end_with_stdin: bool) -> None:
    """Drain the queue endlessly, and wait when it is empty. Start as many as you like, on any machines.

    SIGTERM or Ctrl-C end it: what is in flight finishes, the rest goes back to the queue.
    """
    if processes > 1:
        settings = settings_of(ctx)
        privacy_of(settings)
        port = settings.observe.metrics_port
        ctx.exit(supervisor.run_processes(processes, sys.argv[1:], port))
    if end_with_stdin:
        supervisor.end_with_stdin()
    _report_run(ctx, RunRequest("worker", forever=True))


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
    _report_run(ctx, RunRequest("discover", refresh=refresh, discovers=True, drains=False, since=since))


@click.command("sync")
@since
@click.option("--single", is_flag=True, help="End at once, with exit code 0, if another sync is at work.")
@budget
@pace
@as_json
@common
@click.pass_context
def sync_command(ctx: click.Context, /, since: float | datetime | None, single: bool, **options: Any) -> None:
    """Discover, then fetch what is due: what cron calls every night. Safe to start twice at once.

    While a `run FILE` is at work, its pairs are left to it, and the API's pace is shared with it.
    """
    _report_run(ctx, RunRequest("sync", discovers=True, since=since, single=single, **_budget_of(options)))


def _budget_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `budget` as a request has them."""
    return {"deadline_seconds" if name == "deadline" else name: value for name, value in options.items()}


def _report_run(ctx: click.Context, request: RunRequest) -> NoReturn:
    """Do a run, print its summary and leave with its exit code."""
    settings = settings_of(ctx)
    report = partial(print_summary, where=display_url(settings.database.url), as_json=wants_json(ctx))
    interactive = is_interactive(settings)
    tokens, proxy = load_tokens(os.environ), proxy_for(settings.api.base_url, os.environ)
    summary = run_async(run(request, settings, tokens, interactive=interactive, report=report, proxy=proxy))
    report(summary)
    ctx.exit(summary["exit_code"])
