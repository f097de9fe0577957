"""What the parts of one run share: what was asked of it, whom it tells, and how it stands."""

import secrets
import time
from dataclasses import dataclass, field
from functools import partial

from etl.app.intake import RunRequest
from etl.config.settings import Settings
from etl.config.tokens import Tokens
from etl.errors import FatalError
from etl.pipeline.discovery import OpenWalks
from etl.pipeline.stop import Stop
from etl.store.scope import Scope
from etl.telemetry.events import RunCounts
from etl.telemetry.reporter import Reporter


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the parts of one run share. `token` is that of its leases; `began_at` is on the monotonic clock."""

    order: RunRequest
    settings: Settings
    tokens: Tokens
    reporter: Reporter
    tally: RunCounts
    stop: Stop
    run_id: str = field(default_factory=partial(secrets.token_hex, 16))
    token: str = field(default_factory=partial(secrets.token_hex, 16))
    began_at: float = field(default_factory=time.monotonic)
    halted: dict[int, FatalError] = field(default_factory=dict)
    unwalked: set[int] = field(default_factory=set)
    walks: OpenWalks = field(default_factory=OpenWalks)

    @property
    def scope(self) -> Scope:
        """The part of the queue that it works off."""
        return self.order.scope(self.run_id)
