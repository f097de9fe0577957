"""What the parts of one run share: what was asked of it, whom it tells, and how it stands."""

import secrets
import time
from dataclasses import dataclass, field
from functools import partial

from etl.config import Settings
from etl.discover import OpenWalks
from etl.errors import FatalError
from etl.events import Tally
from etl.intake import Order
from etl.observe import Reporter
from etl.scope import Scope
from etl.stop import Stop
from etl.tokens import Tokens


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the parts of one run share. `token` is that of its leases; `began_at` is on the monotonic clock."""

    order: Order
    settings: Settings
    tokens: Tokens
    reporter: Reporter
    tally: Tally
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
