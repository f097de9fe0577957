"""The walks of one run: which deployments have a list, and what ends them."""

import asyncio
from functools import partial

from etl.app.adapters import DiscoverPorts, PatientDatabase
from etl.app.context import RunContext
from etl.app.privacy import privacy_of
from etl.backoff import LONGEST_SNOOZE
from etl.errors import TOKEN_EXIT, FatalError, StoppedError
from etl.model import NO_DEPLOYMENT
from etl.pipeline.discovery import Search, discover
from etl.semgrep.client import Semgrep
from etl.store import rate_slots, watermarks
from etl.telemetry.events import TokenUseless

WALK_GRACE_SECONDS = 5.0
"""How long a page that is being read may take after a stop."""


async def expect_walks(this: RunContext, patient: PatientDatabase) -> None:
    """Note whose lists will be walked, as far as that is known before the API is asked."""
    this.walks.of.update({NO_DEPLOYMENT, *_named(this)})
    token = this.tokens.for_deployment(NO_DEPLOYMENT)
    if token is not None and not this.settings.discover.deployments:
        this.walks.of.update(await patient.run(partial(watermarks.seen_by, token_key=rate_slots.key_of(token))))


def _named(this: RunContext) -> set[int]:
    """The deployments that the settings name, or else the tokens."""
    return set(this.settings.discover.deployments or this.tokens.deployment_ids)


async def walk_all(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists, until a stop is asked for."""
    this.unwalked.add(NO_DEPLOYMENT)  # for it isn't known yet which there are
    walking = asyncio.create_task(_walk(this, semgrep, patient))
    stopping = asyncio.create_task(this.stop.asked.wait())
    try:
        await asyncio.wait({walking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not walking.done():
            semgrep.stop_sending()
            await asyncio.wait({walking}, timeout=WALK_GRACE_SECONDS)
    finally:
        # Whoever cancels this one waits for both.
        walking.cancel()
        stopping.cancel()
        await asyncio.wait({walking, stopping})
        this.walks.end()
    if not walking.cancelled():
        walking.result()


async def _walk(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> None:
    """Walk the lists of the deployments that the settings or the tokens name, and of the one that the token for all
    others sees."""
    named = _named(this)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_walk_lists(this, semgrep, patient, named))
        if this.settings.discover.deployments or this.tokens.for_deployment(NO_DEPLOYMENT) is None:
            this.unwalked.discard(NO_DEPLOYMENT)
        else:
            await _walk_unnamed(this, semgrep, patient, named)


async def _walk_unnamed(this: RunContext, semgrep: Semgrep, patient: PatientDatabase, named: set[int]) -> None:
    """Walk the list of the deployment that the token without a name sees, unless it is named, too."""
    try:
        seen = await _seen(this, semgrep, patient)
    except StoppedError:
        return
    except FatalError as error:
        this.halted[NO_DEPLOYMENT] = error
        this.reporter.emit(TokenUseless(str(error)))
        return
    this.unwalked.discard(NO_DEPLOYMENT)
    await _walk_lists(this, semgrep, patient, seen - named)


async def _walk_lists(this: RunContext, semgrep: Semgrep, patient: PatientDatabase, deployments: set[int]) -> None:
    this.unwalked.update(deployments)
    this.walks.of.update(deployments)
    ports = DiscoverPorts(
        patient, semgrep, this.settings, this.tokens, this.run_id, this.walks, refresh=this.order.refresh
    )
    left = await discover(ports, deployments, _search(this), this.stop, this.halted, this.tally, this.reporter.emit)
    this.unwalked.difference_update(deployments - left)


async def _seen(this: RunContext, semgrep: Semgrep, patient: PatientDatabase) -> set[int]:
    """What the token without a deployment's name sees. That never changes, so it is asked only the first time."""
    token = this.tokens.for_deployment(NO_DEPLOYMENT) or ""
    known = await patient.run(partial(watermarks.seen_by, token_key=rate_slots.key_of(token)))
    seen = known or await semgrep.seen_by_token_of(NO_DEPLOYMENT, patiently=True)
    if not seen and not this.tokens.deployment_ids:
        raise FatalError(
            "the API doesn't say which deployment the token may see: name it in [discover] deployments",
            kind="no_deployment",
            stop_code=TOKEN_EXIT,
        )
    return set(seen)


def _search(this: RunContext) -> Search:
    settings = this.settings
    return Search(
        lookback_seconds=settings.discover.lookback_seconds,
        since=this.order.since,
        look_seconds=settings.queue.snooze_seconds * LONGEST_SNOOZE,
        max_attempts=settings.queue.max_attempts,
        backoff_seconds=settings.queue.backoff_seconds,
        backoff_max_seconds=settings.queue.backoff_max_seconds,
        privacy=privacy_of(settings),
    )
