"""One run as a whole: what was asked of it, by which settings and tokens, and how it stands."""

import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from etl.config.proxies import Proxy
from etl.config.settings import Settings
from etl.config.tokens import Tokens
from etl.pipeline.run_state import RunRequest, RunState
from etl.store.scope import Scope
from etl.telemetry.condition import Condition
from etl.telemetry.reporter import Reporter


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run. `token` is that of its leases; `began_at` is on the monotonic clock, `started_at` on the wall's."""

    request: RunRequest
    settings: Settings
    tokens: Tokens
    reporter: Reporter
    state: RunState
    proxy: Proxy | None = None
    condition: Condition = field(default_factory=Condition)
    run_id: str = field(default_factory=partial(secrets.token_hex, 16))
    token: str = field(default_factory=partial(secrets.token_hex, 16))
    began_at: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=partial(datetime.now, UTC))

    @property
    def scope(self) -> Scope:
        """The part of the queue that it works off."""
        return Scope(self.run_id if self.request.files else None, leaves_files=self.request.discovers)
