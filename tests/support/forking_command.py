"""The command, forked from a process that has imported the program: run by `ForkServer`, imported by nobody.

It takes a line of JSON for each command from the socket at its stdin, with four files: a pipe for two answers, and the
command's stdin, stdout and stderr. The answers are the process id, and the exit code when the command has ended.
"""

import atexit
import gc
import importlib
import inspect
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import coverage
from forked_process import ANSWER_BYTES

from etl.__main__ import main

FIRST_USED_LATE = """
etl.cli.main etl.cli.check etl.cli.config etl.cli.db etl.cli.queue etl.cli.run etl.cli.sandbox
encodings.idna psycopg rich.console rich.progress rich.table sqlalchemy.dialects.postgresql.psycopg uvloop
"""
"""What functions of the program and of its libraries import."""
USED_BY = {"export": "etl.files.parquet_file pandas", "report": "etl.report.page"}
"""What some commands import besides: once the first of them comes, for it takes long."""


def import_program() -> None:
    import_all(FIRST_USED_LATE)
    inspect.stack()  # the coverage of each child asks for it, and then knows the files of a thousand modules
    gc.collect()
    gc.freeze()  # a child that looks for garbage copies no page for it


def import_all(names: str) -> None:
    for name in names.split():
        importlib.import_module(name)


def wait_for_a_command(requests: socket.socket) -> None:
    """Return in the process that is the command. The server itself ends in here, with the tests."""
    while True:
        line, files, _, _ = socket.recv_fds(requests, 65_536, 4)
        if not line:
            sys.exit()
        while not line.endswith(b"\n"):
            line += requests.recv(65_536)
        request = json.loads(line)
        import_all(USED_BY.get("".join(request["arguments"][:1]), ""))
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those whose command has ended
                pass
        if os.fork() == 0:
            requests.detach()
            fork_command(*files, request=request)
            return
        for file in files:
            os.close(file)


def fork_command(answers: int, *streams: int, request: dict[str, Any]) -> None:
    """Return in the process that is the command. The one that has forked it answers, and ends with it."""
    child = os.fork()
    if child == 0:
        become(streams, **request)
        return
    try:
        for file in streams:
            os.close(file)
        os.write(answers, child.to_bytes(ANSWER_BYTES))
        _, status = os.waitpid(child, 0)
        os.write(answers, os.waitstatus_to_exitcode(status).to_bytes(ANSWER_BYTES, signed=True))
    finally:
        os._exit(0)


def become(streams: Sequence[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Take over what a process has from its start."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # The streams of the server believe that they can be set back, which no terminal and no pipe can.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv[1:] = arguments


def run_command() -> None:
    """End as any Python does, but without taking apart what is shared with the server: to touch all of it would take a
    short command as long again."""
    code = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # what is registered later runs before it
    coverage.process_startup()  # if the environment says so
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
        raise


if __name__ == "__main__":
    import_program()
    wait_for_a_command(socket.socket(fileno=0))
    run_command()
