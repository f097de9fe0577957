"""The command line: arguments, environment and signals in, an exit code out. Everything else is below."""

import errno
import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, NoReturn

import click

from etl import __version__
from etl.cli.options import LazyGroup, as_json, common, given, pace, settings_of, wants_json
from etl.config.settings import PRIVACY_KEY, origins
from etl.config.tokens import load_tokens
from etl.errors import UNAVAILABLE_EXIT, ConfigError, FatalError, ScanEtlError, TransientError
from etl.telemetry.reporter import print_result, print_table

BUG_EXIT = 70
CLOSED_PIPE_EXIT = 141
"""What a shell says of a program that SIGPIPE has ended."""
LOST_OUTPUT_EXIT = 74
"""EX_IOERR of BSD's sysexits.h."""
LOST_OUTPUT = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What writing may fail with. Of what else is written, each place tells in words of its own."""
STDOUT, STDERR = 1, 2

# Apart, because SQL, HTTP and Alembic take 0.1 to 0.3 s each to import, and few commands need them all.
LATER = {
    "db": "etl.cli.db:db_group",
    "demo": "etl.cli.sandbox:demo_command",
    "discover": "etl.cli.run:discover_command",
    "drift": "etl.cli.answers:drift_command",
    "doctor": "etl.cli.check:doctor_command",
    "enqueue": "etl.cli.queue:enqueue_command",
    "export": "etl.cli.export:export_command",
    "failures": "etl.cli.queue:failures_group",
    "inspect": "etl.cli.answers:inspect_command",
    "forget": "etl.cli.forget:forget_command",
    "plan": "etl.cli.check:plan_command",
    "queue": "etl.cli.queue:queue_group",
    "run": "etl.cli.run:run_command",
    "runs": "etl.cli.runs:runs_group",
    "sandbox": "etl.cli.sandbox:sandbox_command",
    "status": "etl.cli.queue:status_command",
    "sync": "etl.cli.run:sync_command",
    "worker": "etl.cli.run:worker_command",
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
    or an unavailable API, 5 database, 70 a bug, 74 output that can't be written, 130/141/143 stopped by a signal.
    """
    # Click has imported the command when it comes here. What is imported stays for good: to look it through for
    # garbage, while it is imported, as it is used and once more at the end, costs 0.1 s a command.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


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
    key = settings.sources.get(PRIVACY_KEY, "").removeprefix("environment ")
    rows = [{"setting": o.key, "value": o.value, "from": o.source} for o in origins(settings)]
    if wants_json(ctx):
        print_result({"settings": rows, "tokens": tokens.variables, "privacy_key": key or None}, as_json=True)
        return
    print_table("Settings", rows)
    click.echo(f"Tokens: {', '.join(tokens.variables) or 'none (set SEMGREP_APP_TOKEN)'}")
    click.echo(f"Privacy key: {key or 'none'}")


# The way out


def main() -> NoReturn:
    """Run the command and leave with its exit code. Errors of ours are one sentence on stderr."""
    _open_closed_streams()
    _escape_what_streams_cannot_hold()
    try:
        try:
            _run()
        finally:
            _write_rest()
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does.
        _leave_unwritten(CLOSED_PIPE_EXIT)
    except OSError as error:
        with suppress(OSError):
            sentence = f"the output can't be written ({error.strerror}): `scan-etl status` shows what was done"
            click.echo(f"Error: {sentence}", err=True)
        _leave_unwritten(LOST_OUTPUT_EXIT)


def _write_rest() -> None:
    """Write what is left, while an error can still be told. OSError if that can't be done on stdout."""
    try:
        sys.stderr.flush()
    except OSError:
        _silence(STDERR)  # a log line is lost, and no more
    sys.stdout.flush()


def _leave_unwritten(exit_code: int) -> NoReturn:
    _silence(STDOUT)
    sys.exit(exit_code)


def _silence(number: int) -> None:
    """Let go of what a stream still has, or Python would try to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _open_closed_streams() -> None:
    """Whoever starts us with a closed stream loses what would go there. Its number mustn't go to another file."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        if number == STDOUT:
            sys.stdout = os.fdopen(number, "w")
        elif number == STDERR:
            sys.stderr = os.fdopen(number, "w")
    os.close(number)


def _escape_what_streams_cannot_hold() -> None:
    """Names and errors may hold any character, and a terminal's or a pipe's encoding, such as ASCII, hardly any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
        _fail("interrupted", 130, ctx_given or {"json": "--json" in sys.argv})
    except Exception as error:
        if isinstance(error, OSError) and error.errno in LOST_OUTPUT:
            raise
        traceback.print_exc()
        _fail("this is a bug in scan-etl: please report it with the lines above", BUG_EXIT, ctx_given)


def _fail(message: str, exit_code: int, given: Mapping[str, Any]) -> NoReturn:
    with suppress(OSError):  # a full disk behind the log doesn't change how it ended
        click.echo(f"Error: {message}", err=True)
    if given.get("json"):
        click.echo(json.dumps({"error": message, "exit_code": exit_code}))
    sys.exit(exit_code)
