"""The commands that look after the queue and the dead letters: `enqueue`, `queue`, `status`, `failures`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial, reduce
from typing import Any

import click

from etl.app.intake import fill, open_database, read_files
from etl.app.refresh import refresh
from etl.cli.groups import WholeGroup
from etl.cli.options import (
    PATH,
    Age,
    Positive,
    all_of,
    as_json,
    assent,
    common,
    confirm,
    files,
    is_interactive,
    settings_of,
    strict,
    wants_json,
)
from etl.database.connection import Database
from etl.database.engine import display_url
from etl.errors import ConfigError
from etl.model import INT64_MAX, Pair
from etl.pipeline.run_state import RunRequest, RunState
from etl.store import dropping, runs, status
from etl.store.plan import format_duration
from etl.telemetry.events import RunCounts
from etl.telemetry.reporter import Reporter, print_result, print_table

kind = click.option("--kind", metavar="KIND", help="Only this kind of error, e.g. not_found.")
deployment = click.option("--deployment", "deployment_id", type=Positive(), metavar="ID", help="Only this deployment.")
which_dead = all_of(
    kind,
    deployment,
    click.option(
        "--older-than", "older_than_seconds", type=Age(), metavar="TIME", help="Only those that died longer ago."
    ),
    click.option("--newer-than", "newer_than_seconds", type=Age(), metavar="TIME", help="Only those that died since."),
)


@click.command("enqueue")
@click.argument("files", nargs=-1, type=PATH, required=True, metavar="FILE|-...")
@click.option("--refresh", is_flag=True, help="Queue final scans too.")
@strict
@as_json
@common
@click.pass_context
def enqueue_command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Put the pairs of FILEs (`-` is stdin) into the queue, and fetch nothing."""
    settings = settings_of(ctx)
    with closing(open_database(settings.database.address, create=True)) as opened:
        counts = fill(opened, RunRequest("enqueue", files, **options), interactive=is_interactive(settings))
        refresh(opened)
    print_result(counts, as_json=wants_json(ctx))


@click.group("queue", cls=WholeGroup)
def queue_group() -> None:
    """The pairs that are still to be fetched: drop some."""


