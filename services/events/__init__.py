"""The log as an event stream.

Entries are the events, their `seq` is the position, and nobody publishes a
payload: a wake-up says only that there is something new. One tailer a process
finds how far the log can be read, and keeps the newest entries at hand. Whoever
listens reads on from a position of their own, so nobody can hold up another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar, cast
from uuid import UUID

import structlog

from models import JobLog
from services.events.coalesced import Coalesced
from services.events.horizon import Horizon
from services.events.recent import Recent

T = TypeVar("T")

logger = structlog.get_logger(__name__)

PAGE = 500
COMPLETE_SECONDS = 2.0
IDLE_SECONDS = 1.0
"""How far the tailer lets itself fall behind while nobody listens."""


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in order, and the position up to which they are all."""

    rows: list[JobLog]
    end: int


class Events:
    """The tailer of one process.

    `position` is how far the log can be read: nothing is still to come before it.
    `poll_seconds` bounds how late the entries of other processes are seen; None where
    this process is the only writer.
    """

    def __init__(self, horizon: Horizon, poll_seconds: float | None) -> None:
        self.position = 0
        self._horizon = horizon
        self._newest = Coalesced(horizon.newest)
        self._poll_seconds = poll_seconds
        self._recent = Recent()
        self._new = asyncio.Event()
        self._moved = asyncio.Event()
        self._watched = asyncio.Event()
        self._watchers = 0
        self._readers = 0
        self._waits: set[asyncio.Timeout] = set()
        self._hooks: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.position = await self._horizon.start()
        self._recent.restart(self.position)
        self._task = asyncio.create_task(self._tail())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Something may have been committed."""
        self._new.set()

    @property
    def readers(self) -> int:
        """How many read entries as they come."""
        return self._readers

    async def _tail(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._new.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._watched.wait()
            self._new.clear()
            try:
                await self._read()
            except Exception:
                logger.exception("reading the log failed; trying again")
                await asyncio.sleep(0.5)
                self._new.set()

    async def _read(self) -> None:
        """Go on as far as is safe; while nobody reads entries, only their positions."""
        while True:
            rows: list[JobLog] | None = None
            page = JobLog.filter(seq__gt=self.position).order_by("seq").limit(PAGE)
            if self._readers:
                rows = await page
                found = [row.seq for row in rows]
            else:
                found = cast("list[int]", await page.values_list("seq", flat=True))
            safe, again = await self._horizon.safe(self.position, found)
            if rows is None and self._readers:
                continue  # who came meanwhile wants the rows
            if safe:
                self._advance(found[safe - 1], None if rows is None else rows[:safe])
            if again:
                self._new.set()
                await asyncio.sleep(self._horizon.pause_seconds)
            if safe < PAGE:
                return

    def _advance(self, position: int, rows: list[JobLog] | None) -> None:
        self.position = position
        if rows is None:
            self._recent.restart(position)
        else:
            self._recent.add(rows)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for hook in self._hooks:
            hook()

    @contextmanager
    def watching(self, hook: Callable[[], None] | None = None) -> Generator[None]:
        """The position is kept up with meanwhile; `hook` is called whenever it has moved.

        With a hook, or within `subscribe`, the entries themselves are kept at hand too.
        """
        self._watchers += 1
        self._watched.set()
        self.wake()
        if hook is not None:
            self._readers += 1
            self._hooks.append(hook)
        try:
            yield
        finally:
            self._watchers -= 1
            if hook is not None:
                self._readers -= 1
                self._hooks.remove(hook)
            if not self._watchers:
                self._watched.clear()

    async def past(self, position: int) -> None:
        """Return when the log can be read beyond `position`."""
        while self.position <= position:
            await self._moved.wait()

    def recent(self, after: int, until: int) -> list[JobLog] | None:
        """The entries past `after` up to `until`, if all of them are at hand."""
        return self._recent.between(after, until)

    async def page(self, after: int, until: int) -> Page:
        """The entries past `after` up to `until`, or the first of them."""
        rows = self.recent(after, until)
        if rows is None:
            query = JobLog.filter(seq__gt=after, seq__lte=until)
            rows = await query.order_by("seq").limit(PAGE)
            if len(rows) == PAGE:
                return Page(rows, rows[-1].seq)
        return Page(rows, max(after, until))

    async def subscribe(self, after: int | None = None) -> AsyncGenerator[JobLog, None]:
        """Every entry once and in order: those past `after` (exclusive), then the new ones.

        Without `after`, those that can be seen from now on.
        """
        with self.watching(_nothing):
            position = self.position if after is None else after
            seen = await visible(position) if after is None else dict[int, UUID]()
            while True:
                page = await self.page(position, self.position)
                for row in page.rows:
                    if row.seq not in seen:
                        yield row
                position = page.end
                if position >= self.position:
                    await self.past(position)

    async def complete_until(self) -> int:
        """The position up to which nothing is still to come, all that is seen now included.

        A writer that stays open holds it back, for two seconds at most.
        """
        with self.watching(), suppress(TimeoutError):
            newest = await self._newest()
            async with asyncio.timeout(COMPLETE_SECONDS):
                await self.past(newest - 1)
        return self.position

    async def lag(self) -> int:
        """How many entries can be seen that were not handed on yet."""
        return max(0, await self._newest() - self.position)

    async def until(self, found: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
        """What `found` finds, asked now and after new entries; None after `seconds`."""
        with self.watching(), suppress(TimeoutError):
            async with asyncio.timeout(seconds) as patience:
                with self._waiting(patience):
                    while True:
                        position = self.position
                        value = await found()
                        if value is not None:
                            return value
                        await self.past(position)
        return None

    @contextmanager
    def _waiting(self, patience: asyncio.Timeout) -> Generator[None]:
        self._waits.add(patience)
        try:
            yield
        finally:
            self._waits.discard(patience)

    def release(self) -> None:
        """Whoever waits by `until` waits no longer: the process ends."""
        now = asyncio.get_running_loop().time()
        for patience in self._waits:
            if not patience.expired():
                patience.reschedule(now)


def _nothing() -> None: ...


async def visible(after: int) -> dict[int, UUID]:
    """What can be seen already, and of which job; an entry between these may still be to come."""
    found = await JobLog.filter(seq__gt=after).values_list("seq", "job_id")
    return dict(cast("list[tuple[int, UUID]]", found))
