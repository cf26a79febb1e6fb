"""Statements that wait for a turn at the database, and go together when it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from models.statements import Row, Unavailable

Q = TypeVar("Q")
A = TypeVar("A")

MAX_TOGETHER = 16
"""Statements in one transaction: what they lock stays locked until the last is done."""
STALL_SECONDS = 0.05
"""After which others do not wait for one that waits for somebody else's lock."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q, A]):
    """What is asked of the database, and who waits for the answer."""

    what: Q
    done: asyncio.Future[A]

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
"""Gives a connection of asyncpg."""


class Pipeline:
    """Runs statements that give one row at most, each, one after another on one connection.

    Those of one text that come meanwhile share the next round trip and its transaction: less
    work for both sides than a connection each. If one of them fails, each goes by itself. Only
    while nothing gets on, up to `most` connections are used.
    """

    def __init__(self, acquire: Acquire, *, most: int) -> None:
        self._acquire = acquire
        self._most = most
        self._waiting: dict[str, list[_Asked]] = {}
        self._busy = 0
        self._served = 0
        self._watch: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def row(self, sql: str, values: Sequence[Any]) -> Row | None:
        """The row that the statement gives."""
        if not self._busy:
            self._busy += 1
            try:
                return await self._alone(sql, values)
            finally:
                self._hand_over()
        asked = _Asked(values, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(sql, []).append(asked)
        self._watch_out()
        return await asked.done

    def _hand_over(self) -> None:
        """Serve those who came meanwhile."""
        self._served += 1
        task = asyncio.create_task(self._serve()) if self._waiting else None
        if task is None:
            self._busy -= 1
        else:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        try:
            while self._waiting:
                sql = next(iter(self._waiting))
                asked = self._waiting.pop(sql)
                if rest := asked[MAX_TOGETHER:]:
                    self._waiting[sql] = rest  # behind those of another text
                await self._answer(sql, asked[:MAX_TOGETHER])
                self._served += 1
        finally:
            self._busy -= 1

    async def _answer(self, sql: str, asked: Sequence[_Asked]) -> None:
        answers: Sequence[Row | Exception] = ()
        if len(asked) > 1:
            answers = await self._together(sql, asked)
        if len(answers) == len(asked):
            for each, answer in zip(asked, answers, strict=True):
                each.settle(answer)
            return
        for each in asked:
            try:
                each.settle(await self._alone(sql, each.what))
            except Exception as error:  # noqa: BLE001 - told to whoever waits
                each.settle(error)

    async def _together(self, sql: str, asked: Sequence[_Asked]) -> Sequence[Row | Exception]:
        """The rows of all; fewer if a statement gave none, or one failed and undid the others."""
        try:
            async with self._acquire() as connection:
                return await connection.fetchmany(sql, [each.what for each in asked])
        except Unavailable as error:
            return [error] * len(asked)
        except Exception:  # noqa: BLE001 - each finds out by itself what is wrong
            return ()

    async def _alone(self, sql: str, values: Sequence[Any]) -> Row | None:
        async with self._acquire() as connection:
            return await connection.fetchrow(sql, *values)

    def _watch_out(self) -> None:
        if self._watch is None and self._busy < self._most:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(STALL_SECONDS, self._help, self._served)

    def _help(self, served: int) -> None:
        """Use another connection if nothing has got on since."""
        self._watch = None
        if self._waiting:
            if self._served == served and self._busy < self._most:
                self._busy += 1
                self._hand_over()
            self._watch_out()
