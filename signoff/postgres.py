"""Tortoise's asyncpg backend, with transactions of many statements."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.exceptions import IntegrityError

from models.statements import BeforeCommit, GuardMissed, Statement


class BatchingClient(AsyncpgDBClient):
    async def execute_batch(
        self, statements: Sequence[Statement], before_commit: BeforeCommit | None
    ) -> list[Any]:
        """See `models.statements.Batching`."""
        acquired: AbstractAsyncContextManager[Any] = cast("Any", self.acquire_connection())
        async with acquired as connection:
            try:
                async with connection.transaction():
                    results = [
                        await _one(connection, index, each) for index, each in enumerate(statements)
                    ]
                    if before_commit is not None:
                        await before_commit(connection)
                    return results
            except asyncpg.IntegrityConstraintViolationError as error:
                raise IntegrityError(error) from error


async def _one(connection: Any, index: int, statement: Statement) -> Any:
    if statement.returning:
        return await connection.fetchval(statement.sql, *statement.values)
    done: str = await connection.execute(statement.sql, *statement.values)
    if statement.guarded and done != "UPDATE 1":
        raise GuardMissed(index)
    return None


client_class = BatchingClient
