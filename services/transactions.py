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
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from tortoise.exceptions import IntegrityError
from tortoise.models import Model

from models import AuditEntry, Job, JobLog, QueueEntry, QueueState, Workspace, statements
from models.statements import GuardMissed, Statement, Unavailable
from services import engine, queue
from services.chain import Chain, Entry
from services.engine import Key
from services.errors import DatabaseUnavailable
from services.runtime import Runtime
from services.shielding import kept
from services.turns import Turns, give_back, take_turns

P = ParamSpec("P")
T = TypeVar("T")

Otherwise = Callable[[], Awaitable[None]]

CATCH_UPS = 50
"""Tries to write behind what other processes write to a log; each time one of them got through."""
CATCH_UP_SECONDS = 0.05
PATIENCE_SECONDS = 3.0
"""How long a caller waits for a database that does not answer; executions wait on."""
PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Transaction:
    """What will be written: `writes` in their order, then the entries of `chains`."""

    writes: list[Statement] = field(default_factory=list[Statement])
    chains: list[Chain] = field(default_factory=list[Chain])
    _carriers: dict[int, Chain] = field(default_factory=dict[int, Chain])
    _logged: dict[type[JobLog | AuditEntry], int] = field(
        default_factory=dict[type[JobLog | AuditEntry], int]
    )
    _guards: dict[int, Otherwise] = field(default_factory=dict[int, Otherwise])
    _returned: dict[int, Callable[[Any], None]] = field(
        default_factory=dict[int, Callable[[Any], None]]
    )
    _ended: list[Key] = field(default_factory=list[Key])
    _queued: bool = False
    _wake_at: datetime | None = None
    _proof: tuple[type[Model], Mapping[str, Any]] | None = None

    def enqueue(self, job: Job, *, ready_at: datetime | None = None) -> None:
        """Let a worker run the job's current attempt, not before `ready_at`."""
        self.writes.append(queue.insertion(job, ready_at))
        self.wake(ready_at)

    def dequeue(self, job: Job) -> None:
        """There is nothing to run any more; a run of the current attempt ends."""
        self.delete(QueueEntry, {"job_id": job.id})
        self.settles(job)

    def hand_on(self, job: Job, ready_at: datetime) -> None:
        """Some worker goes on with the job's current attempt at `ready_at`; a run of it ends."""
        changes = {"state": QueueState.AWAITING, "worker_id": None, "ready_at": ready_at}
        self.update(QueueEntry, {"job_id": job.id, "number": job.attempt_count}, changes)
        self.settles(job)
        self.wake(ready_at)

    def settles(self, job: Job) -> None:
        """A run of the current attempt ends, unless it is the one that writes this."""
        self._ended.append((job.id, job.attempt_count))

    def wake(self, at: datetime | None = None) -> None:
        """After the commit there is something for a worker, at once or `at` a later time."""
        self._queued = True
        self._wake_at = queue.earliest(self._wake_at, at)

    def insert(self, *rows: Model) -> None:
        """New rows of one table."""
        if rows:
            given = [_columns(row) for row in rows]
            self._proof = self._proof or (type(rows[0]), {"id": rows[0].pk})
            self.writes.append(statements.insert(type(rows[0]), *given))

    def insert_job(self, job: Job) -> None:
        """A new job, whose log begins in this transaction."""
        self.insert(job)
        chain = self._chain(job)
        chain.carrier = self.writes[-1]
        chain.place = statements.attributes(Job).index("log_head")

    def log(self, owner: Job | Workspace, entry: Entry) -> None:
        """An entry of the log of `owner`, which was read; it is written last.

        That others wrote to the same log meanwhile undoes nothing.
        """
        self._chain(owner).entries.append(entry)

    def _chain(self, owner: Job | Workspace) -> Chain:
        for each in self.chains:
            if each.owner is owner or each.owner.id == owner.id:
                return each
        chain = Chain(owner, JobLog if type(owner) is Job else AuditEntry, owner.log_head)
        self.chains.append(chain)
        return chain

    def write(self, statement: Statement, take: Callable[[Any], None]) -> None:
        """SQL of the caller's own that returns something: `take` gets it after the commit.

        None where it found no row, or the database's answer was lost.
        """
        self._returned[len(self.writes)] = take
        self.writes.append(statement)

    def require(self, statement: Statement, otherwise: Otherwise) -> None:
        """A `guarded` statement; if it misses, as with `swap`."""
        self._guards[len(self.writes)] = otherwise
        self.writes.append(statement)

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
        self._proof = self._proof or (model, _trace(where, changes))
        self.writes.append(statements.update(model, where, changes, guarded=True))

    def move(self, job: Job, changes: Mapping[str, Any], otherwise: Otherwise) -> None:
        """`swap` of a job that still has the status and the version that were read.

        What is logged of it in this transaction is fenced by the same statement.
        """
        seen = {"status": job.status, "version": job.version}
        where = {"id": job.id, **seen}
        chain = self._chain(job)
        if chain.carrier is not None:
            self.swap(Job, where, changes, otherwise)
            return
        self._proof = self._proof or (Job, _trace(where, changes))
        chain.seen = seen
        self._carry(chain, where, changes, otherwise)

    def _carry(
        self,
        chain: Chain,
        where: Mapping[str, Any],
        changes: Mapping[str, Any],
        otherwise: Otherwise,
    ) -> None:
        """Let a change of the owner's row take the end of its log along."""
        ends = {"log_head": chain.head}
        index = len(self.writes)
        self._guards[index], self._carriers[index] = otherwise, chain
        chain.place = len(changes)
        chain.carrier = statements.update(
            type(chain.owner), {**where, **ends}, {**changes, **ends}, guarded=True
        )
        self.writes.append(chain.carrier)

    def delete(self, model: type[Model], where: Mapping[str, Any]) -> None:
        self.writes.append(statements.delete(model, where))

    async def commit(self, rt: Runtime | None) -> None:
        """Write all of it, then wake who waits for it, if there is anybody.

        Raises `Unavailable` or `DatabaseUnavailable`.
        """
        results = await self._written(Turns() if rt is None else rt.turns)
        for chain in self.chains:
            chain.owner.log_head = chain.end
        for index, take in self._returned.items():
            take(results[index])
        if rt is not None:
            self._tell(rt)

    def _tell(self, rt: Runtime) -> None:
        rt.engine.abort(self._ended)
        if self._queued:
            rt.engine.wake(self._wake_at)
        rt.events.wake()
        rt.bus.tell(work=self._queued or (bool(self._ended) and not engine.in_a_run()))

    def _link(self) -> None:
        """Hash the entries, and write or rewrite the statements that have them."""
        found: dict[type[JobLog | AuditEntry], list[Entry]] = {}
        for chain in self.chains:
            if chain.carrier is None:
                self._carry(chain, {"id": chain.owner.id}, {}, _gone)
            chain.link()
            if chain.entries:
                others = found.get(chain.table)
                found[chain.table] = others + chain.entries if others else chain.entries
        for table, entries in found.items():
            statement = statements.insert(table, *entries)
            if table in self._logged:
                self.writes[self._logged[table]] = statement
            else:
                self._logged[table] = len(self.writes)
                self.writes.append(statement)
                first = entries[0]  # stays, whatever becomes of other rows by then
                self._proof = (table, {name: first[name] for name in KNOWN_BY[table]})

    async def _written(self, turns: Turns) -> list[Any]:
        """What the statements returned. Tries again while the database does not answer.

        What is lost may be its answer alone, so a refusal after that counts only if what was
        to be written is not there. Nobody waits for a turn meanwhile.
        """
        doubtful = False
        clock = asyncio.get_running_loop().time
        until = None if engine.in_a_run() else clock() + PATIENCE_SECONDS

        def late() -> bool:
            return until is not None and clock() > until

        while True:
            try:
                return await self._in_turn(turns, until, doubtful=doubtful)
            except Unavailable:
                doubtful = True
                if late() or self._proof is None:
                    raise
            except (GuardMissed, IntegrityError) as refusal:
                with suppress(Unavailable):
                    if doubtful and await self._is_there():
                        return [None] * len(self.writes)
                    if isinstance(refusal, GuardMissed):
                        await self._guards[refusal.index]()
                    raise
                if late():
                    raise DatabaseUnavailable from None
            await asyncio.sleep(PAUSE_SECONDS)

    async def _in_turn(self, turns: Turns, until: float | None, *, doubtful: bool) -> list[Any]:
        """Write behind what others of this process wrote to the same logs before.

        What may be written already keeps its place: only so the guard misses if it is.
        """
        held = await take_turns(turns, self.chains, until)
        try:
            for chain, turn in held:
                if turn.end is not None and not doubtful:
                    chain.head = turn.end
            self._link()
            results = await self._behind_others(doubtful=doubtful)
            for chain, turn in held:
                turn.end = chain.end
            return results
        finally:
            give_back(turns, held)

    async def _behind_others(self, *, doubtful: bool) -> list[Any]:
        """Write, and again as long as it is missed only since another process wrote to a log."""
        behind = 0
        while True:
            try:
                return await statements.database().execute_batch(self.writes)
            except GuardMissed as missed:
                if behind == CATCH_UPS or (doubtful and await self._is_there()):
                    raise
                if not await self._catch_up(missed.index):
                    raise
            behind += 1
            pause = min(0.001 * 2**behind, CATCH_UP_SECONDS)
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311

    async def _catch_up(self, index: int) -> bool:
        """Whether statement `index` missed only since a log had grown; the entries come behind."""
        chain = self._carriers.get(index)
        if chain is None:
            return False
        owner = chain.owner
        if not chain.grew(await statements.fetch(type(owner), id=owner.id)):
            return False
        self._link()
        return True

    async def _is_there(self) -> bool:
        """Whether it was written."""
        return self._proof is not None and await statements.exists(*self._proof)


