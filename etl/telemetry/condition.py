"""Whether a run works or waits, by its events: what a probe is told."""

from etl.telemetry.events import DatabaseAway, DatabaseBack, Event, RunStarted, Stopping


class Condition:
    """How a run stands. `waits_for` is why it can't work, as a sentence; None while it can."""

    def __init__(self) -> None:
        self.waits_for: str | None = "starting"

    def see(self, event: Event) -> None:
        """Take note of what an event means."""
        match event:
            case RunStarted() | DatabaseBack():
                self.waits_for = None
            case DatabaseAway(reason=reason):
                self.waits_for = f"the database is unavailable: {reason}"
            case Stopping(reason=reason):
                self.waits_for = f"stopping: {reason}"
            case _:
                pass
