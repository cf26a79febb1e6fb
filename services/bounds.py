"""The bound on the queue: whoever asks for an execution beyond it is refused at once."""

from __future__ import annotations

import asyncio
import math
import time

from models import statements
from services.errors import LimitExceeded

COUNTED_A_SECOND = 400_000
"""How many entries may be counted a second while it is full: what refuses must not hold up what
makes room."""
COUNT = """SELECT count(*) FROM (SELECT 1 FROM "queue_entries"
    WHERE "state" IN ('WAITING', 'SLEEPING', 'SUSPECT') LIMIT $1) "waiting" """


class QueueBound:
    """At most `limit` executions wait, over all agents.

    The queue is counted once a second at most while there is room, and what this process adds
    is added, so requests at the same moment in several processes may pass the limit by a few.
    While it seems full it is counted more often, the less the longer that takes.
    """

    def __init__(self, limit: int = 100_000, fresh_seconds: float = 1.0) -> None:
        self.limit = limit
        self.fresh_seconds = fresh_seconds
        self._waiting = limit
        self._counted_at = -math.inf
        self._counting = asyncio.Lock()

    async def admit(self) -> None:
        """Raise `LimitExceeded` if one execution more is too many."""
        if self._is_stale():
            async with self._counting:  # whoever comes meanwhile waits for this count
                if self._is_stale():
                    ((self._waiting,),) = await statements.database().fetch(COUNT, self.limit)
                    self._counted_at = time.monotonic()
        if self._waiting >= self.limit:
            raise LimitExceeded(
                f"{self.limit} executions wait already, which is the limit; try again later.",
                self.limit,
            )
        self._waiting += 1

    def _is_stale(self) -> bool:
        seconds = self.fresh_seconds
        if self._waiting >= self.limit:
            seconds = min(seconds, self.limit / COUNTED_A_SECOND)
        return time.monotonic() - self._counted_at >= seconds
