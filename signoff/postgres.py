"""Tortoise's asyncpg backend, with transactions in one round trip.

A transaction whose statements do not touch the same rows is one statement: each of them is a
`WITH` part of it, and a guard that misses divides by zero, which undoes all of it. What does
not fit into that goes statement by statement.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, cast

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.exceptions import IntegrityError

from models.statements import Connection, GuardMissed, Row, Statement, Unavailable
from signoff.pipeline import Pipeline, a_row_or_none, one_row_each

PLACEHOLDER = re.compile(r"\$(\d+)")
GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""What a restart, a cut connection, a black hole, a full server, a deadlock, a pause of ours
within a transaction or a switch to a standby look like."""
POOL_SECONDS = 5
"""For a free connection. Whoever waits longer is behind hundreds of others, or the database is
away: an answer that says so is better than a queue of requests that nobody waits for any more."""
CLOSE_SECONDS = 1
"""For saying good-bye to a server that may be gone."""
OF_THE_POOL = frozenset({"reset", "max_queries", "max_inactive_connection_lifetime"})


LOCK_TIMEOUT = "50ms"
"""How long statements that go together wait for a lock; then each waits by itself."""

BY_INDEX = "; ".join(
    f"SET LOCAL enable_{way} = off"
    for way in ("seqscan", "bitmapscan", "sort", "hashjoin", "mergejoin")
)
"""A plan made while the queue is short is kept when it is long, and must not read all of it."""


class Line:
    """A connection for one purpose, made when it is needed; one at a time uses it."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[Any]:
        """One that did not answer is not used again."""
        with _translated():
            async with self._turn:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                try:
                    yield self._connection
                except (asyncio.CancelledError, *GONE):
                    self.close()
                    raise

    def close(self) -> None:
        if self._connection is not None:
            _drop(self._connection)


class BatchingClient(AsyncpgDBClient):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._closed = False
        self._vital = Line(self._another_connection)
        self._read = Line(self._another_connection)
        self._written = Line(partial(self._another_connection, lock_timeout=LOCK_TIMEOUT))
        self._reads = Pipeline(self._read.held, self._translating, a_row_or_none)
        self._writes = Pipeline(self._written.held, self._translating, one_row_each)

    async def fetch_vital(self, sql: str, *values: Any) -> Sequence[Row]:
        """See `models.statements.Database`; on a connection that nobody else uses."""
        async with self._vital.held() as connection:
            return await connection.fetch(sql, *values)

    async def create_pool(self, **kwargs: Any) -> Any:
        return await self._unless_closed(super().create_pool(**kwargs))

    async def _another_connection(self, **settings: str) -> Any:
        connect = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)
        more = {name: value for name, value in self.extra.items() if name not in OF_THE_POOL}
        opened = connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=self.database,
            server_settings=self.server_settings | settings,
            **more,
        )
        return await self._unless_closed(opened)

    async def _unless_closed(self, opened: Awaitable[Any]) -> Any:
        """A connection, or a pool; raises `InterfaceError` where nobody would close it any more."""
        made = await opened
        if self._closed:
            _drop(made)
            raise asyncpg.InterfaceError("The client is closed.")
        return made

    async def _close(self) -> None:
        self._closed = True
        for line in (self._vital, self._read, self._written):
            line.close()
        pool = cast("Any", self._pool)
        if pool is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await pool.close()
            except TimeoutError:
                pool.terminate()
        self._pool = None

    async def _translate_exceptions(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with _translated():
            return await super()._translate_exceptions(func, *args, **kwargs)

    def acquire_connection(self) -> AbstractAsyncContextManager[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For Tortoise's own queries."""
        return self._acquired()

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """See `models.statements.Database`."""
        async with self._translating() as connection:
            return await connection.fetch(sql, *values)

    async def fetch_row(self, sql: str, *values: Any) -> Row | None:
        """See `models.statements.Database`."""
        return await self._reads.row(sql, values)

    async def execute_batch(self, statements: Sequence[Statement]) -> list[Any]:
        """See `models.statements.Database`."""
        if _are_apart(statements):
            shape = tuple((each.sql, each.guarded, each.returning) for each in statements)
            values = [value for each in statements for value in each.values]
            with suppress(asyncpg.DivisionByZeroError):  # a guard missed: the way below finds which
                row = await self._writes.row(_combined(shape), values)
                told = iter((row or ())[1:])
                return [next(told) if each.returning else None for each in statements]
        return await self._one_by_one(statements)

    async def _one_by_one(self, statements: Sequence[Statement]) -> list[Any]:
        async with self._translating() as connection, _transaction(connection, "BEGIN"):
            return [await _one(connection, index, each) for index, each in enumerate(statements)]

    @asynccontextmanager
    async def exclusive(self, key: int) -> AsyncGenerator[Connection]:
        """See `models.statements.Database`; an advisory lock keeps others out."""
        begin = f"BEGIN; {BY_INDEX}; SELECT pg_advisory_xact_lock({key})"
        async with self._translating() as connection, _transaction(connection, begin):
            yield connection

    @asynccontextmanager
    async def _translating(self) -> AsyncGenerator[Any]:
        with _translated():
            async with self._acquired() as connection:
                yield connection

    @asynccontextmanager
    async def _acquired(self) -> AsyncGenerator[Any]:
        """A connection of one's own; one that did not answer is not used again."""
        async with asyncio.timeout(POOL_SECONDS):
            if self._pool is None:
                async with self._pool_init_lock:
                    if self._pool is None:
                        await self.create_connection(with_db=True)
            pool = cast("Any", self._pool)
            connection = await pool.acquire()
        try:
            yield connection
        except (asyncio.CancelledError, *GONE):
            _drop(connection)
            raise
        finally:
            # A query that was cut off is taken back first, which can take as long as the network.
            with suppress(TimeoutError):
                await pool.release(connection, timeout=CLOSE_SECONDS)


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise IntegrityError(error) from error
    except GONE as error:
        raise Unavailable(str(error) or type(error).__name__) from error


