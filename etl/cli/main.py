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
from click.shell_completion import shell_complete

from etl import __version__
from etl.cli.groups import Later, LazyGroup
from etl.cli.options import common, given
from etl.errors import BUG_EXIT, ConfigError, ScanEtlError, exit_code_of
from etl.telemetry.layout import text
from etl.telemetry.log import is_json, terminal_width, write_line

CLOSED_PIPE_EXIT = 141
"""What a shell says of a program that SIGPIPE has ended."""
LOST_OUTPUT_EXIT = 74
"""EX_IOERR of BSD's sysexits.h."""
LOST_OUTPUT = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What writing may fail with. Of what else is written, each place tells in words of its own."""
STDOUT, STDERR = 1, 2
COMPLETE_VARIABLE = "_SCAN_ETL_COMPLETE"
"""What a shell's completion says what it wants with."""
COMMAND_FAILED = "command failed"
"""The name of the log line for an error, where machines read the log."""

# Apart, because SQL, HTTP and Alembic take 0.1 to 0.3 s each to import, and few commands need them all.
LATER = {
    "Fetch": {
        "sync": Later("etl.cli.run:sync_command", "Discover, then fetch what is due: what cron calls every night."),
        "run": Later(
            "etl.cli.run:run_command", "Fetch the pairs of FILEs (`-` is stdin), or all that is due in the queue."
        ),
        "worker": Later("etl.cli.run:worker_command", "Drain the queue endlessly, and wait when it is empty."),
        "discover": Later(
            "etl.cli.run:discover_command", "Walk the API's list of scans, and queue those that are new or not final."
        ),
        "enqueue": Later(
            "etl.cli.queue:enqueue_command", "Put the pairs of FILEs (`-` is stdin) into the queue, and fetch nothing."
        ),
        "queue": Later("etl.cli.queue:queue_group", "The pairs that are still to be fetched: drop some."),
    },
    "Look": {
        "status": Later(
            "etl.cli.queue:status_command",
            "The queue, the workers and their speed, dead letters, the last runs.",
        ),
        "runs": Later(
            "etl.cli.runs:runs_group", "The runs, the newest first: when they began, their state, what they did."
        ),
        "failures": Later(
            "etl.cli.queue:failures_group", "Dead letters: list them, show one, requeue them, drop them."
        ),
        "drift": Later(
            "etl.cli.answers:drift_command",
            "List where answers differ from what is documented: new fields, odd values, contradictions.",
        ),
        "plan": Later("etl.cli.check:plan_command", "What `run` would do with FILEs (`-` is stdin), or without any."),
        "inspect": Later(
            "etl.cli.answers:inspect_command",
            "Show which rows a saved answer of the API becomes, and where it differs from what is documented.",
        ),
        "report": Later(
            "etl.cli.report:report_command",
            "Write one HTML page with charts of what the views say: no script, nothing fetched, ready to be forwarded.",
        ),
        "export": Later(
            "etl.cli.export:export_command",
            "Write the rows of a table or view NAME, as of one moment, into files that keep their types.",
        ),
        "forget": Later(
            "etl.cli.forget:forget_command",
            "Remove a person from all stored data, by mail address or user name.",
        ),
        "prune": Later(
            "etl.cli.prune:prune_command",
            "Remove what is older than you want to keep: runs, dead letters, and scans if you say so.",
        ),
    },
    "Set up": {
        "doctor": Later(
            "etl.cli.check:doctor_command",
            "Check whether everything is in place: settings, tokens, API, clock, database.",
        ),
        "config": Later(
            "etl.cli.config:config_group",
            "The settings: show those in force, write a file to start from, and those for cron and others.",
        ),
        "db": Later("etl.cli.db:db_group", "The tables: upgrade them, check their version, grant rights."),
        "demo": Later(
            "etl.cli.sandbox:demo_command",
            "Run the whole job against the sandbox, into a database of its own, and draw the report.",
        ),
        "sandbox": Later(
            "etl.cli.sandbox:sandbox_command",
            "Play the Semgrep API on loopback until Ctrl-C, for demos, rehearsals and tests.",
        ),
    },
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

    \b
    Completion in bash; zsh_source and fish_source likewise:
      eval "$(_SCAN_ETL_COMPLETE=bash_source scan-etl)"
    """
    # Click has imported the command when it comes here. What is imported stays for good: to look it through for
    # garbage, while it is imported, as it is used and once more at the end, costs 0.1 s a command.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


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
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        sys.exit(shell_complete(cli, {}, "scan-etl", COMPLETE_VARIABLE, instruction))
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
    except ScanEtlError as error:
        _fail(str(error), exit_code_of(error), ctx_given)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130, ctx_given or {"json": "--json" in sys.argv})
    except Exception as error:
        if isinstance(error, OSError) and error.errno in LOST_OUTPUT:
            raise
        traceback.print_exc()
        _fail("this is a bug in scan-etl: please report it with the lines above", BUG_EXIT, ctx_given)


def _fail(message: str, exit_code: int, given: Mapping[str, Any]) -> NoReturn:
    if is_json():
        write_line("error", COMMAND_FAILED, {"reason": message, "exit_code": exit_code}, message)
    else:
        with suppress(OSError):  # a full disk behind the log doesn't change how it ended
            click.echo("\n".join(text(f"Error: {message}", terminal_width(sys.stderr))), err=True)
    if given.get("json"):
        click.echo(json.dumps({"error": message, "exit_code": exit_code}))
    sys.exit(exit_code)
