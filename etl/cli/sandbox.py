"""The commands `sandbox` and `demo`: the API played on this machine, and the whole job against it."""

import csv
import re
import sys
import tempfile
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any

import click

from etl.app.report import make
from etl.app.run import run
from etl.cli.options import Positive, as_json, run_async, wants_json
from etl.cli.report import write_page
from etl.config.settings import load_settings
from etl.config.tokens import load_tokens
from etl.database.connection import Database
from etl.database.engine import display_url, sqlite_path
from etl.errors import ConfigError
from etl.pipeline.run_state import RunRequest
from etl.sandbox import Sandbox, serve
from etl.sandbox.faults import FAULTS, Behaviour, Fault
from etl.sandbox.world import Deployment, Token, World, deployment_of
from etl.store import status
from etl.telemetry.log import configure_logs
from etl.telemetry.reporter import print_summary, print_table

DEMO_PAGE = Path("scan-etl-demo.html")


async def demo(*, scans: int, rate: float, database_url: str, interactive: bool) -> dict[str, Any]:
    """Fetch `scans` scans of a made-up deployment; a few of the answers fail at first. Returns the summary.

    The world is the same all day, so that a second run finds everything fetched.
    """
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    world = World(scans=scans, scans_per_day=max(scans / 30, 1), opened_at=midnight)
    faults = (Fault("status-500", 0.005), Fault("reset", 0.002), Fault("status-404", 0.001, times=0))
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.csv"
        write_pairs(pairs, world)
        async with Sandbox(world, Behaviour(faults=faults)) as base_url:
            settings = load_settings(
                config_file=None,
                flags={
                    "api.base_url": base_url,
                    "api.rate": rate,
                    "database.url": database_url,
                    "queue.backoff_seconds": 0.5,
                },
                environ={},
                directory=Path(folder),
            )
            tokens = load_tokens({"SEMGREP_APP_TOKEN": "sandbox-token"})
            return await run(RunRequest("demo", (str(pairs),)), settings, tokens, interactive=interactive)


def write_pairs(path: Path, world: World) -> None:
    """A pairs file of all scans that a sandbox world starts with."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("deployment_id", "scan_id"))
        for scan_id in range(world.first_scan_id, world.first_scan_id + world.scans):
            writer.writerow((deployment_of(world, scan_id).id, scan_id))


def sample(database_url: str) -> list[dict[str, Any]]:
    """Three rows as a dashboard sees them."""
    with closing(Database(database_url)) as opened:
        return opened.run_here(partial(status.newest_scans, count=3))


def charts(database_url: str) -> str:
    """Write the page of charts, and say where it is, or how to get it where what draws them isn't installed."""
    try:
        with closing(Database(database_url)) as opened:
            made = make(opened, (), days=30, stale_days=14)
    except ConfigError as error:
        return f"No page with charts, for {error}"
    write_page(DEMO_PAGE, made.html.encode())
    return f"The page with charts: {DEMO_PAGE.absolute()}"


@click.command("demo")
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
    """Run the whole job against the sandbox, into a database of its own, and draw the report."""
    configure_logs("text", "error")  # what fails on purpose is told at the end, after what it is all for
    interactive = sys.stderr.isatty()
    summary = run_async(demo(scans=scans, rate=rate, database_url=database_url, interactive=interactive))
    print_summary(summary, as_json=wants_json(ctx))
    if not wants_json(ctx):
        where = display_url(database_url)
        url = database_url if sqlite_path(database_url) else where  # a server's may have a password
        print_table("Three of the scans, as dashboards see them", sample(database_url))
        click.echo(f"\nThe database: {where}")
        click.echo(charts(database_url))
        click.echo(f"Dead letters: {summary['dead']}, on purpose: scan-etl failures list --database-url {url}")
        click.echo("A second demo fetches nothing twice.")
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


FAULT_NAMES = wrap(f"Faults: {', '.join(FAULTS)}.", 56, subsequent_indent="  ", break_on_hyphens=False)


@click.command("sandbox", epilog="\b\n" + "\n".join(FAULT_NAMES))
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same scans.")
@click.option("--scans", type=click.IntRange(0), default=10_000, show_default=True, help="Scans at the start.")
@click.option("--scans-per-day", type=float, default=500.0, show_default=True, help="New ones that arrive.")
@click.option("--repositories", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--deployment", type=Positive(), default=120, show_default=True, metavar="ID", help="Its id.")
@click.option("--token", default="sandbox-token", show_default=True, help="The one token that it takes.")
@click.option("--latency", type=click.FloatRange(0), default=0.0, help="Seconds that each answer takes.")
@click.option("--latency-spread", type=click.FloatRange(0), default=0.0, help="Up to so many seconds more.")
@click.option("--rate-limit", type=float, metavar="N", help="Answer 429 above N requests a second.")
@click.option("--retry-after", type=click.Choice(["seconds", "date", "absent"]), default="seconds", help="In a 429.")
@click.option("--rate-limit-headers", is_flag=True, help="Send X-RateLimit-* headers.")
@click.option(
    "--search",
    type=click.Choice(["whole", "refused", "empty", "nothing"]),
    default="whole",
    show_default=True,
    help="What a search without a repository gets; nothing: with one, too.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    callback=_fault,
    metavar="NAME=SHARE[:TIMES]",
    help="A fault of the list below.",
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
            search=options["search"],
            faults=options["faults"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if pairs is not None:
        try:
            write_pairs(pairs, world)
        except OSError as error:
            raise click.UsageError(f"--pairs {pairs} can't be written: {error.strerror}") from error

    def started(base_url: str) -> None:
        click.echo(f"The sandbox listens. For scan-etl:\n\n  export SCAN_ETL_API__BASE_URL={base_url}", err=True)
        click.echo(f"  export SEMGREP_APP_TOKEN={token.text}\n", err=True)

    try:
        with suppress(KeyboardInterrupt):
            run_async(serve(Sandbox(world, behaviour), host, port, on_start=started))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"can't listen on {host}:{port}, choose another --host or --port: {error}") from error
