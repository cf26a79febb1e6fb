"""Tortoise's asyncpg backend, with transactions in one round trip.

A transaction whose statements do not touch the same rows is one statement: each of them is a
`WITH` part of it, and a guard that misses divides by zero, which undoes all of it. What does
not fit into that goes statement by statement.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any, cast

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.exceptions import IntegrityError

from models.statements import Connection, GuardMissed, Row, Statement, Unavailable

PLACEHOLDER = re.compile(r"\$(\d+)")
GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""What a restart, a cut connection, a black hole or a full server look like."""


class BatchingClient(AsyncpgDBClient):
    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """See `models.statements.Database`."""
        with _translated():
            async with self._acquired() as connection:
                return await connection.fetch(sql, *values)

    async def execute_batch(self, statements: Sequence[Statement]) -> list[Any]:
        """See `models.statements.Database`."""
        with _translated():
            async with self._acquired() as connection:
                if _are_apart(statements):
                    try:
                        return await _at_once(connection, statements)
                    except asyncpg.DivisionByZeroError:
                        pass  # a guard missed; the way below finds out which
                async with connection.transaction():
                    return [
                        await _one(connection, index, each) for index, each in enumerate(statements)
                    ]

    @asynccontextmanager
    async def exclusive(self, key: int) -> AsyncGenerator[Connection]:
        """See `models.statements.Database`; an advisory lock keeps others out."""
        with _translated():
            async with self._acquired() as connection:
                await connection.execute(f"BEGIN; SELECT pg_advisory_xact_lock({key})")
                try:
                    yield connection
                    await connection.execute("COMMIT")
                except BaseException:
                    if not connection.is_closed():
                        await connection.execute("ROLLBACK")
                    raise

    @asynccontextmanager
    async def _acquired(self) -> AsyncGenerator[Any]:
        if self._pool is None:
            await self.create_connection(with_db=True)
        pool = cast("Any", self._pool)
        connection = await pool.acquire()
        try:
            yield connection
        finally:
            await pool.release(connection)


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise IntegrityError(error) from error
    except GONE as error:
        raise Unavailable(str(error) or type(error).__name__) from error


def _are_apart(statements: Sequence[Statement]) -> bool:
    """Whether no two of them can meet in a row: parts of one statement do not see each other."""
    grown: dict[str, bool] = {}
    for each in statements:
        if each.table in grown and not (each.appends and grown[each.table]):
            return False
        grown[each.table] = each.appends
    return True


async def _at_once(connection: Any, statements: Sequence[Statement]) -> list[Any]:
    shape = tuple((each.sql, each.guarded, each.returning) for each in statements)
    values = [value for each in statements for value in each.values]
    row = await connection.fetchrow(_combined(shape), *values)
    told = iter(row[1:])
    return [next(told) if each.returning else None for each in statements]


@lru_cache(maxsize=2000)
def _combined(shape: tuple[tuple[str, bool, bool], ...]) -> str:
    """One statement of many; its first column is there for the guards alone."""
    parts: list[str] = []
    hits = ["1"]
    told = ["1 / 1"]
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
    told[0] = f"1 / ({' * '.join(hits)})"
    return f"WITH {', '.join(parts)} SELECT {', '.join(told)}"


def _moved(sql: str, offset: int) -> tuple[str, int]:
    """The text with its placeholders behind `offset` others, and how many it has."""
    used = max((int(number) for number in PLACEHOLDER.findall(sql)), default=0)
    return PLACEHOLDER.sub(lambda found: f"${int(found[1]) + offset}", sql), used


async def _one(connection: Any, index: int, statement: Statement) -> Any:
    if statement.returning:
        return await connection.fetchval(statement.sql, *statement.values)
    done: str = await connection.execute(statement.sql, *statement.values)
    if statement.guarded and done != "UPDATE 1":
        raise GuardMissed(index)
    return None


client_class = BatchingClient
