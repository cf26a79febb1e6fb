"""Up to where the log can be read without losing what commits late.

A database hands out positions when rows are written and shows rows when they
are committed: 8 can be visible while 7 is still to come. A reader that went on
to 8 would never see 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from tortoise import connections

from models import JobLog


class Horizon(Protocol):
    pause_seconds: float

    async def start(self) -> int:
        """The position from which on nothing can be missed."""
        ...

    async def newest(self) -> int:
        """The newest position that can be seen."""
        ...

    async def safe(self, position: int, found: Sequence[int]) -> tuple[int, bool]:
        """How many of the positions found may be handed on, and whether to look again soon."""
        ...


class InOrder:
    """One writer at a time, as SQLite has it: what is visible is complete."""

    pause_seconds = 0.0

    async def start(self) -> int:
        return await self.newest()

    async def newest(self) -> int:
        last = await JobLog.all().order_by("-seq").first()
        return last.seq if last else 0

    async def safe(self, position: int, found: Sequence[int]) -> tuple[int, bool]:
        return len(found), False


class Gapless(InOrder):
    """Postgres: what has no gap is complete, since positions are handed out one by one.

    A gap is a transaction that is open or was rolled back. Whoever takes a position holds
    a lock on the table until it ends, so a gap is skipped when the log still shows it after
    all those have ended that held one when it was first seen.
    """

    pause_seconds = 0.02
    start_seconds = 10.0
    """How long a start waits for writers of the moment; longer ones are not worth a delay."""

    def __init__(self) -> None:
        self._gap_after: int | None = None
        self._suspects: set[str] = set()
        self._ended = False

    async def start(self) -> int:
        suspects = await _writers()
        position = await self.newest()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.start_seconds):
                while suspects & await _writers():  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(self.pause_seconds)
        return position

    async def safe(self, position: int, found: Sequence[int]) -> tuple[int, bool]:
        for count, seq in enumerate(found):
            if seq != position + 1 and not (self._ended and self._gap_after == position):
                await self._look(position)
                return count, True
            position = seq
        return len(found), False

    async def _look(self, gap_after: int) -> None:
        writers = await _writers()
        if self._gap_after != gap_after:
            self._gap_after, self._suspects = gap_after, writers
        self._suspects &= writers
        self._ended = not self._suspects


async def _writers() -> set[str]:
    """The transactions that may have taken a position of the log and are still open."""
    rows = await connections.get("default").execute_query_dict(
        "SELECT virtualtransaction AS id FROM pg_locks "
        "WHERE relation = 'job_logs'::regclass AND mode = 'RowExclusiveLock' AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return {row["id"] for row in rows}
