"""The command `prune`: what is older than somebody wants to keep goes."""

from contextlib import closing
from functools import partial
from typing import Any

import click

from etl.app.intake import open_database
from etl.app.prune import Ages, Pruned, prune
from etl.cli.options import Age, as_json, assent, common, confirm, is_interactive, settings_of, wants_json
from etl.database.engine import display_url
from etl.model import INT64_MAX, RETENTION, SLACK
from etl.store.plan import format_duration
from etl.telemetry.reporter import print_result, print_table

OPTIONS = {
    "runs_seconds": "--runs-older-than",
    "dead_letters_seconds": "--dead-letters-older-than",
    "scans_seconds": "--scans-older-than",
}
YOUNGEST_SCAN = RETENTION + SLACK


def _not_listed(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """An age at which the API lists a scan no more."""
    if value is not None and value < YOUNGEST_SCAN.total_seconds():
        again = "the API still lists younger scans, and the next sync would fetch them again"
        raise click.BadParameter(f"it must be {YOUNGEST_SCAN.days}d at least: {again}", ctx, param)
    return value


@click.command("prune")
@click.option("--runs-older-than", "runs_seconds", type=Age(), metavar="TIME", help="Runs that ended before: 400d.")
@click.option(
    "--dead-letters-older-than",
    "dead_letters_seconds",
    type=Age(),
    metavar="TIME",
    help="Dead letters that died before, but for those that are still to be tried again.",
)
@click.option(
    "--scans-older-than",
    "scans_seconds",
    type=Age(),
    callback=_not_listed,
    metavar="TIME",
    help="Scans that began before, with all that is known of them: 1095d; 31d at least.",
)
@click.option(
    "--deployment", "deployment_id", type=click.IntRange(1, INT64_MAX), metavar="ID", help="Only of this one."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@assent
@as_json
@common
@click.pass_context
def prune_command(ctx: click.Context, /, dry_run: bool, yes: bool, **options: Any) -> None:
    """Remove what is older than you want to keep: runs, dead letters, and scans if you say so.

    Workers may go on meanwhile. What was interrupted goes on when the same command is given again.
    """
    ages, settings = Ages(**options), settings_of(ctx)
    given = {name: options[field] for field, name in OPTIONS.items() if options[field] is not None}
    if not given:
        raise click.UsageError(f"say what is to go: {', '.join(f'{name} TIME' for name in OPTIONS.values())}")
    if ages.deployment_id is not None and ages.runs_seconds is not None:
        raise click.UsageError("a run is of no one deployment: leave out --deployment, or --runs-older-than")
    with closing(open_database(settings.database.address, create=False, reads_only=dry_run)) as opened:
        if not dry_run:
            what = ", ".join(f"{name[2:].replace('-', ' ')} {format_duration(age)}" for name, age in given.items())
            confirm(f"Remove {what} from {display_url(opened.url)} for good?", yes)
        is_seen = is_interactive(settings)
        report = partial(_show, dry_run=dry_run, as_json=wants_json(ctx), is_seen=is_seen)
        exit_code = prune(opened, ages, dry_run=dry_run, report=report, say=_progress if is_seen else lambda _: None)
    ctx.exit(exit_code)


def _progress(pruned: Pruned) -> None:
    click.echo(f"\r{sum(pruned.removed.values()):,} rows", nl=False, err=True)


def _show(pruned: Pruned, dry_run: bool, *, as_json: bool, is_seen: bool) -> None:
    if is_seen:
        click.echo(err=True)
    if as_json:
        print_result({"dry_run": dry_run, **pruned._asdict()}, as_json=True)
        return
    rows = [{"table": table, "rows": count, "kept": pruned.kept[table]} for table, count in pruned.removed.items()]
    print_table("Would go" if dry_run else "Gone", rows)
    if not pruned.finished:
        click.echo("Stopped before its end: the same command goes on from there.", err=True)
