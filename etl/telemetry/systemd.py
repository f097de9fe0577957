"""What systemd is told of a service with `Type=notify`: a datagram to the socket that it names.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html has the words.
"""

import asyncio
import os
import socket
from contextlib import suppress

from etl.telemetry.events import DatabaseAway, DatabaseBack, Event, RunStarted, Stopping

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def notify(*states: str) -> None:
    """Tell systemd, if it has started us. That nobody listens is no reason to end."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
        to_systemd.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        to_systemd.send("\n".join(states).encode())


def tell(event: Event) -> None:
    """What an event means for the service. A worker that waits for its database is up, as well as one that works."""
    match event:
        case RunStarted() | DatabaseBack():
            notify(READY, "STATUS=at work")
        case DatabaseAway():
            notify(READY, "STATUS=waiting for the database")
        case Stopping(reason=reason):
            notify(STOPPING, f"STATUS=stopping: {reason}")
        case _:
            pass


async def keep_saying_alive() -> None:
    """Say that the event loop turns, if systemd watches this process, until cancelled."""
    if (seconds := watchdog_seconds()) is None:
        return
    while True:
        notify(ALIVE)
        await asyncio.sleep(seconds)


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear that this process lives; None if it doesn't. Half as long is asked for."""
    microseconds, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    is_ours = whose in (None, str(os.getpid()))
    return int(microseconds) / 2_000_000 if is_ours and microseconds.isdecimal() else None
