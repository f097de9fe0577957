"""The client of the API under test, on a server of the test's own, quick enough for tests."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from memory_budget import MemoryBudget

from etl.config.proxies import proxy_for
from etl.config.settings import ApiSettings
from etl.config.tokens import load_tokens
from etl.semgrep.client import Semgrep
from etl.telemetry.events import Event, RunCounts

TOKEN = "s3cret-token"


@dataclass(slots=True)
class Asking:
    """A client, what it has counted and told, and the line of time of each token."""

    semgrep: Semgrep
    counts: RunCounts
    events: list[Event]
    rate_slots: dict[str, MemoryBudget] = field(default_factory=dict)


@asynccontextmanager
async def asking_at(
    base_url: str,
    tokens: Mapping[str, str] | None = None,
    *,
    gives_up: bool = True,
    environ: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Asking]:
    """A client of `base_url`. `tokens` are environment variables, `environ` has those of proxies; `settings` are those
    of `[api]`.

    It doesn't retry in place unless told so, so that a test sees each failure.
    """
    counts, events, rate_slots = RunCounts(), list[Event](), dict[str, MemoryBudget]()
    numbers = {"rate": 1_000.0, "retries": 0, "timeout_seconds": 30.0, "max_wait_seconds": 30.0} | settings
    semgrep = Semgrep(
        ApiSettings(base_url=base_url, **numbers),
        load_tokens(tokens or {"SEMGREP_APP_TOKEN": TOKEN}),
        lambda token: rate_slots.setdefault(token, MemoryBudget()),
        counts,
        events.append,
        proxy=proxy_for(base_url, environ or {}),
        gives_up=gives_up,
    )
    async with semgrep:
        yield Asking(semgrep, counts, events, rate_slots)
