"""Tortoise's SQLite backend, with a second connection that the event loop uses itself.

Pages and searches go to Tortoise's thread. A write of a few rows and a read by key take less
time than the two hand-overs of Python's lock that a trip to a thread costs, so these run where
they are asked for; batches that come in the same turn of the loop share one commit. No such
step waits for anything: a lock that another process holds is asked for again later, and what
makes a commit wait for the disk, the checkpoint, runs in a thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar

import structlog
from tortoise.backends.base.client import TransactionContext
from tortoise.backends.sqlite.client import (
    SqliteClient,
    SqliteTransactionContext,
    SqliteTransactionWrapper,
)
from tortoise.exceptions import IntegrityError, TransactionManagementError

from models.statements import (
    Connection,
    GuardMissed,
    Row,
    Statement,
    Unavailable,
    numbered,
)
from signoff.pipeline import Asked

T = TypeVar("T")

logger = structlog.get_logger(__name__)

BUSY_SECONDS = 5.0
"""How long a lock that another process holds is waited for."""
BUSY_PAUSE = 0.005
MAX_BATCHES = 64
"""In one transaction; the loop has other things to do as well."""
CHECKPOINT_COMMITS = 500
"""Some megabytes of log; SQLite's own measure is 1000 pages."""


class ImmediateTransaction(SqliteTransactionWrapper):
    """Takes the write lock at once: a deferred one is refused whatever the busy timeout."""

    async def begin(self) -> None:
        try:
            await self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise TransactionManagementError(error) from error


class DirectClient(SqliteClient):
    def __init__(self, file_path: str, **given: Any) -> None:
        super().__init__(file_path, **given)
        self._direct: sqlite3.Connection | None = None
        self._waiting: list[_Batch] = []
        self._commits = 0
        self._checkpoint: asyncio.Task[None] | None = None

    def _in_transaction(self) -> TransactionContext:
        return SqliteTransactionContext(ImmediateTransaction(self), self._lock)

    async def close(self) -> None:
        if self._checkpoint is not None:
            await self._checkpoint
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        await super().close()

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """See `models.statements.Database`."""

        def read(connection: sqlite3.Connection) -> Sequence[Row]:
            return connection.execute(numbered(sql), values).fetchall()

        return await self._when_free(read)

    async def fetch_row(self, sql: str, *values: Any) -> Row | None:
        """See `models.statements.Database`."""
        rows = await self.fetch(sql, *values)
        return rows[0] if rows else None

    async def fetch_vital(self, sql: str, *values: Any) -> Sequence[Row]:
        """See `models.statements.Database`; nothing on this thread waits for anything else."""
        return await self.fetch(sql, *values)

    async def execute_batch(self, statements: Sequence[Statement]) -> list[Any]:
        """See `models.statements.Database`."""
        loop = asyncio.get_running_loop()
        batch = _Batch(statements, loop.create_future(), loop.time() + BUSY_SECONDS)
        self._waiting.append(batch)
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return await batch.done

    def _flush(self) -> None:
        """Write what waits, in one transaction; each batch of it stands or falls by itself."""
        loop = asyncio.get_running_loop()
        batches = self._waiting[:MAX_BATCHES]
        try:
            with _translated(), _transaction(self._connected()) as connection:
                results = [_apart(connection, batch.what) for batch in batches]
        except _Busy as error:
            self._give_up(loop.time(), error)
            if self._waiting:
                loop.call_later(BUSY_PAUSE, self._flush)
            return
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            results = [error] * len(batches)
        del self._waiting[: len(batches)]
        for batch, result in zip(batches, results, strict=True):
            batch.settle(result)
        if self._waiting:
            loop.call_soon(self._flush)
        self._committed()

    def _give_up(self, now: float, error: Exception) -> None:
        """Refuse what has waited too long."""
        for batch in self._waiting:
            if batch.deadline <= now:
                batch.settle(Unavailable(str(error)))
        self._waiting = [batch for batch in self._waiting if not batch.done.done()]

    @asynccontextmanager
    async def exclusive(self, key: int) -> AsyncGenerator[Connection]:
        """See `models.statements.Database`; the write lock keeps others out."""
        await self._when_free(lambda connection: connection.execute("BEGIN IMMEDIATE"))
        connection = self._connected()
        try:
            with _translated():
                yield _Open(connection)
                connection.commit()
        except BaseException:
            connection.rollback()
            raise
        self._committed()

    def _connected(self) -> sqlite3.Connection:
        if self._direct is None:
            self._direct = sqlite3.connect(
                self.filename, isolation_level=None, timeout=0, cached_statements=512
            )
            for pragma, value in self.pragmas.items():
                if pragma != "busy_timeout":
                    self._direct.execute(f"PRAGMA {pragma}={value}")
            self._direct.execute("PRAGMA wal_autocheckpoint=0")
        return self._direct

    async def _when_free(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """What `step` makes, tried again while another process holds the lock."""
        pause, waited = 0.001, 0.0
        while True:
            try:
                with _translated():
                    return step(self._connected())
            except _Busy as error:
                if waited >= BUSY_SECONDS:
                    raise Unavailable(str(error)) from error
            await asyncio.sleep(pause)
            waited += pause
            pause = min(pause * 2, 0.05)

    def _committed(self) -> None:
        self._commits += 1
        idle = self._checkpoint is None or self._checkpoint.done()
        if self._commits >= CHECKPOINT_COMMITS and idle:
            self._commits = 0
            self._checkpoint = asyncio.create_task(self._move_to_file())

    async def _move_to_file(self) -> None:
        try:
            await asyncio.to_thread(_checkpoint, str(self.filename))
        except sqlite3.Error:
            logger.exception("the checkpoint failed; trying again later")


class _Batch(Asked[Sequence[Statement], list[Any]]):
    """The statements of a transaction and what they return."""

    __slots__ = ()


class _Busy(Exception):
    """Another process holds the lock."""


class _Open:
    """A transaction under way."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        return self._connection.execute(numbered(sql), values).fetchall()


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise IntegrityError(error) from error
    except sqlite3.OperationalError as error:
        if _is_of_statement(error):
            raise
        busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        raise (_Busy if busy else Unavailable)(str(error)) from error


def _is_of_statement(error: sqlite3.OperationalError) -> bool:
    """Whether trying again cannot help, such as for a table that is not there."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_ERROR


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _apart(
    connection: sqlite3.Connection, statements: Sequence[Statement]
) -> list[Any] | Exception:
    """What the statements returned; if one is refused, why, and none of them is written."""
    connection.execute("SAVEPOINT batch")
    try:
        results = [_one(connection, index, each) for index, each in enumerate(statements)]
    except Exception as error:
        if isinstance(error, sqlite3.OperationalError) and not _is_of_statement(error):
            raise  # it is of the database, not of this batch
        connection.execute("ROLLBACK TO batch")
        connection.execute("RELEASE batch")
        return IntegrityError(error) if isinstance(error, sqlite3.IntegrityError) else error
    connection.execute("RELEASE batch")
    return results


def _one(connection: sqlite3.Connection, index: int, statement: Statement) -> Any:
    cursor = connection.execute(numbered(statement.sql), statement.values)
    if statement.guarded and cursor.rowcount != 1:
        raise GuardMissed(index)
    row = cursor.fetchone() if statement.returning else None
    return row[0] if row else None


def _checkpoint(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


client_class = DirectClient
