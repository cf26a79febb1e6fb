"""Statements that wait for a turn at the database, and go together when it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from models.statements import Row, Unavailable

Q = TypeVar("Q")
A = TypeVar("A")

MAX_TOGETHER = 16
"""Statements in one transaction: what they lock stays locked until the last is done."""
MAX_APART = 4
"""Statements that go by themselves at once, after those that went together had failed."""
LATE_SECONDS = 5.0
"""Whoever waits longer for a turn is behind hundreds of others, or the database is away: an
answer that says so is better than one that nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q, A]):
    """What is asked of the database, who waits for the answer, and until when it may be sent."""

    what: Q
    done: asyncio.Future[A]
    deadline: float

    def settle(self, answer: A | Exception) -> None:
        """Once; nobody may be there any more to hear it."""
        if self.done.done():
            return
        if isinstance(answer, Exception):
            self.done.set_exception(answer)
        else:
            self.done.set_result(answer)


class _Asked(Asked[Sequence[Any], Row | None]):
    """A statement's values and its row."""

    __slots__ = ()


Acquire = Callable[[], AbstractAsyncContextManager[Any]]
"""Gives a connection of asyncpg; what is raised in it as in `models.statements.Database`."""
Together = Callable[[Any, str, Sequence[Sequence[Any]]], Awaitable[Sequence[Row | None]]]


class Pipeline:
    """Runs statements that give one row at most, each, one after another on one connection.

    Those of one text that come meanwhile share the next round trip and its transaction: less
    work for both sides than a connection each. If one of them fails, or has to wait for
    somebody's lock, which `line` must not let it do for long, all of them go again by
    themselves, on connections of the `pool`.
    """

    def __init__(self, line: Acquire, pool: Acquire, together: Together) -> None:
        self._line = line
        self._pool = pool
        self._run = together
        self._waiting: dict[str, list[_Asked]] = {}
        self._server: asyncio.Task[None] | None = None
        self._apart: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_APART)

    async def row(self, sql: str, values: Sequence[Any]) -> Row | None:
        """The row that the statement gives; raises `Unavailable` also where its turn is late."""
        loop = asyncio.get_running_loop()
        asked = _Asked(values, loop.create_future(), loop.time() + LATE_SECONDS)
        self._waiting.setdefault(sql, []).append(asked)
        if self._server is None:
            self._server = loop.create_task(self._serve(), context=Context())
        return await asked.done

    async def _serve(self) -> None:
        try:
            while self._waiting:
                sql, group = self._next()
                if group:
                    await self._answer(sql, group)
        finally:
            self._server = None
            for group in self._waiting.values():  # none, unless this was cancelled
                _fail(group)
            self._waiting.clear()

    def _next(self) -> tuple[str, Sequence[_Asked]]:
        """The statements of the text that waits longest, without those nobody waits for."""
        sql = next(iter(self._waiting))
        group = self._waiting.pop(sql)
        if rest := group[MAX_TOGETHER:]:
            self._waiting[sql] = rest  # behind those of another text
        now = asyncio.get_running_loop().time()
        _fail([each for each in group[:MAX_TOGETHER] if each.deadline < now])
        return sql, [each for each in group[:MAX_TOGETHER] if not each.done.done()]

    async def _answer(self, sql: str, group: Sequence[_Asked]) -> None:
        try:
            async with self._line() as connection:
                rows = await self._run(connection, sql, [each.what for each in group])
        except Unavailable as error:
            for each in group:
                each.settle(error)
        except Exception:  # noqa: BLE001 - each finds out by itself what is wrong
            for each in group:
                self._let_go_apart(sql, each)
        except BaseException:
            _fail(group)
            raise
        else:
            for each, row in zip(group, rows, strict=True):
                each.settle(row)

    def _let_go_apart(self, sql: str, asked: _Asked) -> None:
        task = asyncio.get_running_loop().create_task(self._alone(sql, asked), context=Context())
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)

    async def _alone(self, sql: str, asked: _Asked) -> None:
        try:
            async with self._room, self._pool() as connection:
                (row,) = await self._run(connection, sql, [asked.what])
                asked.settle(row)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            asked.settle(error)
        finally:
            _fail([asked])  # if this was cancelled


def _fail(group: Sequence[_Asked]) -> None:
    for each in group:
        each.settle(Unavailable("its turn did not come in time"))


async def one_row_each(
    connection: Any, sql: str, values: Sequence[Sequence[Any]]
) -> Sequence[Row | None]:
    """Of a statement that always gives one."""
    if len(values) == 1:
        return [await connection.fetchrow(sql, *values[0])]
    return await connection.fetchmany(sql, values)


async def a_row_or_none(
    connection: Any, sql: str, values: Sequence[Sequence[Any]]
) -> Sequence[Row | None]:
    """Of a SELECT that may find nothing: each row names the values that it was found by."""
    if len(values) == 1:
        return [await connection.fetchrow(sql, *values[0])]
    found: list[Row | None] = [None] * len(values)
    text = _numbered(sql, len(values[0]))
    numbered = [(*each, number) for number, each in enumerate(values)]
    for row in await connection.fetchmany(text, numbered):
        found[row[0]] = row[1:]
    return found


@lru_cache(maxsize=1000)
def _numbered(sql: str, values: int) -> str:
    return f"SELECT ${values + 1}::int, found.* FROM ({sql}) found"  # noqa: S608 - a number
