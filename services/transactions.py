"""The one way to write.

A change reads what it needs, decides, and says what to write; at its end all of that is
written in one transaction, guarded by the versions of the rows it was decided on. No
transaction is ever open while code waits for something else, and the writing itself runs in
a task that no caller can cancel: Tortoise does not survive a cancel inside a transaction (on
SQLite the connection's lock stays taken for ever, on asyncpg a pooled connection leaks), and
a client cancels its operation whenever it hangs up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from tortoise import connections
from tortoise.models import Model

from models import Agent, Job, JobLog, statements
from models.statements import Batching, GuardMissed, Statement
from services.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")

Otherwise = Callable[[], Awaitable[None]]
Entry = dict[str, Any]
"""The columns of an entry of the log."""


@dataclass(slots=True)
class Transaction:
    """What will be written: `writes` in their order, then `entries` of the log.

    `executions` are queued with it, and for `agents` work is taken from then on.
    """

    writes: list[Statement] = field(default_factory=list[Statement])
    entries: list[Entry] = field(default_factory=list[Entry])
    executions: list[Job] = field(default_factory=list[Job])
    agents: list[Agent] = field(default_factory=list[Agent])
    _guards: dict[int, Otherwise] = field(default_factory=dict[int, Otherwise])
    _returned: dict[int, Callable[[Any], None]] = field(
        default_factory=dict[int, Callable[[Any], None]]
    )

    def insert(self, *rows: Model) -> None:
        """New rows of one table."""
        if rows:
            given = [_columns(row) for row in rows]
            self.writes.append(statements.insert(type(rows[0]), *given))

    def insert_numbered(self, entry: Entry, take: Callable[[int], None]) -> None:
        """An entry of the log; `take` gets its position after the commit."""
        self._returned[len(self.writes)] = take
        self.writes.append(statements.insert(JobLog, entry, returning="seq"))

    def update(
        self, model: type[Model], where: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> None:
        self.writes.append(statements.update(model, where, changes))

    def swap(
        self,
        model: type[Model],
        where: Mapping[str, Any],
        changes: Mapping[str, Any],
        otherwise: Otherwise,
    ) -> None:
        """Change the one row that is still as in `where`.

        If there is none, nothing of the transaction is written, and `otherwise` raises
        what that means.
        """
        self._guards[len(self.writes)] = otherwise
        self.writes.append(statements.update(model, where, changes, guarded=True))

    def delete(self, model: type[Model], where: Mapping[str, Any]) -> None:
        self.writes.append(statements.delete(model, where))

    async def commit(self, rt: Runtime) -> None:
        """Write all of it, then wake who waits for it."""
        database = cast("Batching", connections.get("default"))
        if self.entries:
            self.writes.append(statements.insert(JobLog, *self.entries))
        queued = partial(rt.engine.enqueue, jobs=self.executions) if self.executions else None
        try:
            results = await database.execute_batch(self.writes, queued)
        except GuardMissed as missed:
            await self._guards[missed.index]()
            raise
        for index, take in self._returned.items():
            take(results[index])
        for agent in self.agents:
            rt.engine.register(agent)
        if self.executions:
            await rt.engine.enqueued(self.executions)
        rt.events.wake()


def _columns(row: Model) -> dict[str, Any]:
    """What a new row holds."""
    given = vars(row)
    return {name: given[name] for name in statements.attributes(type(row))}


_current: ContextVar[Transaction] = ContextVar("transaction")


def current() -> Transaction:
    """The change under way; `LookupError` outside of one."""
    return _current.get()


def atomic(
    body: Callable[Concatenate[Runtime, P], Awaitable[T]],
) -> Callable[Concatenate[Runtime, P], Awaitable[T]]:
    """What `body` writes, by `current()`, is written all at once when it ends, or not at all.

    Inside another such function it joins that one's transaction. Reads see the database as
    it is, without the writes to come: what a decision rests on is guarded by `swap`.
    """

    @wraps(body)
    async def run(rt: Runtime, *args: P.args, **kwargs: P.kwargs) -> T:
        if _current.get(None) is not None:
            return await body(rt, *args, **kwargs)
        transaction = Transaction()
        token = _current.set(transaction)
        try:
            result = await body(rt, *args, **kwargs)
        finally:
            _current.reset(token)
        if transaction.writes or transaction.entries:
            await _uncancelled(rt, transaction.commit(rt))
        return result

    return run


async def _uncancelled(rt: Runtime, work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    rt.transactions.add(task)
    task.add_done_callback(rt.transactions.discard)
    task.add_done_callback(_retrieve)
    await asyncio.shield(task)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Mark the outcome as seen: a caller that hung up will not come for it."""
    if not task.cancelled():
        task.exception()


async def drain(rt: Runtime) -> None:
    """Wait for the transactions under way: before the connections are closed."""
    while rt.transactions:
        await asyncio.wait(rt.transactions)