@asynccontextmanager
async def _transaction(connection: Any, begin: str) -> AsyncGenerator[None]:
    """Committed at the end; undone, by cutting the connection unless it is surely well."""
    try:
        await connection.execute(begin)
        yield
        await connection.execute("COMMIT")
    except (GuardMissed, asyncpg.IntegrityConstraintViolationError):
        await connection.execute("ROLLBACK")
        raise
    except BaseException:
        _drop(connection)
        raise


def _drop(connection: Any) -> None:
    """At once: saying good-bye would wait for a server that is not there.

    One that broke in the midst of a query says that it is at work, and must not be used again.
    """
    with suppress(asyncpg.InterfaceError):  # it is out of the pool already
        connection.terminate()


def _are_apart(statements: Sequence[Statement]) -> bool:
    """Whether no two of them can meet in a row: parts of one statement do not see each other."""
    grown: dict[str, bool] = {}
    for each in statements:
        if each.table in grown and not (each.appends and grown[each.table]):
            return False
        grown[each.table] = each.appends
    return True


@lru_cache(maxsize=2000)
def _combined(shape: tuple[tuple[str, bool, bool], ...]) -> str:
    """One statement of many; its first column is there for the guards alone."""
    parts: list[str] = []
    hits = ["1"]
    told: list[str] = []
    offset = 0
    for number, (sql, guarded, returning) in enumerate(shape):
        text, used = _moved(sql, offset)
        offset += used
        back = " RETURNING 1" if guarded else ""
        parts.append(f"w{number} AS ({text}{back})")
        if returning:
            told.append(f"(SELECT * FROM w{number} LIMIT 1)")  # noqa: S608 - numbers
        if guarded:
            hits.append(f"(SELECT count(*) FROM w{number})")  # noqa: S608 - numbers
    columns = ", ".join([f"1 / ({' * '.join(hits)})", *told])
    return f"WITH {', '.join(parts)} SELECT {columns}"


def _moved(sql: str, offset: int) -> tuple[str, int]:
    """The text with its placeholders behind `offset` others, and how many it has."""
    used = max((int(number) for number in PLACEHOLDER.findall(sql)), default=0)
    return PLACEHOLDER.sub(lambda found: f"${int(found[1]) + offset}", sql), used


async def _one(connection: Any, index: int, statement: Statement) -> Any:
    if statement.returning:
        return await connection.fetchval(statement.sql, *statement.values)
    done: str = await connection.execute(statement.sql, *statement.values)
    if statement.guarded and done.rpartition(" ")[2] != "1":
        raise GuardMissed(index)
    return None


client_class = BatchingClient
