"""The same key and the same request get the first answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
from pydantic import Field
from tortoise.exceptions import IntegrityError

from models import IdempotencyKey, Job
from services.actors import Viewer
from services.errors import IdempotencyConflict, NotFound, SignoffError
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import Command, Key, public_id

KEPT = timedelta(hours=48)


class Keyed(Command):
    """A command that may be repeated."""

    idempotency_key: Key | None = Field(
        default=None,
        description="Repeating the request with the same key within 24 hours gets its answer.",
    )


async def once(
    rt: Runtime,
    viewer: Viewer,
    command: Keyed,
    job_id: UUID,
    do: Callable[[], Awaitable[Job]],
    *,
    check: Callable[[], Awaitable[None]] | None = None,
) -> Job:
    """What `do` makes of job `job_id`, or what it made when the key came first.

    `check` runs before `do`, outside of its transaction. Raises `IdempotencyConflict` if
    the key came with another command. A command that failed is forgotten: it may be
    repeated with its key.
    """
    known = await _known(viewer, command)
    if known is not None:
        return known
    try:
        if check is not None:
            await check()
        return await _first(rt, viewer, command, job_id, do)
    except (IntegrityError, SignoffError):
        # A twin may have committed since we looked: its answer is ours.
        known = await _known(viewer, command)
        if known is None:
            raise
        return known


async def _known(viewer: Viewer, command: Keyed) -> Job | None:
    if command.idempotency_key is None:
        return None
    known = await IdempotencyKey.get_or_none(
        workspace_id=viewer.workspace_id, viewer_id=viewer.id, key=command.idempotency_key
    )
    if known is None:
        return None
    if known.request_hash != _digest(command):
        raise IdempotencyConflict(known.key, known.created_at)
    job = await Job.get(id=known.job_id)
    if not viewer.sees(job):  # another key of theirs, that sees more, was answered
        raise NotFound(public_id("job", known.job_id))
    return job


@atomic
async def _first(
    rt: Runtime, viewer: Viewer, command: Keyed, job_id: UUID, do: Callable[[], Awaitable[Job]]
) -> Job:
    if command.idempotency_key is not None:
        key = IdempotencyKey(
            workspace_id=viewer.workspace_id,
            viewer_id=viewer.id,
            key=command.idempotency_key,
            request_hash=_digest(command),
            job_id=job_id,
        )
        current().insert(key)
    return await do()


def _digest(command: Keyed) -> str:
    content = command.model_dump(mode="json", exclude={"idempotency_key", "wait_seconds"})
    text = orjson.dumps([type(command).__name__, content], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


async def forget() -> int:
    """Delete what is older than two days; returns how many."""
    return await IdempotencyKey.filter(created_at__lt=datetime.now(UTC) - KEPT).delete()
