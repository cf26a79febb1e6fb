"""The same key and the same request get the first answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
from tortoise.exceptions import IntegrityError

from models import IdempotencyKey, Job
from services.actors import Viewer
from services.errors import IdempotencyConflict
from services.runtime import Runtime
from services.transactions import atomic
from services.values import Command

KEPT = timedelta(hours=48)


async def once(  # noqa: PLR0913
    rt: Runtime,
    viewer: Viewer,
    key: str | None,
    command: Command,
    job_id: UUID,
    do: Callable[[], Awaitable[Job]],
) -> Job:
    """What `do` makes of job `job_id`, or what it made when the key came first.

    Raises `IdempotencyConflict` if the key came with another command. A command
    that failed is forgotten: it may be repeated with its key.
    """
    if key is None:
        return await do()
    try:
        return await _first(rt, viewer, key, command, job_id, do)
    except IntegrityError:  # a twin committed between our look-up and our insert
        return await _first(rt, viewer, key, command, job_id, do)


@atomic
async def _first(  # noqa: PLR0913
    rt: Runtime,
    viewer: Viewer,
    key: str,
    command: Command,
    job_id: UUID,
    do: Callable[[], Awaitable[Job]],
) -> Job:
    digest = _digest(command)
    known = await IdempotencyKey.get_or_none(viewer_id=viewer.id, key=key)
    if known is None:
        await IdempotencyKey.create(
            viewer_id=viewer.id, key=key, request_hash=digest, job_id=job_id
        )
        return await do()
    if known.request_hash != digest:
        raise IdempotencyConflict(key, known.created_at)
    return await Job.get(id=known.job_id)


def _digest(command: Command) -> str:
    content = command.model_dump(mode="json", exclude={"idempotency_key", "wait_seconds"})
    text = orjson.dumps([type(command).__name__, content], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


async def forget() -> int:
    """Delete what is older than two days; returns how many."""
    return await IdempotencyKey.filter(created_at__lt=datetime.now(UTC) - KEPT).delete()