KNOWN_BY: Mapping[type[JobLog | AuditEntry], tuple[str, ...]] = {
    JobLog: ("job_id", "type", "created_at"),
    AuditEntry: ("action", "created_at"),
}
"""How an entry is known again, whose hash may be another one by then."""


async def _gone() -> None:
    raise Unavailable("The log cannot be written to: others do all the time, or its owner is gone.")


def _trace(where: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """How a row is known again that was changed so: by the moment of the change."""
    return (
        dict(where)
        | {name: changes[name] for name in where.keys() & changes.keys()}
        | {name: changes[name] for name in ("updated_at",) if name in changes}
    )


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
    Raises `DatabaseUnavailable` when the database does not answer.
    """

    @wraps(body)
    async def run(rt: Runtime, *args: P.args, **kwargs: P.kwargs) -> T:
        if _current.get(None) is not None:
            return await body(rt, *args, **kwargs)
        transaction = Transaction()
        token = _current.set(transaction)
        try:
            try:
                result = await body(rt, *args, **kwargs)
            finally:
                _current.reset(token)
            if transaction.writes or transaction.chains:
                await asyncio.shield(kept(rt, transaction.commit(rt)))
        except Unavailable as error:
            raise DatabaseUnavailable from error
        return result

    return run


@asynccontextmanager
async def unannounced() -> AsyncGenerator[None]:
    """The same for what is written within, of which no worker and no listener has to hear."""
    transaction = Transaction()
    token = _current.set(transaction)
    try:
        yield
    finally:
        _current.reset(token)
    try:
        await asyncio.shield(asyncio.ensure_future(transaction.commit(None)))
    except Unavailable as error:
        raise DatabaseUnavailable from error
