"""The newest entries of the log, so that who keeps up with it needs no query."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from models import JobLog

MAX_ROWS = 1000
MAX_CHARACTERS = 8_000_000
"""Of payloads; beyond it, entries are read from the database again."""


class Recent:
    """All entries of a stretch of the log that ends at the newest position."""

    def __init__(self) -> None:
        self._after = 0
        self._rows: deque[JobLog] = deque()
        self._characters = 0

    def restart(self, position: int) -> None:
        """Nothing is kept; what comes next begins after `position`."""
        self._after = position
        self._rows.clear()
        self._characters = 0

    def add(self, rows: Iterable[JobLog]) -> None:
        """What follows, without a gap."""
        for row in rows:
            self._rows.append(row)
            self._characters += _size(row)
        while len(self._rows) > MAX_ROWS or self._characters > MAX_CHARACTERS:
            oldest = self._rows.popleft()
            self._characters -= _size(oldest)
            self._after = oldest.seq

    def between(self, after: int, until: int) -> list[JobLog] | None:
        """Those past `after` up to `until`; None if some are no longer kept."""
        if after < self._after:
            return None
        found: list[JobLog] = []
        for row in reversed(self._rows):
            if row.seq <= after:
                break
            if row.seq <= until:
                found.append(row)
        return found[::-1]


def _size(row: JobLog) -> int:
    return len(row.payload_json or "")
