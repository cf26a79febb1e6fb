"""When keys were last used: noted in memory, and written beside the requests, seldom.

The first use of an admin's key in each hour by the clock is told in the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from models import ApiKey, Role, statements
from models.statements import Statement
from services import audit, keys
from services.actors import Viewer
from services.transactions import current, unannounced
from services.values import public_id

logger = structlog.get_logger(__name__)

APART = timedelta(seconds=60)
"""A key's last use is written once in this time at most, over all processes."""
RETRY_SECONDS = 5.0

WRITE = """UPDATE "api_keys" SET "last_used_at" = $1
    WHERE "id" = $2 AND ("last_used_at" IS NULL OR "last_used_at" <= $3)"""
FIRST = """UPDATE "api_keys" SET "last_used_at" = $1
    WHERE "id" = $2 AND ("last_used_at" IS NULL OR "last_used_at" < $3)"""


@dataclass(frozen=True, slots=True)
class _Use:
    at: datetime
    key: ApiKey


class _ToldAlready(Exception):
    """Somebody told of the hour before."""


class KeyUses:
    """The uses that one process saw and has not written yet.

    Of admins who come with a token no row says when they came last: each process tells of them.
    """

    def __init__(self) -> None:
        self._seen: dict[UUID, _Use] = {}
        self._came: dict[tuple[int, str], Viewer] = {}
        self._told: set[tuple[int, str]] = set()
        self._hour: datetime | None = None
        self._new = asyncio.Event()

    def note(self, key: ApiKey) -> None:
        """The key, as it was just read, was used."""
        now = datetime.now(UTC)
        last = key.last_used_at
        if last is None or last <= now - APART or (_is_admins(key) and last < _hour_of(now)):
            self._seen.setdefault(key.id, _Use(now, key))
            self._new.set()

    def note_token(self, viewer: Viewer) -> None:
        """Somebody came with a token."""
        if not viewer.is_admin:
            return
        hour = _hour_of(datetime.now(UTC))
        if hour != self._hour:
            self._hour = hour
            self._told.clear()
        who = (viewer.workspace_id, viewer.id)
        if who not in self._told:
            self._told.add(who)
            self._came[who] = viewer
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
        came, self._came = self._came, {}
        try:
            for use in seen.values():
                if _is_admins(use.key):
                    await _tell_of_key(use)
            if seen:
                await statements.database().execute_batch([_last(use) for use in seen.values()])
            for who in list(came):
                await _tell_of_token(came[who])
                del came[who]
        except BaseException as error:
            self._seen = seen | self._seen
            self._came = came | self._came
            if not isinstance(error, Exception):  # the end, where what is left is written
                raise
            logger.exception("the uses of keys cannot be written")
            return False
        return True


def _last(use: _Use) -> Statement:
    return Statement(WRITE, [use.at, str(use.key.id), use.at - APART], "api_keys")


async def _tell_of_key(use: _Use) -> None:
    """Unless it was told in this hour, by whichever process."""

    async def told() -> None:
        raise _ToldAlready

    key = use.key
    values = [use.at, str(key.id), _hour_of(use.at)]
    changes = audit.between({}, {"prefix": key.prefix, "role": key.role})
    with suppress(_ToldAlready):
        async with unannounced():
            current().require(Statement(FIRST, values, "api_keys", guarded=True), told)
            await audit.record(keys.viewer_of(key), "key.used", public_id("key", key.id), changes)


async def _tell_of_token(viewer: Viewer) -> None:
    changes = audit.between({}, {"role": viewer.role})
    async with unannounced():
        await audit.record(viewer, "token.used", viewer.id, changes)


def _is_admins(key: ApiKey) -> bool:
    return key.role is Role.ADMIN


def _hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
