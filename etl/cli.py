"""The command line: arguments, environment and signals in, an exit code out. Everything else is below."""

import asyncio
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from etl import __version__, database, runs, status
from etl.config import Settings, load_settings, load_tokens, origins
from etl.demo import demo, sample, write_pairs
from etl.errors import ConfigError, FatalError, ScanEtlError, TransientError
from etl.job import Order, fill, open_database, run
from etl.observe import configure_logs, print_result, print_summary, print_table
from etl.sandbox import Sandbox, serve
from etl.sandbox.faults import FAULTS, Behaviour, Fault
from etl.sandbox.world import Deployment, Token, World
from etl.schema import HEAD

BUG_EXIT = 70
UNAVAILABLE_EXIT = 4
SETTING_OF = {
    "database_url": "database.url",
    "log_format": "observe.log_format",
    "log_level": "observe.log_level",
    "rate": "api.rate",
    "concurrency": "api.concurrency",
}
"""The options that stand for a setting."""

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """`90`, `90s`, `10m`, `2h` or `7d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails with an example of what is right."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a duration such as 90s, 10m, 2h or 7d", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


# Options that many commands share


def _given(ctx: click.Context) -> dict[str, Any]:
    given: dict[str, Any] = ctx.find_root().meta.setdefault("etl.given", {})
    return given


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """A shared option is welcome before and after the command's name; the last one counts."""
    if value is not None and param.name is not None:
        _given(ctx)[param.name] = value


_option = partial(click.option, expose_value=False, callback=_keep)


