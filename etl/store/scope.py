"""Which rows of the queue a run works off: those of its files, or the whole queue, or what no run of files at work has.

Whose a row is changes while a run goes on: other runs begin, and end or are killed. So it is asked anew each time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection

from etl.model import Lease
from etl.store import enqueue, queue
from etl.store.queue import FILE_PRIORITY, Remaining
from etl.store.runs import at_work

LOOK_AGAIN_SECONDS = 1.0
"""How often a run looks whether another one is done with a pair that both have been given."""


class _Part(NamedTuple):
    """A stretch of the queue, as `queue.lease` and `queue.left` have it."""

    batch: str | None = None
    below: int | None = None
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of the queue that is a run's: a batch, or all of it. One that `leaves_files` leaves the batches of runs
    that are at work to them, but for the pairs that somebody else wants, too, whose priority is better."""

    batch: str | None = None
    leaves_files: bool = False

    def lease(
        self, connection: Connection, token: str, limit: int, lease_seconds: float, *, without: Collection[int] = ()
    ) -> list[Lease]:
        """Take up to `limit` ready pairs; see `queue.lease`. Where none of its own is left, a run takes over what it
        shares with others that are no longer at work."""
        taken = self._lease(connection, token, limit, lease_seconds, without)
        if not taken and self.batch and enqueue.take_over(connection, self.batch):
            taken = self._lease(connection, token, limit, lease_seconds, without)
        return taken

    def _lease(
        self, connection: Connection, token: str, limit: int, lease_seconds: float, without: Collection[int]
    ) -> list[Lease]:
        taken: list[Lease] = []
        for part in self._parts(connection):
            lease = partial(queue.lease, connection, token, limit - len(taken), lease_seconds)
            taken += lease(batch=part.batch, below=part.below, without=without)
        return taken

    def next_due_seconds(
        self, connection: Connection, without: Collection[int] = (), ours: str | None = None
    ) -> float | None:
        """Seconds until work is due again, of all deployments but those `without`; None if none will come back. `ours`
        is the token of leases that nobody but the run itself can wait for."""
        found = [one.next_due_seconds for one in self._left(connection, without, ours)]
        if self.batch and enqueue.awaits(connection, self.batch, without):
            found.append(LOOK_AGAIN_SECONDS)
        return min((seconds for seconds in found if seconds is not None), default=None)

    def left(self, connection: Connection) -> Remaining:
        """What is left to do, shared pairs among it."""
        found = self._left(connection, ())
        shared = enqueue.shared_left(connection, self.batch) if self.batch else (0, 0)
        return Remaining(
            sum(one.remaining for one in found) + shared[0],
            sum(one.waiting for one in found) + shared[1],
            min((one.next_due_seconds for one in found if one.next_due_seconds is not None), default=None),
            sum(one.leased for one in found) + shared[0],
            sum(one.retrying for one in found),
        )

    def _left(self, connection: Connection, without: Collection[int], ours: str | None = None) -> list[Remaining]:
        return [
            queue.left(connection, part.batch, without, below=part.below, least=part.least, ours=ours)
            for part in self._parts(connection)
        ]

    def _parts(self, connection: Connection) -> list[_Part]:
        """What `below` leaves out of a batch that nobody is at work on is a part of its own."""
        if not self.leaves_files:
            return [_Part(self.batch)]
        batches = queue.batches_of(connection)
        kept = at_work(connection, batches)
        if not kept:
            return [_Part()]
        left_behind = [_Part(batch, least=FILE_PRIORITY) for batch in sorted(batches - kept)]
        return [_Part(below=FILE_PRIORITY), *left_behind]
