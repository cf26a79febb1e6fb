"""Up to where the log can be read without losing what commits late.

A database hands out positions when rows are written and shows rows when they
are committed: 8 can be visible while 7 is still to come. A reader that went on
to 8 would never see 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tortoise import connections

from models import JobLog


class Horizon(Protocol):
    pause_seconds: float

    async def start(self) -> int:
        """The position from which on nothing can be missed."""
        ...

    async def safe(
        self, position: int, rows: Sequence[JobLog]
    ) -> tuple[Sequence[JobLog], bool]:
        """The rows that may be handed on, and whether to look again soon."""
        ...


class InOrder:
    """One writer at a time, as SQLite has it: what is visible is complete."""

    pause_seconds = 0.0

    async def start(self) -> int:
        last = await JobLog.all().order_by("-seq").first()
        return last.seq if last else 0

    async def safe(
        self, position: int, rows: Sequence[JobLog]
    ) -> tuple[Sequence[JobLog], bool]:
        return rows, False


class Gapless:
    """Postgres: what has no gap is complete, since positions are handed out one by one.

    A gap is a transaction that is open or was rolled back. It is skipped when a look at
    the log shows it still, after every transaction has ended that was open when it was
    first seen. Whoever writes to the log has its transaction id before its position.
    """

    pause_seconds = 0.02

    def __init__(self) -> None:
        self._gap_after: int | None = None
        self._next = 0
        self._ended = False

    async def start(self) -> int:
        _, waited_for = await _snapshot()
        position = await InOrder().start()
        while (await _snapshot())[0] < waited_for:
            await asyncio.sleep(self.pause_seconds)
        return position

    async def safe(
        self, position: int, rows: Sequence[JobLog]
    ) -> tuple[Sequence[JobLog], bool]:
        for index, row in enumerate(rows):
            if row.seq != position + 1 and not (self._ended and self._gap_after == position):
                await self._look(position)
                return rows[:index], True
            position = row.seq
        return rows, False

    async def _look(self, gap_after: int) -> None:
        oldest, self_next = await _snapshot()
        if self._gap_after != gap_after:
            self._gap_after, self._next = gap_after, self_next
        self._ended = oldest >= self._next


async def _snapshot() -> tuple[int, int]:
    """The oldest transaction still open, and the next one to begin."""
    (row,) = await connections.get("default").execute_query_dict(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest, "
        "pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next"
    )
    return int(row["oldest"]), int(row["next"])
