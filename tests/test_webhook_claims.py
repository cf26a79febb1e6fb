"""Taking what is due: what is taken, in which order, and at what cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from models import Role, WebhookDelivery, WebhookDeliveryState, statements
from models.base import uuid7
from services import keys
from services.runtime import Runtime
from services.webhooks import claims, deliveries, enabled, hooks
from signoff.wiring import runtime
from tests.support.hooks import Hook, by_itself, make_hook
from tests.support.making import ADMIN
from tests.support.running import settings_for

LEASE = timedelta(seconds=30)
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Nobody works but the test."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(
        settings, allow_private_agents=True, allow_private_webhooks=True, work=False
    ) as rt:
        yield rt


async def fill(hook: Hook, count: int, job_id: UUID | None = None, **given: Any) -> None:
    """Deliveries that are due, of a job each if none is given."""
    first = await WebhookDelivery.filter(webhook_id=hook.id).count() + 1
    values = {"type": "job.noted", "body": "{}", "next_attempt_at": datetime.now(UTC)} | given
    rows = [
        WebhookDelivery(webhook_id=hook.id, seq=seq, job_id=job_id or uuid7(), **values)
        for seq in range(first, first + count)
    ]
    await WebhookDelivery.bulk_create(rows)


async def take(rt: Runtime, slots: int = 256) -> list[claims.Claimed]:
    return (await claims.take(rt, datetime.now(UTC), slots, LEASE)).taken


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_what_was_settled_of_a_job_costs_its_next_delivery_nothing(idle: Runtime) -> None:
    """Counted in steps of SQLite's machine: the same whatever time it is."""
    counted: list[int] = []
    for size in (100, 400):
        hook, job_id = await make_hook(idle, NOWHERE), uuid7()
        settled: dict[str, Any] = {"state": WebhookDeliveryState.SUCCEEDED, "next_attempt_at": None}
        await fill(hook, size, job_id, **settled)
        await fill(hook, size, job_id)
        (one,), steps = await counting_steps(idle)
        assert (await WebhookDelivery.get(id=one.id)).seq == size + 1
        counted.append(steps)
    few, many = counted
    assert many < 8 * few


async def counting_steps(rt: Runtime) -> tuple[list[claims.Claimed], int]:
    connection = cast("Any", statements.database())._connected()
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    connection.set_progress_handler(count, 10)
    try:
        return await take(rt), counted
    finally:
        connection.set_progress_handler(None, 0)


async def test_others_have_their_turn_while_many_deliveries_are_deleted(idle: Runtime) -> None:
    settled: dict[str, Any] = {"state": WebhookDeliveryState.SUCCEEDED, "next_attempt_at": None}
    one, other = await make_hook(idle, NOWHERE), await make_hook(idle, NOWHERE)
    for hook in (one, other):
        await fill(hook, 1000, created_at=datetime.now(UTC) - timedelta(days=40), **settled)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        await hooks.delete(idle, ADMIN, one.id)
        assert turns >= 5
        turns = 0
        assert await deliveries.forget(timedelta(days=30)) == 1000
        assert turns >= 5
        counting.cancel()
    assert await WebhookDelivery.all().count() == 0


async def test_what_is_given_back_unsent_counts_for_no_attempt(idle: Runtime) -> None:
    hook = await make_hook(idle, NOWHERE)
    await fill(hook, 2)
    taken = await take(idle)
    assert len(taken) == 2
    assert {row.attempts for row in await hook.deliveries()} == {1}
    for it, was_sent in zip(taken, (False, True), strict=True):
        await claims.release(it, datetime.now(UTC), was_sent=was_sent)
    rows = await hook.deliveries()
    assert {row.state for row in rows} == {WebhookDeliveryState.PENDING}
    assert sorted(row.attempts for row in rows) == [0, 1]


async def test_an_owner_with_many_slow_webhooks_leaves_room_for_others(idle: Runtime) -> None:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    for _ in range(6):
        await fill(await make_hook(idle, NOWHERE), 40, next_attempt_at=long_ago)
    key = keys.viewer_of((await keys.create("mia", Role.MEMBER))[0])
    quick = await make_hook(idle, NOWHERE, key)
    await fill(quick, 1)
    first = await take(idle, 20)
    assert Counter(it.hook.id == quick.id for it in first) == {False: 10, True: 1}
    await fill(quick, 1)
    rest = await take(idle)
    assert len(rest) == 1 + claims.PER_OWNER - 10
    assert max(Counter(it.hook.id for it in first + rest).values()) <= claims.PER_WEBHOOK
    assert await take(idle) == []
    await WebhookDelivery.filter(id=first[0].id).update(state="SUCCEEDED")
    assert len(await take(idle)) == 1


async def test_a_revoked_owner_is_not_told_what_still_waits(idle: Runtime) -> None:
    made, _ = await keys.create("mia", Role.MEMBER)
    hook = await make_hook(idle, NOWHERE, keys.viewer_of(made))
    await fill(hook, 2)
    await keys.revoke(made.prefix)
    assert await take(idle) == []
    row = await hook.row()
    assert (row.enabled, row.disabled_reason) == (False, enabled.KEYLESS)
    assert await hook.ends() == by_itself(enabled.KEYLESS)
    waiting = {(each.state, each.attempts) for each in await hook.deliveries()}
    assert waiting == {(WebhookDeliveryState.PENDING, 0)}
