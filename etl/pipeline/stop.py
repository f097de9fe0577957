"""A request to end a run early, which all its parts look at."""

import asyncio

from etl.telemetry.events import EventSink, Stopping


class Stop:
    """A request to end a run early, by a signal, a budget or an error. The first reason counts, and is emitted at once:
    what the run waits for at that moment may take a while to end."""

    def __init__(self, emit: EventSink = lambda _: None) -> None:
        self._emit = emit
        self.asked = asyncio.Event()
        self.exit_code: int | None = None
        self.reason = ""

    def ask(self, exit_code: int, reason: str) -> None:
        """Ask the run to end with `exit_code`: no new leases, and what is in flight may finish."""
        if not self.asked.is_set():
            self.exit_code, self.reason = exit_code, reason
            self.asked.set()
            self._emit(Stopping(reason))
