"""What becomes of a pair, by what came of its request: stored, looked at again, retried, or a dead letter. Pure."""

from datetime import datetime

from msgspec.structs import replace

from etl.backoff import backoff_seconds, later_night_seconds, look_again_seconds
from etl.config.settings import QueueSettings
from etl.errors import ItemError, RefusedError, TransientError
from etl.model import Complete, Discard, Lease, Outcome, Retry, ScanRows, Snooze, retention_end

REFUSALS = frozenset({401, 403})
"""A scan that is refused with these, though the token is good, may be shown another day: rights are given and taken."""
REFUSED_TEXT = "the database refuses this error's text"


def after_failure(lease: Lease, error: TransientError, queue: QueueSettings) -> Retry | Discard:
    """Retry a failed pair later, or give it up for tonight after its last attempt: one that is back from the dead has
    one a night. What isn't the pair's fault is free."""
    attempts = lease.attempts + error.spends_attempt
    if error.spends_attempt and attempts >= queue.max_attempts:
        again = later_night_seconds(attempts - queue.max_attempts + 1)
        return Discard(lease.pair, attempts, error.kind, str(error), error.http_status, again)
    delay = backoff_seconds(max(attempts, 1), queue.backoff_seconds, queue.backoff_max_seconds)
    delay = max(delay, min(error.retry_after_seconds or 0, queue.backoff_max_seconds))
    return Retry(lease.pair, delay, attempts, error.kind, str(error))


def after_refusal(lease: Lease, error: ItemError) -> Discard:
    """Give up a pair that won't succeed; for good, unless it was refused."""
    attempts = lease.attempts + 1
    again = later_night_seconds(attempts) if error.http_status in REFUSALS else None
    return Discard(lease.pair, attempts, error.kind, str(error), error.http_status, again)


def after_refused_row(outcome: Outcome, lease: Lease | None, error: RefusedError) -> Retry | Discard:
    """Give up a pair whose rows the database refuses. One that had no rows to write keeps its fate, without the reason,
    which is what it refuses. Raises `error` when it refuses all that can be said of a pair, for then the pair isn't to
    blame."""
    if isinstance(outcome, Retry | Discard) and outcome.error != REFUSED_TEXT:
        return replace(outcome, error=REFUSED_TEXT)
    if isinstance(outcome, Discard) or lease is None:
        raise error
    return Discard(lease.pair, lease.attempts + 1, "refused_row", str(error), None)


def after_nonsense(lease: Lease) -> Discard:
    """Give up a pair that names no scan. Files hold none, but any program may queue pairs."""
    return Discard(lease.pair, lease.attempts + 1, "no_scan", "it names no scan: both ids have to be 1 or more", None)


def after_unfinished(lease: Lease, rows: ScanRows, queue: QueueSettings, now: datetime) -> Snooze | Complete:
    """Look at a running scan again after half its age, within bounds; one that has expired is left as it is."""
    started_at = rows.scan["started_at"]
    # Of a pair that was queued without an expiry the lease only knows that it can't be later.
    expires_at = min(lease.expires_at, retention_end(started_at)) if started_at else lease.expires_at
    if now >= expires_at:
        return Complete(rows)
    age_seconds = (now - started_at).total_seconds() if started_at else 0.0
    return Snooze(rows, look_again_seconds(age_seconds, queue.snooze_seconds), expires_at)