def _all_of(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


common = _all_of(
    _option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings in TOML."),
    _option("--database-url", metavar="URL", help="Where the rows go: sqlite:///FILE or postgresql://..."),
    _option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log lines on stderr."),
    _option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level to log."),
)
pace = _all_of(
    _option("--rate", type=float, metavar="N", help="Requests a second for a token."),
    _option("--concurrency", type=int, metavar="N", help="Requests in flight."),
)
as_json = _option("--json", is_flag=True, default=None, help="One JSON object on stdout, and nothing else there.")
budget = _all_of(
    click.option("--refresh", is_flag=True, help="Fetch final scans again."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Fetch at most N pairs, then exit 4."),
    click.option("--max-failures", type=click.IntRange(min=1), metavar="N", help="Stop at N dead letters: exit 4."),
    click.option("--deadline", type=Duration(), metavar="TIME", help="Stop after 90s, 10m, 2h: exit 4."),
)
strict = click.option("--strict", is_flag=True, help="A bad line refuses the input before anything is queued.")
files = click.argument("files", nargs=-1, metavar="[FILE|-]...")
which_dead = _all_of(
    click.option("--kind", metavar="KIND", help="Only this kind of error, e.g. not_found."),
    click.option("--deployment", "deployment_id", type=int, metavar="ID", help="Only this deployment."),
    click.option("--older-than", "older_than_seconds", type=Duration(), metavar="TIME", help="Dead for longer."),
    click.option("--newer-than", "newer_than_seconds", type=Duration(), metavar="TIME", help="Dead for less."),
)


def _settings(ctx: click.Context) -> Settings:
    given = _given(ctx)
    settings = load_settings(
        config_file=given.get("config"),
        flags={setting: given[name] for name, setting in SETTING_OF.items() if name in given},
        environ=os.environ,
        directory=Path.cwd(),
    )
    configure_logs(settings.observe.log_format, settings.observe.log_level)
    return settings


def _wants_json(ctx: click.Context) -> bool:
    return bool(_given(ctx).get("json"))


def _open(ctx: click.Context) -> database.Database:
    return open_database(_settings(ctx).database.url, create=False)


def _run_async(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        import uvloop  # noqa: PLC0415 - not on Windows
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


# Commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="scan-etl")
@common
def cli() -> None:
    """Fetch the details of Semgrep scans and keep them in a database that dashboards read.

    The token comes from SEMGREP_APP_TOKEN (or SEMGREP_APP_TOKEN_FILE, or SEMGREP_APP_TOKEN__120 for deployment 120).

    Exit codes: 0 all done, 1 some pairs are dead letters, 2 usage or settings, 3 token, 4 stopped by a budget
    or an API that is away, 5 database, 70 a bug, 130/143 stopped by a signal.
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
    order = Order("run", files, **_budget(options))
    _report_run(ctx, order)


def _budget(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"deadline_seconds" if name == "deadline" else name: value for name, value in options.items()}


def _report_run(ctx: click.Context, order: Order) -> NoReturn:
    settings = _settings(ctx)
    as_json = _wants_json(ctx)
    interactive = sys.stderr.isatty() and settings.observe.log_format == "text"
    summary = _run_async(run(order, settings, load_tokens(os.environ), interactive=interactive))
    print_summary(summary, where=database.place(settings.database.url), as_json=as_json)
    ctx.exit(summary["exit_code"])


@cli.command("enqueue")
@click.argument("files", nargs=-1, required=True, metavar="FILE|-...")
@click.option("--refresh", is_flag=True, help="Queue final scans too.")
@strict
@as_json
@common
@click.pass_context
def enqueue_command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Put the pairs of FILEs into the queue, and fetch nothing."""
    settings = _settings(ctx)
    with closing(open_database(settings.database.url, create=True)) as opened:
        counts = fill(opened, Order("enqueue", files, **options))
    print_result(counts, as_json=_wants_json(ctx))


@cli.command("status")
@as_json
@common
@click.pass_context
def status_command(ctx: click.Context) -> None:
    """What is in the queue, how the last runs went, how many dead letters there are."""
    with closing(_open(ctx)) as opened:
        queue = opened.run_here(status.depth)
        dead = opened.run_here(status.dead_by_kind)
        last = opened.run_here(partial(runs.last_runs, count=5))
    if _wants_json(ctx):
        print_result({"queue": queue, "dead_letters": dead, "runs": last}, as_json=True)
        return
    print_table("Queue", queue)
    print_table("Dead letters", [{"kind": kind, "count": count} for kind, count in dead.items()])
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
    if _wants_json(ctx):
        print_result({"dead_letters": letters}, as_json=True)
    else:
        print_table("Dead letters", [{k: v for k, v in letter.items() if k != "run_id"} for letter in letters])


def _change_dead(ctx: click.Context, verb: str, everything: bool, options: dict[str, Any]) -> None:
    if not everything and all(value is None for value in options.values()):
        raise click.UsageError(f"say which dead letters to {verb} (--kind, --deployment, ...), or --all")
    change = {"requeue": status.requeue_dead, "drop": status.drop_dead}[verb]
    with closing(_open(ctx)) as opened:
        count = opened.run_here(partial(change, which=status.Which(**options)))
    print_result({{"requeue": "requeued", "drop": "dropped"}[verb]: count}, as_json=_wants_json(ctx))


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


@cli.group("db")
def db_group() -> None:
    """The tables: bring them up to date, look whether they are."""


@db_group.command("upgrade")
@common
@click.pass_context
def db_upgrade(ctx: click.Context) -> None:
    """Create the tables, or bring them to the newest version."""
    url = _settings(ctx).database.url
    database.upgrade(url)
    click.echo(f"{database.place(url)} is at {HEAD}")


@db_group.command("downgrade")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Don't ask.")
@common
@click.pass_context
def db_downgrade(ctx: click.Context, revision: str, yes: bool) -> None:
    """Take the tables back to REVISION (`base`: none at all). What the dropped ones held is lost."""
    url = _settings(ctx).database.url
    if not yes:
        click.confirm(f"Drop what came after {revision} in {database.place(url)}, with its data?", abort=True)
    database.downgrade(url, revision)
    click.echo(f"{database.place(url)} is at {revision}")


@db_group.command("check")
@common
@click.pass_context
def db_check(ctx: click.Context) -> None:
    """Exit 0 if the tables are what this version needs, else 5."""
    url = _settings(ctx).database.url
    database.check(url)
    click.echo(f"{database.place(url)} is at {HEAD}, as it should be")


@db_group.command("current")
@common
@click.pass_context
def db_current(ctx: click.Context) -> None:
    """Print the revision that the database is at, or `none`."""
    click.echo(database.current(_settings(ctx).database.url) or "none")


@db_group.command("sql")
@common
@click.pass_context
def db_sql(ctx: click.Context) -> None:
    """Print the SQL of all migrations for this kind of database, without touching it."""
    click.echo(database.upgrade_sql(_settings(ctx).database.url), nl=False)


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
    settings = _settings(ctx)
    tokens = load_tokens(os.environ)
    rows = [{"setting": o.key, "value": o.value, "from": o.source} for o in origins(settings)]
    if _wants_json(ctx):
        print_result({"settings": rows, "tokens": tokens.variables}, as_json=True)
        return
    print_table("Settings", rows)
    click.echo(f"Tokens: {', '.join(tokens.variables) or 'none (set SEMGREP_APP_TOKEN)'}")


@cli.command("demo")
@click.option(
    "--scans", type=click.IntRange(1, 1_000_000), default=3000, show_default=True, metavar="N", help="Scans to fetch."
)
@click.option("--rate", type=click.FloatRange(1), default=1000, show_default=True, metavar="N", help="Per second.")
@click.option(
    "--database-url", default="sqlite:///scan-etl-demo.db", show_default=True, metavar="URL", help="Where the rows go."
)
@as_json
@click.pass_context
def demo_command(ctx: click.Context, /, scans: int, rate: float, database_url: str) -> None:
    """Run the whole job against the sandbox, into a database of its own."""
    configure_logs("text", "info")
    interactive = sys.stderr.isatty()
    summary = _run_async(demo(scans=scans, rate=rate, database_url=database_url, interactive=interactive))
    where = database.place(database_url)
    print_summary(summary, where=where, as_json=_wants_json(ctx))
    if not _wants_json(ctx):
        print_table("Three rows of the view bi_scan", sample(database_url))
        click.echo(f"The database: {where}")
        click.echo("A few pairs fail on purpose and end as dead letters. A second run fetches nothing twice.")
    ctx.exit(0 if summary["exit_code"] in (0, 1) else summary["exit_code"])


def _fault(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Fault, ...]:
    faults = []
    for value in values:
        found = re.fullmatch(r"([a-z0-9-]+)=([0-9.]+)(?::(\d+))?", value)
        try:
            if not found:
                raise ValueError(f"{value!r} isn't NAME=SHARE or NAME=SHARE:TIMES, e.g. status-500=0.01")
            faults.append(Fault(found[1], float(found[2]), int(found[3] or 1)))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return tuple(faults)


@cli.command("sandbox")
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same scans.")
@click.option("--scans", type=click.IntRange(0), default=10_000, show_default=True, help="Scans at the start.")
@click.option("--scans-per-day", type=float, default=500.0, show_default=True, help="New ones that arrive.")
@click.option("--repositories", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--deployment", type=click.IntRange(1), default=120, show_default=True, metavar="ID", help="Its id.")
@click.option("--token", default="sandbox-token", show_default=True, help="The one token that it takes.")
@click.option("--latency", type=click.FloatRange(0), default=0.0, help="Seconds that each answer takes.")
@click.option("--latency-spread", type=click.FloatRange(0), default=0.0, help="Up to so many seconds more.")
@click.option("--rate-limit", type=float, metavar="N", help="Answer 429 above N requests a second.")
@click.option("--retry-after", type=click.Choice(["seconds", "date", "absent"]), default="seconds", help="In a 429.")
@click.option("--rate-limit-headers", is_flag=True, help="Send X-RateLimit-* headers.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    callback=_fault,
    metavar="NAME=SHARE[:TIMES]",
    help=f"One of {', '.join(FAULTS)}.",
)
@click.option("--pairs", type=click.Path(path_type=Path), help="Write the pairs of all scans into this CSV file.")
def sandbox_command(host: str, port: int, pairs: Path | None, **options: Any) -> None:
    """Play the Semgrep API on loopback until Ctrl-C, for demos, rehearsals and tests.

    A fault hits its share of the scans at the first TIMES requests (default 1, 0 is always).
    """
    try:
        token = Token(options["token"])
        world = World(
            seed=options["seed"],
            scans=options["scans"],
            scans_per_day=options["scans_per_day"],
            repositories=options["repositories"],
            deployments=(Deployment(options["deployment"], tokens=(token,)),),
            opened_at=datetime.now(UTC),
        )
        behaviour = Behaviour(
            latency_seconds=options["latency"],
            latency_spread_seconds=options["latency_spread"],
            rate_limit=options["rate_limit"],
            retry_after=options["retry_after"],
            rate_limit_headers=options["rate_limit_headers"],
            faults=options["faults"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if pairs is not None:
        write_pairs(pairs, world)

    def started(base_url: str) -> None:
        click.echo(f"The sandbox listens. For scan-etl:\n\n  export SCAN_ETL_API__BASE_URL={base_url}", err=True)
        click.echo(f"  export SEMGREP_APP_TOKEN={token.text}\n", err=True)

    with suppress(KeyboardInterrupt):
        _run_async(serve(Sandbox(world, behaviour), host, port, on_start=started))


# The way out


def main() -> NoReturn:
    """Run the command and leave with its exit code. Errors of ours are one sentence on stderr."""
    ctx_given: dict[str, Any] = {}
    try:
        with cli.make_context("scan-etl", sys.argv[1:]) as ctx:
            ctx_given = _given(ctx)
            cli.invoke(ctx)
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        _fail("interrupted", 130, ctx_given)
    except click.ClickException as error:
        error.show()
        sys.exit(ConfigError.exit_code)
    except TransientError as error:
        _fail(str(error), UNAVAILABLE_EXIT, ctx_given)
    except FatalError as error:
        _fail(str(error), error.stop_code, ctx_given)
    except ScanEtlError as error:
        _fail(str(error), error.exit_code, ctx_given)
    except KeyboardInterrupt:
        _fail("interrupted", 130, ctx_given)
    except Exception:
        traceback.print_exc()
        _fail("this is a bug in scan-etl: please report it with the lines above", BUG_EXIT, ctx_given)


def _fail(message: str, exit_code: int, given: Mapping[str, Any]) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    if given.get("json"):
        click.echo(json.dumps({"error": message, "exit_code": exit_code}))
    sys.exit(exit_code)
