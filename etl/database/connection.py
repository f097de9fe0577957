"""The thread that owns the connection, and the version of the schema that it finds."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import stamina
from sqlalchemy import Connection, exc, func, inspect, select, text

from etl.database.engine import first_line, is_worth_another_try, make_engine, snapshot, translated
from etl.database.schema import HEAD
from etl.errors import DatabaseAwayError, DatabaseError, SchemaBehindError

T = TypeVar("T")

UPGRADE_TIMEOUT_SECONDS = 3_600
"""How long an upgrade of MySQL or MariaDB waits for another one to end."""


class Database:
    """One thread that owns the connection: `run(work)` calls `work(connection)` there, in a transaction.

    One writer is what SQLite wants, and elsewhere it keeps the order of lease and settle plain. `work` is called
    again when the database ends its transaction in favour of another one: what it does is in its connection alone.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, committed. A caller that is cancelled waits for the commit all the same."""
        return await _ended(self._thread.submit(self.run_here, work))

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Run `work` on the database's thread. For work of several transactions, which calls `run_here`."""
        return await _ended(self._thread.submit(work))

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """The same on the calling thread, for commands that do one thing."""
        try:
            with translated(self.url):
                for attempt in _attempts():
                    with attempt, self._transaction() as connection:
                        return work(connection)
        except DatabaseAwayError as error:
            self.engine.dispose()  # whoever tries again gets a new connection
            if error.most_failures < math.inf and not self._answers():
                error.most_failures = math.inf
            raise
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """The data as it is now, to be read on the calling thread, for however long; see `engine.snapshot`."""
        with translated(self.url), snapshot(self.engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        failure: exc.DBAPIError | None = None
        try:
            with self.engine.begin() as connection:
                try:
                    yield connection
                except exc.DBAPIError as error:
                    failure = error
                    raise
        except exc.DBAPIError as error:
            # Where the connection ends with a statement, the rollback fails too, and would hide why.
            raise failure or error from error.orig

    def _answers(self) -> bool:
        """Whether the database is there at all."""
        try:
            with self.engine.connect() as connection:
                connection.execute(select(1))
        except exc.SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """End the thread and the connection."""
        self._thread.shutdown()
        self.engine.dispose()


async def _ended(work: Future[T]) -> T:
    """The result of work on a thread. Whoever is cancelled waits for its end all the same."""
    task = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise


def _attempts() -> Iterable[stamina.Attempt]:
    """Tries of one transaction. Neither counted nor logged: they are the ordinary price of many workers."""
    return stamina.retry_context(is_worth_another_try, attempts=5, timeout=None, wait_initial=0.05, wait_max=1.0)


# The schema's version


def check_schema(connection: Connection) -> None:
    """Raise DatabaseError, with the fix, if this version can't work with the database's schema; SchemaBehindError where
    an upgrade of the schema is the fix."""
    found = revision(connection)
    if found is None:
        raise SchemaBehindError("the database has no tables of scan-etl yet: run `scan-etl db upgrade`")
    if found < HEAD:
        raise SchemaBehindError(f"the schema is at {found}, this version needs {HEAD}: run `scan-etl db upgrade`")
    if found > HEAD:
        raise DatabaseError(f"the schema is at {found}, newer than this version knows ({HEAD}): upgrade scan-etl")


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None if no migration has run."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@contextlib.contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Of twelve runs of four concurrent upgrades of an empty PostgreSQL database one died without it."""
    if connection.dialect.name != "mysql":
        take_turn(connection)
        yield
        return
    # The names of locks are the whole server's, and end after 64 characters. A lock ends with its connection.
    lock = func.concat("scan-etl ", func.left(func.sha2(func.database(), 256), 40))
    if not connection.execute(select(func.get_lock(lock, UPGRADE_TIMEOUT_SECONDS))).scalar():
        raise DatabaseError("another upgrade of this database is still going on: try again when it has ended")
    try:
        yield
    except exc.DBAPIError as error:
        raise DatabaseError(f"{first_line(error, connection.engine.url)}; {_HALF_DONE}") from error


def take_turn(connection: Connection) -> None:
    """Wait for other upgrades, at the start of each transaction of one.

    On PostgreSQL the connection may be a pool's, where a lock must end with its transaction. SQLite has one writer; on
    MySQL and MariaDB the lock is the connection's.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7233620170402)"))


_HALF_DONE = (
    "MySQL and MariaDB can't take back a migration that fails midway, so the schema may now be between two revisions, "
    "and remain there. Restore the backup; or undo what the last migration did (`scan-etl db sql` shows all "
    "statements; a new database needs its tables and views dropped). Then run `scan-etl db upgrade` again"
)
