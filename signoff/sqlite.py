"""Tortoise's SQLite backend, with transactions in one trip to the database's thread.

They begin with the write lock: a deferred `BEGIN` takes it at the first write, and if another
process wrote between a transaction's first read and that, SQLite fails it at once, whatever
the busy timeout.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from tortoise.backends.base.client import TransactionContext
from tortoise.backends.sqlite.client import (
    SqliteClient,
    SqliteTransactionContext,
    SqliteTransactionWrapper,
)
from tortoise.exceptions import IntegrityError, OperationalError, TransactionManagementError

from models.statements import BeforeCommit, GuardMissed, Statement, numbered


class ImmediateTransaction(SqliteTransactionWrapper):
    async def begin(self) -> None:
        try:
            await self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise TransactionManagementError(error) from error


class BatchingClient(SqliteClient):
    def _in_transaction(self) -> TransactionContext:
        return SqliteTransactionContext(ImmediateTransaction(self), self._lock)

    async def execute_batch(
        self, statements: Sequence[Statement], before_commit: BeforeCommit | None
    ) -> list[Any]:
        """See `models.statements.Batching`; `before_commit` gets None, there is no queue here."""
        if before_commit is not None:
            await before_commit(None)
        acquired: AbstractAsyncContextManager[Any] = cast("Any", self.acquire_connection())
        async with acquired as connection:
            try:
                return await connection._execute(_run, connection._conn, statements)  # noqa: SLF001
            except sqlite3.IntegrityError as error:
                raise IntegrityError(error) from error
            except sqlite3.OperationalError as error:
                raise OperationalError(error) from error


def _run(connection: sqlite3.Connection, statements: Sequence[Statement]) -> list[Any]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        results = [_one(connection, index, each) for index, each in enumerate(statements)]
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return results


def _one(connection: sqlite3.Connection, index: int, statement: Statement) -> Any:
    cursor = connection.execute(numbered(statement.sql), statement.values)
    if statement.guarded and cursor.rowcount != 1:
        raise GuardMissed(index)
    return cursor.fetchone()[0] if statement.returning else None


client_class = BatchingClient
