"""Errors, grouped by what the caller must do about them.

    ScanEtlError
    ├── ConfigError      nothing has started: fix the settings or the arguments
    ├── DatabaseError    the database can't be worked with, e.g. its schema isn't at head: fix it, run again
    │   ├── DatabaseAwayError    it may be back in a while
    │   ├── SchemaBehindError    an upgrade of its schema is the fix
    │   └── RefusedError         it refuses this work: where rows are written, one of them is a dead letter
    ├── TransientError   the same request may succeed later
    ├── ItemError        this pair will never succeed as it is: a dead letter
    ├── FatalError       stop a deployment; whatever is queued stays queued
    └── StoppedError     a stop was asked for: the work in hand goes back to the queue

Anything else that reaches the top is a bug and shows its traceback.
"""

import math
from typing import ClassVar

MESSAGE_CHARACTERS = 1_000


DEAD_EXIT, TOKEN_EXIT, UNAVAILABLE_EXIT, BUG_EXIT = 1, 3, 4, 70
"""The exit codes of a run with dead letters, of one that no token or an unavailable API has stopped, and of a bug."""


class ScanEtlError(Exception):
    """Base of all errors that are told to the user in one sentence."""

    exit_code: ClassVar[int] = BUG_EXIT


class ConfigError(ScanEtlError):
    """A setting, an argument or an input file is wrong. The message names it and the fix."""

    exit_code = 2


class DatabaseError(ScanEtlError):
    """The database can't be reached, or its schema isn't the one this version works with."""

    exit_code = 5


class DatabaseAwayError(DatabaseError):
    """The connection is lost or refused, or the database is busy: the same work may succeed later.

    After `most_failures` in a row of the same work, while the database answers, the work is to blame.
    """

    def __init__(self, message: str, most_failures: float = math.inf) -> None:
        super().__init__(message)
        self.most_failures = most_failures


class SchemaBehindError(DatabaseError):
    """The schema isn't there yet, or is older than the one this version works with: an upgrade is the fix."""


class RefusedError(DatabaseError):
    """The database refuses this work, which is no better the next time; it may take other rows."""


class ApiError(ScanEtlError):
    """Something is wrong with one request. `kind` is a short word for filters, e.g. `timeout`.

    Its message may quote anybody, and goes into logs and rows: it is one line of printable characters.
    """

    def __init__(self, message: str, *, kind: str, http_status: int | None = None) -> None:
        super().__init__(printable(message, MESSAGE_CHARACTERS))
        self.kind = kind
        self.http_status = http_status


class TransientError(ApiError):
    """Try again later. `retry_after_seconds` is what the server asked for, None if it didn't ask.

    `spends_attempt` is False where the pair isn't to blame (429): then no attempt is counted.
    """

    exit_code = UNAVAILABLE_EXIT

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        http_status: int | None = None,
        retry_after_seconds: float | None = None,
        spends_attempt: bool = True,
    ) -> None:
        super().__init__(message, kind=kind, http_status=http_status)
        self.retry_after_seconds = retry_after_seconds
        self.spends_attempt = spends_attempt


class ItemError(ApiError):
    """This pair can't be loaded: it becomes a dead letter with this message."""


class FatalError(ApiError):
    """Stop asking about a deployment, and leave its part of the queue as it is. Other deployments go on.

    `stop_code` is the exit code of the process: 3 for the token, 4 for an API that is gone.
    """

    def __init__(self, message: str, *, kind: str, stop_code: int, http_status: int | None = None) -> None:
        super().__init__(message, kind=kind, http_status=http_status)
        self.stop_code = stop_code


class StoppedError(ScanEtlError):
    """The run is stopping: the work in hand goes back to the queue as it was."""


def exit_code_of(error: ScanEtlError) -> int:
    """The exit code of a process that this error has ended."""
    return error.stop_code if isinstance(error, FatalError) else error.exit_code


def printable(text: str, most_characters: int) -> str:
    """A text of anybody as one line that every terminal, file and database takes, cut to its beginning."""
    line = " ".join(text.split())[:most_characters]
    return "".join(character if character.isprintable() else "?" for character in line)


def foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of the errors of several tasks the first of ours; if none is, the first."""
    error = (group.subgroup(ScanEtlError) or group).exceptions[0]
    return foremost(error) if isinstance(error, BaseExceptionGroup) else error
