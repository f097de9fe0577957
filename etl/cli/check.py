"""The commands `plan` and `doctor`: what a run would do, and whether it could."""

import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import click

from etl.app.doctor import examine, exit_code_of
from etl.app.finding import Finding
from etl.app.intake import open_database, read_files
from etl.cli.options import as_json, common, files, is_interactive, rate, run_async, settings_of, wants_json
from etl.config.proxies import proxy_for
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.database.engine import display_url, holds_database, sqlite_path
from etl.database.schema import metadata
from etl.model import Pair
from etl.pipeline.run_state import RunState
from etl.store.plan import Plan, add, clock, format_duration, known, plan_queue, plan_staged
from etl.telemetry.events import RunCounts
from etl.telemetry.reporter import Reporter, print_result, print_table

OUR_OWN = "sqlite:///file:?uri=true"
"""An empty database that nobody else sees, in memory until it is too large for that. By this form of its name
SQLAlchemy keeps the connection, and with it the tables."""

OF_FILES = ("requested", "invalid", "duplicate", "already_final")
"""The counts that say nothing without files."""


@click.command("plan")
@files
@click.option("--refresh", is_flag=True, help="As if with `run --refresh`: final scans count again.")
@rate
@as_json
@common
@click.pass_context
def plan_command(ctx: click.Context, /, files: tuple[str, ...], refresh: bool) -> None:
    """What `run` would do with FILEs (`-` is stdin), or without any. Asks no API, queues nothing, changes nothing.

    Where there is no database yet, nothing counts as stored.
    """
    settings = settings_of(ctx)
    url, counts = settings.database.url, RunCounts()
    is_there = _is_there(url)
    with closing(
        open_database(settings.database.address, create=False, reads_only=True) if is_there else _empty_database()
    ) as opened:
        if files:
            reporter = Reporter(counts, interactive=is_interactive(settings))
            with reporter.reading():
                plan = _plan_files(opened, files, counts, reporter, settings.api.rate, refresh=refresh)
        else:
            plan = opened.run_here(partial(plan_queue, rate=settings.api.rate))
    planned = _planned(plan, counts)
    shares = [share._asdict() for share in plan.shares]
    if wants_json(ctx):
        where = {"database": display_url(url) if is_there else None}
        print_result({**where, **planned, "deployments": shares}, as_json=True)
        return
    if not is_there:
        click.echo(f"There is no database {display_url(url)} yet: nothing counts as stored.")
    hidden = ("rate", "seconds", "time") if files else ("rate", "seconds", "time", *OF_FILES)
    shown = {name: value for name, value in planned.items() if name not in hidden}
    print_result({**shown, f"at {plan.rate:g} requests a second": planned["time"]}, as_json=False)
    print_table("By deployment", shares)


def _is_there(url: str) -> bool:
    path = sqlite_path(url)
    return path is None or holds_database(path)


def _plan_files(
    opened: Database, files: Sequence[str], counts: RunCounts, reporter: Reporter, rate: float, *, refresh: bool
) -> Plan:
    """Plan in a database of our own: nothing is written into the one that is planned for, and no right is needed."""
    now = opened.run_here(clock)
    with closing(_empty_database()) as ours:

        def keep(pairs: Sequence[Pair]) -> None:
            found = opened.run_here(partial(known, pairs=pairs))
            ours.run_here(partial(add, pairs=pairs, known=found))

        read_files(files, keep, RunState(counts, reporter.emit))
        valid = counts.requested - counts.invalid
        return ours.run_here(partial(plan_staged, valid=valid, now=now, rate=rate, refresh=refresh))


def _empty_database() -> Database:
    opened = Database(OUR_OWN)
    opened.run_here(metadata.create_all)
    return opened


def _planned(plan: Plan, counts: RunCounts) -> dict[str, Any]:
    """`requested` = `invalid` + `duplicate` + `already_final` + `not_due` + `to_fetch`, where there are files."""

    def total(name: str) -> int:
        return sum(getattr(share, name) for share in plan.shares)

    return {
        "requested": counts.requested,
        "invalid": counts.invalid,
        "duplicate": plan.duplicate,
        "already_final": plan.already_final,
        "not_due": total("not_due"),
        "to_fetch": total("to_fetch"),
        "expiring": total("expiring"),
        "expiry_unknown": total("expiry_unknown"),
        "requests": plan.requests,
        "rate": plan.rate,
        "seconds": round(plan.seconds, 3),
        "time": format_duration(plan.seconds),
    }


@click.command("doctor")
@as_json
@common
@click.pass_context
def doctor_command(ctx: click.Context) -> None:
    """Check whether everything is in place: settings, tokens, API, clock, database. Changes nothing.

    The exit code is that of the run that would fail: 2 settings, 3 token, 5 database, 4 API, else 0.
    """
    read_tokens, read_proxy = partial(load_tokens, os.environ), partial(proxy_for, environ=os.environ)
    findings = run_async(examine(partial(settings_of, ctx), read_tokens, read_proxy))
    exit_code = exit_code_of(findings)
    if wants_json(ctx):
        shown = [
            {"name": each.name, "ok": each.ok, "warning": each.warning, "sentence": each.sentence} for each in findings
        ]
        print_result({"findings": shown, "exit_code": exit_code}, as_json=True)
    else:
        print_table("Checks", [_row(finding) for finding in findings])
    ctx.exit(exit_code)


def _row(finding: Finding) -> dict[str, str]:
    state = "warning" if finding.warning else "ok" if finding.ok else "wrong"
    return {"check": finding.name, "state": state, "what is, or what to do": finding.sentence}
