"""Who is told how a run has ended, and of what: a bad end, lost scans, new drift; each once."""

import asyncio
from contextlib import closing, suppress
from functools import partial

from etl.app.context import RunContext
from etl.app.intake import open_database
from etl.database.engine import display_url
from etl.errors import DEAD_EXIT, DatabaseError
from etl.store import notices
from etl.store.notices import Known
from etl.telemetry.events import NotifyFailed
from etl.telemetry.notice import post, run_program

ASKED_FOR = frozenset({130, 143})
"""The exit codes of a run that somebody has stopped: they know."""


async def tell_of_end(this: RunContext, exit_code: int, reason: str | None) -> None:
    """Tell whom the settings name, if there is news. Where the database can't say what was told, all of it is."""
    if not (this.settings.notify.url or this.settings.notify.command):
        return
    if exit_code == DEAD_EXIT:
        reason = f"{this.state.counts.dead:,} dead letters, see `scan-etl failures list`"
    ended = f"scan-etl {this.request.command} ended with exit code {exit_code}: {reason}"
    try:
        with closing(await asyncio.to_thread(open_database, this.settings.database.url, create=False)) as database:
            now = await database.run(notices.known)
            before, code_before = await database.run(partial(notices.told, command=this.request.command))
            is_bad = exit_code not in (0, code_before, *ASKED_FOR)
            if await _is_told(this, [ended] * is_bad + news(before, now)):
                with suppress(DatabaseError):
                    await database.run(partial(notices.remember, run_id=this.run_id, now=now, exit_code=exit_code))
    except DatabaseError:
        await _is_told(this, [ended] * (exit_code not in (0, *ASKED_FOR)))


def news(before: Known, now: Known) -> list[str]:
    """A sentence for each count that has risen."""
    gaps, expired, drift = (each - known for each, known in zip(now, before, strict=True))
    sentences = (
        (gaps, f"{gaps:,} new gaps in the list of scans: these are lost, see `scan-etl status`"),
        (
            expired,
            f"{expired:,} more scans expired before they were fetched, see `scan-etl failures list --kind expired`",
        ),
        (drift, f"{drift:,} new differences between what is documented and what the API sends, see `scan-etl drift`"),
    )
    return [sentence for count, sentence in sentences if count > 0]


async def _is_told(this: RunContext, sentences: list[str]) -> bool:
    """Whether nothing is left to be told."""
    if not sentences:
        return True
    notify, where = this.settings.notify, display_url(this.settings.database.url)
    text = "\n".join([*sentences, f"(run {this.run_id} into {where})"])
    tells = [(post, notify.url), (run_program, notify.command)]
    problems = [await asyncio.to_thread(tell, target, text) for tell, target in tells if target]
    for problem in filter(None, problems):
        this.state.emit(NotifyFailed(problem))
    return not any(problems)
