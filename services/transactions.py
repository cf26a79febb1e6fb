"""The one way into a transaction.

Tortoise does not survive a cancel inside `in_transaction()`: on SQLite the
connection's lock stays taken for ever, on asyncpg a pooled connection leaks.
And a client cancels its operation whenever it hangs up. So every transaction
runs in a task of its own that no caller can cancel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from tortoise.transactions import in_transaction

from models import Job, JobLog
from services.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Transaction:
    """What is written at the end of the transaction, and told after it."""

    entries: list[JobLog] = field(default_factory=list[JobLog])
    executions: list[Job] = field(default_factory=list[Job])


_current: ContextVar[Transaction] = ContextVar("transaction")


def current() -> Transaction:
    """The running transaction; `LookupError` outside of one."""
    return _current.get()


def atomic(
    body: Callable[Concatenate[Runtime, P], Awaitable[T]],
) -> Callable[Concatenate[Runtime, P], Awaitable[T]]:
    """Run `body` in a transaction: the caller's if there is one, else its own.

    A cancelled caller stops waiting; the transaction still ends as it would have.
    """

    @wraps(body)
    async def run(rt: Runtime, *args: P.args, **kwargs: P.kwargs) -> T:
        if _current.get(None) is not None:
            return await body(rt, *args, **kwargs)
        task = asyncio.ensure_future(_commit(rt, lambda: body(rt, *args, **kwargs)))
        rt.transactions.add(task)
        task.add_done_callback(rt.transactions.discard)
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    return run


def _retrieve(task: asyncio.Task[object]) -> None:
    """Mark the outcome as seen: a caller that hung up will not come for it."""
    if not task.cancelled():
        task.exception()


async def _commit(rt: Runtime, body: Callable[[], Awaitable[T]]) -> T:
    transaction = Transaction()
    _current.set(transaction)
    async with in_transaction() as connection:
        result = await body()
        if transaction.entries:
            await JobLog.bulk_create(transaction.entries)
        if transaction.executions:
            await rt.engine.enqueue(connection, transaction.executions)
    if transaction.executions:
        await rt.engine.enqueued(transaction.executions)
    rt.events.wake()
    return result


async def drain(rt: Runtime) -> None:
    """Wait for the transactions under way: before the connections are closed."""
    while rt.transactions:
        await asyncio.wait(rt.transactions)
