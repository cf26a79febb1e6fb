"""The bound on the queue: whoever asks for an execution beyond it is refused at once."""

from __future__ import annotations

import time

from models import statements
from services.errors import LimitExceeded

COUNT = """SELECT count(*) FROM (SELECT 1 FROM "queue_entries"
    WHERE "state" IN ('WAITING', 'SLEEPING', 'SUSPECT') LIMIT $1) "waiting" """


class QueueBound:
    """At most `limit` executions wait, over all agents.

    The queue is counted once a second at most while there is room, and what this process adds
    is added, so requests at the same moment in several processes may pass the limit by a few.
    """

    def __init__(self, limit: int = 100_000, fresh_seconds: float = 1.0) -> None:
        self.limit = limit
        self.fresh_seconds = fresh_seconds
        self._waiting = limit
        self._counted_at = 0.0

    async def admit(self) -> None:
        """Raise `LimitExceeded` if one execution more is too many."""
        stale = time.monotonic() - self._counted_at >= self.fresh_seconds
        if stale or self._waiting >= self.limit:
            self._counted_at = time.monotonic()
            ((self._waiting,),) = await statements.database().fetch(COUNT, self.limit)
        if self._waiting >= self.limit:
            raise LimitExceeded(
                f"{self.limit} executions wait already, which is the limit; try again later.",
                self.limit,
            )
        self._waiting += 1
