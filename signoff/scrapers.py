"""Who reads the metrics: known for a while without the database that has their keys.

Else nobody could read that it is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping

from services.actors import Viewer
from services.errors import Unauthenticated
from services.keys import is_over
from signoff.auth import Gate

KNOWN_SECONDS = 600.0
KEY_SECONDS = 3.0
"""For looking a key up: Prometheus waits ten seconds for all of a scrape."""


class Scrapers:
    """Those of one process."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Viewer, float]] = {}

    async def viewer(self, gate: Gate, headers: Mapping[str, str]) -> Viewer:
        """The caller; without the database, whom the key was for when it was looked up last.

        Raises `Unauthenticated`, or what keeps a key that is not known from being looked up.
        """
        authorization = headers.get("Authorization")
        if authorization is None:
            return await gate.viewer(None, headers)
        name = hashlib.sha256(authorization.encode(errors="surrogateescape")).digest()
        try:
            async with asyncio.timeout(KEY_SECONDS):
                viewer = await gate.viewer(authorization, headers)
        except Unauthenticated:
            self._known.pop(name, None)
            raise
        except Exception:
            known = self._current().get(name)
            if known is None:
                raise
            return known[0]
        self._known = self._current() | {name: (viewer, time.monotonic())}
        return viewer

    def _current(self) -> dict[bytes, tuple[Viewer, float]]:
        """Those whose keys were looked up lately, and have not ended since."""
        earliest = time.monotonic() - KNOWN_SECONDS
        return {
            name: (viewer, at)
            for name, (viewer, at) in self._known.items()
            if at > earliest and not is_over(viewer.expires_at)
        }
