"""The command line: arguments, environment and signals in, an exit code out. Everything else is below."""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any, NoReturn

import click

from etl import __version__, database, fleet, runs, status
from etl.answers import UNAVAILABLE_EXIT
from etl.config import origins
from etl.errors import ConfigError, FatalError, ScanEtlError, TransientError
from etl.intake import Order, fill, open_database
from etl.observe import print_result, print_table
from etl.options import (
    LazyGroup,
    as_json,
    budget,
    budget_of,
    common,
    files,
    given,
    pace,
    report_run,
    settings_of,
    strict,
    wants_json,
    which_dead,
)
from etl.planning import spelled
from etl.tokens import load_tokens

BUG_EXIT = 70
CLOSED_PIPE_EXIT = 141
"""What a shell says of a program that SIGPIPE has ended."""
STDOUT, STDERR = 1, 2


def _open(ctx: click.Context) -> database.Database:
    return open_database(settings_of(ctx).database.url, create=False)


# Apart, because what they import costs every other command 0.1 s.
LATER = {
    "db": "etl.tables:db_group",
    "demo": "etl.rehearsal:demo_command",
    "discover": "etl.nightly:discover_command",
    "doctor": "etl.preflight:doctor_command",
    "plan": "etl.preflight:plan_command",
    "sandbox": "etl.rehearsal:sandbox_command",
    "sync": "etl.nightly:sync_command",
}


@click.group(
    cls=LazyGroup, later=LATER, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="scan-etl")
@common
def cli() -> None:
    """Fetch the details of Semgrep scans and keep them in a database that dashboards read.

    The token comes from SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE, or SEMGREP_APP_TOKEN__120 for deployment 120).

    Exit codes: 0 all done, 1 some pairs are dead letters, 2 usage or settings, 3 token, 4 stopped by a budget
    or an API that is away, 5 database, 70 a bug, 130/141/143 stopped by a signal.
    """


@cli.command("run")
@files
@budget
@strict
@pace
@as_json
@common
@click.pass_context
def run_command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Fetch the pairs of FILEs (`-` is stdin), or all that is due in the queue."""
    order = Order("run", files, **budget_of(options))
    report_run(ctx, order)


@cli.command("worker")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes.")
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when stdin ends, as it does with a parent.")
@pace
@as_json
@common
@click.pass_context
def worker_command(ctx: click.Context, processes: int, end_with_stdin: bool) -> None:
    """Drain the queue for ever, and wait when it is empty. Start as many as you like, on any machines.

    SIGTERM or Ctrl-C end it: what is in flight finishes, the rest goes back to the queue.
    """
    if processes > 1:
        port = settings_of(ctx).observe.metrics_port
        ctx.exit(fleet.run_processes(processes, sys.argv[1:], port))
    if end_with_stdin:
        fleet.end_with_stdin()
    report_run(ctx, Order("worker", forever=True))


@cli.command("enqueue")
@click.argument("files", nargs=-1, required=True, metavar="FILE|-...")
@click.option("--refresh", is_flag=True, help="Queue final scans too.")
@strict
@as_json
@common
@click.pass_context
def enqueue_command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Put the pairs of FILEs into the queue, and fetch nothing."""
    settings = settings_of(ctx)
    with closing(open_database(settings.database.url, create=True)) as opened:
        counts = fill(opened, Order("enqueue", files, **options))
    print_result(counts, as_json=wants_json(ctx))


@cli.command("status")
@as_json
@common
@click.pass_context
def status_command(ctx: click.Context) -> None:
    """What is in the queue, who works on it and how fast, how many dead letters there are, how the last runs went."""
    with closing(_open(ctx)) as opened:
        queue = opened.run_here(status.depth)
        workers = opened.run_here(status.at_work)
        dead = opened.run_here(status.dead_by_kind)
        listed = {"coverage": opened.run_here(status.coverage), "gaps": opened.run_here(status.gaps)}
        last = opened.run_here(partial(runs.last_runs, count=5))
    pace = status.pace(queue, workers)
    if wants_json(ctx):
        found = {"queue": queue, "workers": workers, **pace, "dead_letters": dead, **listed, "runs": last}
        print_result(found, as_json=True)
        return
    print_table("Queue", queue)
    print_table("Workers", [{k: v for k, v in worker.items() if k != "run_id"} for worker in workers])
    seconds = pace.pop("seconds_to_drain")
    print_result({**pace, "time to drain": "unknown" if seconds is None else spelled(seconds)}, as_json=False)
    print_table("Dead letters", [{"kind": kind, "count": count} for kind, count in dead.items()])
    print_table("Listed scans", listed["coverage"])
    print_table("Gaps: scans that started then can't be had any more", listed["gaps"])
    shown = ("started_at", "finished_at", "command", "fetched", "waiting", "dead", "remaining", "exit_code")
    print_table("Last runs", [{name: row[name] for name in shown} for row in last])