@queue_group.command("drop")
@files
@deployment
@kind
@click.option("--older-than", "older_than_seconds", type=Age(), metavar="TIME", help="Only those queued longer ago.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@assent
@as_json
@common
@click.pass_context
def queue_drop(ctx: click.Context, /, files: tuple[str, ...], everything: bool, yes: bool, **options: Any) -> None:
    """Take pairs out of the queue for good: those of FILEs (`-` is stdin), or all that the options choose.

    What a worker is just working on stays, and is counted as `in_work`.
    """
    if not (files or everything or any(value is not None for value in options.values())):
        raise click.UsageError("say which pairs to drop (FILE, --deployment, --kind, --older-than), or --all")
    choice = dropping.Choice(**options)
    with closing(_open(ctx)) as opened:
        confirm(f"Take these pairs out of the queue in {display_url(opened.url)} for good?", yes)
        found = _drop_pairs(opened, files, choice) if files else dropping.drop_chosen(opened, choice)
        refresh(opened)
    print_result(found._asdict(), as_json=wants_json(ctx))


def _drop_pairs(opened: Database, files: Sequence[str], choice: dropping.Choice) -> dropping.Dropped:
    counts, found = RunCounts(), [dropping.Dropped()]

    def keep(pairs: Sequence[Pair]) -> None:
        found.append(dropping.drop_pairs(opened, choice, pairs))

    read_files(files, keep, RunState(counts, Reporter(counts, interactive=False).emit))
    return reduce(dropping.Dropped.plus, found)


@click.command("status")
@click.option("--by-repository", is_flag=True, help="Only the listed scans, by repository, and what became of them.")
@as_json
@common
@click.pass_context
def status_command(ctx: click.Context, /, by_repository: bool) -> None:
    """The queue, the workers and their speed, dead letters, the last runs."""
    with closing(_open(ctx, reads_only=True)) as opened:
        if by_repository:
            _show_repositories(opened.run_here(status.coverage_by_repository), as_json=wants_json(ctx))
            return
        queue = opened.run_here(status.depth)
        workers = opened.run_here(status.at_work)
        paces = opened.run_here(status.held_paces)
        dead = opened.run_here(status.dead_by_kind)
        to_retry = opened.run_here(status.to_retry_by_kind)
        listed = {"coverage": opened.run_here(status.coverage), "gaps": opened.run_here(status.gaps)}
        last = opened.run_here(partial(runs.last_runs, count=5))
    pace = status.pace(queue, workers)
    if wants_json(ctx):
        found = {
            "queue": queue,
            "workers": workers,
            **pace,
            "held_paces": paces,
            "dead_letters": dead,
            "dead_letters_to_retry": to_retry,
            **listed,
            "runs": last,
        }
        print_result(found, as_json=True)
        return
    print_table("Queue", queue)
    _print_section("Workers", [{k: v for k, v in worker.items() if k != "run_id"} for worker in workers])
    seconds = pace.pop("seconds_to_drain")
    print_result({**pace, "time to drain": "unknown" if seconds is None else format_duration(seconds)}, as_json=False)
    if paces:
        _print_section("Paused deployments: no request is sent before then", paces)
    letters = [{"kind": kind, "count": count, "tried again": to_retry.get(kind, 0)} for kind, count in dead.items()]
    _print_section("Dead letters", letters)
    _print_section("Listed scans", listed["coverage"])
    _print_section("Discovery gaps: scans started in this period are no longer available from the API", listed["gaps"])
    shown = ("started_at", "finished_at", "command", "state", "fetched", "waiting", "dead", "remaining", "exit_code")
    _print_section("Last runs", [{name: row[name] for name in shown} for row in last])


def _print_section(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    click.echo()
    print_table(title, rows)


def _show_repositories(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_result({"repositories": rows}, as_json=True)
    else:
        print_table("Listed scans by repository", rows)


@click.group("failures", cls=WholeGroup)
def failures_group() -> None:
    """Dead letters: list them, show one, requeue them, drop them."""


class PairType(click.ParamType[Pair]):
    """`120/70`: a deployment and a scan."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pair:
        """The pair; fails with an example of what is right."""
        found = re.fullmatch(r"(\d{1,19})/(\d{1,19})", str(value), re.ASCII)
        if not found or not all(0 < int(number) <= INT64_MAX for number in found.groups()):
            self.fail(f"{value!r} is not a deployment and a scan, such as 120/70", param, ctx)
        return Pair(*map(int, found.groups()))


@failures_group.command("list")
@which_dead
@click.option("--limit", type=Positive(), default=100, show_default=True, metavar="N", help="At most N.")
@as_json
@common
@click.pass_context
def failures_list(ctx: click.Context, /, limit: int, **options: Any) -> None:
    """Show dead letters, the newest first."""
    with closing(_open(ctx, reads_only=True)) as opened:
        _name_kinds(opened, options["kind"])
        letters = opened.run_here(partial(status.list_dead, which=status.DeadLetterFilter(**options), limit=limit))
    if wants_json(ctx):
        print_result({"dead_letters": letters}, as_json=True)
    else:
        print_table("Dead letters", [{k: v for k, v in letter.items() if k != "run_id"} for letter in letters])


@failures_group.command("show")
@click.argument("pair", type=PairType())
@as_json
@common
@click.pass_context
def failures_show(ctx: click.Context, pair: Pair) -> None:
    """Show all that is known of a dead letter, by its deployment and scan: 120/70."""
    with closing(_open(ctx, reads_only=True)) as opened:
        letter = opened.run_here(partial(status.dead_letter, pair=pair))
    if letter is None:
        name = f"{pair.deployment_id}/{pair.scan_id}"
        raise ConfigError(f"{name} is no dead letter: `scan-etl failures list` shows which there are")
    print_result(letter, as_json=wants_json(ctx))


def _name_kinds(opened: Database, kind: str | None) -> None:
    """Say which kinds of error there are, if the chosen one isn't among them: it may be a slip of the finger."""
    if kind is None or kind in (found := opened.run_here(status.dead_by_kind)):
        return
    there_are = f"there are {', '.join(found)}" if found else "there are none at all"
    click.echo(f"No dead letter is of the kind {kind!r}; {there_are}.", err=True)


def _change_dead(ctx: click.Context, verb: str, everything: bool, options: dict[str, Any]) -> None:
    if not everything and all(value is None for value in options.values()):
        raise click.UsageError(f"say which dead letters to {verb} (--kind, --deployment, ...), or --all")
    change = {"requeue": status.requeue_dead, "drop": status.drop_dead}[verb]
    with closing(_open(ctx)) as opened:
        _name_kinds(opened, options["kind"])
        count = opened.run_here(partial(change, which=status.DeadLetterFilter(**options)))
        refresh(opened)
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
@assent
@as_json
@common
@click.pass_context
def failures_drop(ctx: click.Context, /, everything: bool, yes: bool, **options: Any) -> None:
    """Delete dead letters for good. With --all it asks first."""
    if everything:
        confirm(f"Delete dead letters in {display_url(settings_of(ctx).database.url)} for good?", yes)
    _change_dead(ctx, "drop", everything, options)


def _open(ctx: click.Context, *, reads_only: bool = False) -> Database:
    return open_database(settings_of(ctx).database.address, create=False, reads_only=reads_only)
