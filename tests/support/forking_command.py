"""The command, forked from a process that has imported the program: run by `ForkServer`, imported by nobody.

It takes a line of JSON for each command from the socket at its stdin, with the files for the command's stdin, stdout
and stderr. It answers with two numbers: the process id, and the exit code when the command has ended.
"""

import atexit
import gc
import importlib
import inspect
import json
import os
import socket
import sys

import coverage
from fork_server import ANSWER_BYTES

from etl.__main__ import main

FIRST_USED_LATE = """
etl.cli.main etl.cli.check etl.cli.config etl.cli.db etl.cli.queue etl.cli.run etl.cli.sandbox
encodings.idna psycopg rich.console rich.progress rich.table sqlalchemy.dialects.postgresql.psycopg uvloop
"""
"""What functions of the program and of its libraries import."""


def import_program() -> None:
    for name in FIRST_USED_LATE.split():
        importlib.import_module(name)
    inspect.stack()  # the coverage of each child asks for it, and then knows the files of a thousand modules
    gc.collect()
    gc.freeze()  # a child that looks for garbage copies no page for it


def wait_for_a_command(requests: socket.socket) -> None:
    """Return in the process that is the command. The server itself ends in here, with the tests."""
    while True:
        request, streams, _, _ = socket.recv_fds(requests, 65_536, 3)
        if not request:
            sys.exit()
        while not request.endswith(b"\n"):
            request += requests.recv(65_536)
        child = os.fork()
        if child == 0:
            requests.detach()
            become(streams, **json.loads(request))
            return
        for stream in streams:
            os.close(stream)
        requests.sendall(child.to_bytes(ANSWER_BYTES))
        _, status = os.waitpid(child, 0)
        requests.sendall(os.waitstatus_to_exitcode(status).to_bytes(ANSWER_BYTES, signed=True))


def become(streams: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Take over what a process has from its start."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if os.isatty(1):  # the streams of the server believe that they can be set back, which no terminal can
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
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
