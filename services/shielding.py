"""Work that goes on to its end though its caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import structlog

from services.runtime import Runtime

logger = structlog.get_logger(__name__)

T = TypeVar("T")

DRAIN_SECONDS = 1.0


def kept(rt: Runtime, work: Awaitable[T]) -> asyncio.Future[T]:
    """A task of its own, for which `drain` waits."""
    task = asyncio.ensure_future(work)
    rt.transactions.add(cast("asyncio.Task[object]", task))
    task.add_done_callback(cast("Any", rt.transactions.discard))
    task.add_done_callback(_retrieve)
    return task


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Mark the outcome as seen: a caller that hung up will not come for it."""
    if not task.cancelled():
        task.exception()


async def to_the_end(rt: Runtime, work: Awaitable[T]) -> T:
    """What is begun and must not be left half done: a caller that is cancelled waits for it."""
    task = kept(rt, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def drain(rt: Runtime) -> None:
    """Wait for the transactions under way, before the connections are closed.

    Not for ever: with a database that is away they would never end.
    """
    if rt.transactions:
        _, unfinished = await asyncio.wait(rt.transactions, timeout=DRAIN_SECONDS)
        if unfinished:
            logger.warning("ended with transactions under way", count=len(unfinished))
