"""When keys were last used: noted in memory, and written beside the requests, seldom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from models import ApiKey, statements
from models.statements import Statement

logger = structlog.get_logger(__name__)

APART = timedelta(seconds=60)
"""A key's last use is written once in this time at most, over all processes."""
RETRY_SECONDS = 5.0

WRITE = """UPDATE "api_keys" SET "last_used_at" = $1
    WHERE "id" = $2 AND ("last_used_at" IS NULL OR "last_used_at" <= $3)"""


class KeyUses:
    """The uses that one process saw and has not written yet."""

    def __init__(self) -> None:
        self._seen: dict[UUID, datetime] = {}
        self._new = asyncio.Event()

    def note(self, key: ApiKey) -> None:
        """The key, as it was just read, was used."""
        now = datetime.now(UTC)
        if key.last_used_at is None or key.last_used_at <= now - APART:
            self._seen.setdefault(key.id, now)
            self._new.set()

    @asynccontextmanager
    async def written(self) -> AsyncGenerator[None]:
        """Write what is noted meanwhile, and at the end what is left."""
        task = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._write()

    async def _keep(self) -> None:
        while True:
            await self._new.wait()
            self._new.clear()
            if not await self._write():
                self._new.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _write(self) -> bool:
        """Whether it could be written; what could not is kept for the next time."""
        seen, self._seen = self._seen, {}
        try:
            if seen:
                await statements.database().execute_batch(
                    [
                        Statement(WRITE, [at, str(key_id), at - APART], "api_keys")
                        for key_id, at in seen.items()
                    ]
                )
        except Exception:
            logger.exception("the uses of keys cannot be written")
            self._seen = seen | self._seen
            return False
        return True
