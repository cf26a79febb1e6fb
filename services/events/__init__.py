"""The log as an event stream.

Entries are the events, their `seq` is the position, and nobody publishes a
payload: a wake-up says only that there is something new. One tailer a process
reads every new entry once and hands it to whoever listens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar, cast

import structlog

from models import JobLog
from services.errors import ErrorCode, SignoffError
from services.events.horizon import Horizon

T = TypeVar("T")

logger = structlog.get_logger(__name__)

PAGE = 500
BACKLOG = 10_000
"""Entries that a listener may be behind before it is told to come back."""
COMPLETE_SECONDS = 2.0
IDLE_SECONDS = 1.0
"""How far the tailer lets itself fall behind while nobody listens."""


class Lagging(SignoffError):
    """The listener was too slow; it resumes after the last position that it has."""

    code = ErrorCode.SLOW_CONSUMER

    def __init__(self) -> None:
        super().__init__("Too slow: subscribe again with `after` the last cursor you have.")


class Events:
    """The tailer of one process.

    `poll_seconds` bounds how late the entries of other processes are seen; None where
    this process is the only writer.
    """

    def __init__(self, horizon: Horizon, poll_seconds: float | None) -> None:
        self._horizon = horizon
        self._poll_seconds = poll_seconds
        self._position = 0
        self._new = asyncio.Event()
        self._listeners: set[asyncio.Queue[JobLog]] = set()
        self._listened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._position = await self._horizon.start()
        self._task = asyncio.create_task(self._tail())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Something may have been committed."""
        self._new.set()

    async def _tail(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._new.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._listened.wait()
            self._new.clear()
            try:
                await self._read()
            except Exception:
                logger.exception("reading the log failed; trying again")
                await asyncio.sleep(0.5)
                self._new.set()

    async def _read(self) -> None:
        """Hand on all that is safely readable; while nobody listens, only keep up."""
        while True:
            rows: list[JobLog] | None = None
            page = JobLog.filter(seq__gt=self._position).order_by("seq").limit(PAGE)
            if self._listeners:
                rows = await page
                found = [row.seq for row in rows]
            else:
                found = cast("list[int]", await page.values_list("seq", flat=True))
            safe, again = await self._horizon.safe(self._position, found)
            if rows is None and self._listeners:
                continue  # who came meanwhile wants the rows
            for row in (rows or [])[:safe]:
                self._hand_on(row)
            self._position = found[safe - 1] if safe else self._position
            if again:
                self._new.set()
                await asyncio.sleep(self._horizon.pause_seconds)
            if safe < PAGE:
                return

    def _hand_on(self, row: JobLog) -> None:
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(row)

    @contextmanager
    def _queue(self) -> Generator[asyncio.Queue[JobLog]]:
        queue: asyncio.Queue[JobLog] = asyncio.Queue(BACKLOG)
        self._listeners.add(queue)
        self._listened.set()
        self.wake()
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
            if not self._listeners:
                self._listened.clear()

    async def subscribe(self, after: int | None = None) -> AsyncGenerator[JobLog, None]:
        """Every entry once and in order: those past `after` (exclusive), then the new ones.

        Without `after`, those that can be seen from now on. Raises `Lagging` for a listener
        that falls too far behind.
        """
        with self._queue() as queue:
            live_from = self._position
            position = live_from if after is None else after
            seen = await _visible(live_from) if after is None else frozenset[int]()
            while position < live_from:
                rows = (
                    await JobLog.filter(seq__gt=position, seq__lte=live_from)
                    .order_by("seq")
                    .limit(PAGE)
                )
                for row in rows:
                    yield row
                position = rows[-1].seq if len(rows) == PAGE else live_from
            while True:
                if queue.full():
                    raise Lagging
                row = await queue.get()
                if row.seq > position and row.seq not in seen:
                    yield row

    async def complete_until(self) -> int:
        """The position up to which nothing is still to come, all that is seen now included.

        A writer that stays open holds it back, for two seconds at most.
        """
        with self._queue(), suppress(TimeoutError):
            newest = await self._horizon.newest()
            async with asyncio.timeout(COMPLETE_SECONDS):
                while self._position < newest:  # noqa: ASYNC110 - a few rounds of the tailer
                    await asyncio.sleep(0.005)
        return self._position

    async def lag(self) -> int:
        """How many entries can be seen that were not handed on yet."""
        return max(0, await self._horizon.newest() - self._position)

    async def until(self, found: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
        """What `found` finds, asked now and after each new entry; None after `seconds`."""
        with self._queue() as queue, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (value := await found()) is None:
                    await queue.get()
                    while not queue.empty():
                        queue.get_nowait()
                return value
        return None


async def _visible(after: int) -> frozenset[int]:
    """What can be seen already; an entry between these may still be to come."""
    found = await JobLog.filter(seq__gt=after).values_list("seq", flat=True)
    return frozenset(cast("list[int]", found))