@cli.group("failures")
def failures_group() -> None:
    """Dead letters: list them, send them round again, drop them."""


@failures_group.command("list")
@which_dead
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="At most N.")
@as_json
@common
@click.pass_context
def failures_list(ctx: click.Context, /, limit: int, **options: Any) -> None:
    """Show dead letters, the newest first."""
    with closing(_open(ctx)) as opened:
        letters = opened.run_here(partial(status.list_dead, which=status.Which(**options), limit=limit))
    if wants_json(ctx):
        print_result({"dead_letters": letters}, as_json=True)
    else:
        print_table("Dead letters", [{k: v for k, v in letter.items() if k != "run_id"} for letter in letters])


def _change_dead(ctx: click.Context, verb: str, everything: bool, options: dict[str, Any]) -> None:
    if not everything and all(value is None for value in options.values()):
        raise click.UsageError(f"say which dead letters to {verb} (--kind, --deployment, ...), or --all")
    change = {"requeue": status.requeue_dead, "drop": status.drop_dead}[verb]
    with closing(_open(ctx)) as opened:
        count = opened.run_here(partial(change, which=status.Which(**options)))
    print_result({{"requeue": "requeued", "drop": "dropped"}[verb]: count}, as_json=wants_json(ctx))


@failures_group.command("requeue")
@which_dead
@click.option("--all", "everything", is_flag=True, help="All of them.")
@as_json
@common
@click.pass_context
def failures_requeue(ctx: click.Context, /, everything: bool, **options: Any) -> None:
    """Put dead letters back into the queue, with all their attempts."""
    _change_dead(ctx, "requeue", everything, options)


@failures_group.command("drop")
@which_dead
@click.option("--all", "everything", is_flag=True, help="All of them.")
@as_json
@common
@click.pass_context
def failures_drop(ctx: click.Context, /, everything: bool, **options: Any) -> None:
    """Delete dead letters for good."""
    _change_dead(ctx, "drop", everything, options)


@cli.group("config")
def config_group() -> None:
    """The settings."""


@config_group.command("show")
@as_json
@common
@pace
@click.pass_context
def config_show(ctx: click.Context) -> None:
    """The settings in force and where each came from; secrets are masked."""
    settings = settings_of(ctx)
    tokens = load_tokens(os.environ)
    rows = [{"setting": o.key, "value": o.value, "from": o.source} for o in origins(settings)]
    if wants_json(ctx):
        print_result({"settings": rows, "tokens": tokens.variables}, as_json=True)
        return
    print_table("Settings", rows)
    click.echo(f"Tokens: {', '.join(tokens.variables) or 'none (set SEMGREP_APP_TOKEN)'}")


# The way out


def main() -> NoReturn:
    """Run the command and leave with its exit code. Errors of ours are one sentence on stderr."""
    _open_closed_streams()
    try:
        try:
            _run()
        finally:
            click.echo(nl=False)  # writes what is left, while an error can still be told
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python mustn't try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        sys.exit(CLOSED_PIPE_EXIT)


def _open_closed_streams() -> None:
    """Whoever starts us with a closed stream loses what would go there. Its number mustn't go to another file."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        if number == STDOUT:
            sys.stdout = os.fdopen(number, "w")
        elif number == STDERR:
            sys.stderr = os.fdopen(number, "w")
    os.close(number)


def _run() -> NoReturn:
    ctx_given: dict[str, Any] = {}
    try:
        with cli.make_context("scan-etl", sys.argv[1:]) as ctx:
            ctx_given = given(ctx)
            cli.invoke(ctx)
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": error.format_message(), "exit_code": ConfigError.exit_code}))
        sys.exit(ConfigError.exit_code)
    except TransientError as error:
        _fail(str(error), UNAVAILABLE_EXIT, ctx_given)
    except FatalError as error:
        _fail(str(error), error.stop_code, ctx_given)
    except ScanEtlError as error:
        _fail(str(error), error.exit_code, ctx_given)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130, ctx_given)
    except BrokenPipeError:
        raise
    except Exception:
        traceback.print_exc()
        _fail("this is a bug in scan-etl: please report it with the lines above", BUG_EXIT, ctx_given)


def _fail(message: str, exit_code: int, given: Mapping[str, Any]) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    if given.get("json"):
        click.echo(json.dumps({"error": message, "exit_code": exit_code}))
    sys.exit(exit_code)
