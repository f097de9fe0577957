"""The command `export`: a table or a view as Parquet or CSV."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import click

from etl.app.export import export, writer_of
from etl.app.intake import open_database
from etl.cli.main import LOST_OUTPUT
from etl.cli.options import Positive, Since, as_json, common, settings_of, wants_json
from etl.database.migrate import dictionary
from etl.errors import ConfigError
from etl.store.exports import extract
from etl.telemetry.reporter import print_result

FORMATS = ("parquet", "csv")
STDOUT = "-"


@click.command("export")
@click.argument("name")
@click.option("--format", "form", type=click.Choice(FORMATS), help="By default that of the FILE, csv on stdout.")
@click.option(
    "--out",
    metavar="DIR|FILE|-",
    default=STDOUT,
    show_default=True,
    help="A folder, a .parquet or .csv file, or stdout.",
)
@click.option(
    "--deployment",
    "deployment_ids",
    type=Positive(),
    multiple=True,
    metavar="ID",
    help="Only this deployment; several times: these.",
)
@click.option("--changed-since", type=Since(), metavar="TIME", help="Only what changed since: 30d ago, or an instant.")
@as_json
@common
@click.pass_context
def export_command(
    ctx: click.Context,
    /,
    name: str,
    form: str | None,
    out: str,
    deployment_ids: tuple[int, ...],
    changed_since: float | datetime | None,
) -> None:
    """Write the rows of a table or view NAME, as of one moment, into files that keep their types.

    A folder has a file for each deployment and month, where the view has a day. An earlier export in it is
    replaced, and so is a FILE. Nobody sees half a file: all appear at the end.
    """
    settings, form = settings_of(ctx), form or _form_of(out)
    place = _place(out, form, as_json=wants_json(ctx))
    writer_of(form)
    since = _instant(changed_since)
    chosen = extract(dictionary(), name, deployment_ids, since)
    with (
        closing(open_database(settings.database.address, create=False, reads_only=True)) as opened,
        _ended_by_sigterm(),
        _told(out),
    ):
        done = export(opened, chosen, form, place, _progress())
    if out != STDOUT:
        shown: dict[str, Any] = {"name": name, "format": form, "out": str(Path(out).absolute()), "changed_since": since}
        print_result({**shown, **done._asdict()}, as_json=wants_json(ctx))


def _form_of(out: str) -> str:
    return "csv" if out == STDOUT or Path(out).suffix == ".csv" else "parquet"


def _place(out: str, form: str, *, as_json: bool) -> Path | BinaryIO:
    """Where it goes. ConfigError if that can't be."""
    path = Path(out)
    if out == STDOUT:
        if form != "csv":
            raise ConfigError(f"{form} doesn't go to stdout: give --out a folder or a file")
        if as_json:
            raise ConfigError("--json and the rows can't both go to stdout: give --out a folder or a file")
        return sys.stdout.buffer
    if path.suffix.removeprefix(".") in FORMATS and path.suffix != f".{form}":
        raise ConfigError(f"--out {out} has another ending than --format {form} writes: give it the ending .{form}")
    if path.is_dir() and path.suffix == f".{form}":
        raise ConfigError(f"--out {out} is a folder named as a file: give it another name")
    return path


def _instant(since: float | datetime | None) -> datetime | None:
    return datetime.now(UTC) - timedelta(seconds=since) if isinstance(since, float) else since


def _progress() -> Callable[[int], None]:
    """On a terminal it is seen how far it is."""
    total, is_seen = 0, sys.stderr.isatty() and not sys.stdout.isatty()

    def say(rows: int) -> None:
        nonlocal total
        total += rows
        if is_seen:
            click.echo(f"\r{total:,} rows", nl=False, err=True)

    return say


@contextmanager
def _told(out: str) -> Iterator[None]:
    """A place where nothing can be written is told as a wrong argument; a full disk isn't."""
    try:
        yield
    except OSError as error:
        if error.errno in LOST_OUTPUT:
            raise
        raise ConfigError(f"--out {out} can't be written: {error.strerror or error}") from error


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves no unfinished files, as Ctrl-C doesn't."""

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
