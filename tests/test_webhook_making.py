"""Making deliveries of the log: at what cost, from where, for whom, and what may be broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from structlog.testing import capture_logs
from tortoise import connections

from models import JobLog, Role, Webhook, WebhookDelivery, jsontext, statements
from models.base import uuid7
from services import keys
from services.errors import LimitExceeded
from services.runtime import Runtime
from services.secrets import Vault
from services.webhooks import enabled, hooks, making
from services.webhooks.making import Maker
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support.hooks import Hook, by_itself, heard, make_hook, takes, verified
from tests.support.making import ADMIN, MEMBER, NOWHERE, OTHER, make_job, until
from tests.support.running import settings_for
from tests.test_events import Connection, Elsewhere, only_postgres, write_many

KEPT = timedelta(days=30)


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Nobody works but the test."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(
        settings, allow_private_agents=True, allow_private_webhooks=True, work=False
    ) as rt:
        yield rt


async def copies(hook: Hook, count: int, **changes: Any) -> list[Hook]:
    """More webhooks like it, beyond what one owner may have."""
    row = await hook.row()
    columns = {name: getattr(row, name) for name in statements.attributes(Webhook)}
    made = [Webhook(**(columns | changes | {"id": uuid7()})) for _ in range(count)]
    await Webhook.bulk_create(made)
    return [Hook(each.id, hook.secret) for each in made]


async def counting(step: Awaitable[Any]) -> int:
    """How many statements SQLite is given meanwhile."""
    seen: list[str] = []
    direct = cast("Any", statements.database())._connected()
    others: Any = connections.get("default")._connection
    direct.set_trace_callback(seen.append)
    await others.set_trace_callback(seen.append)
    try:
        await step
    finally:
        direct.set_trace_callback(None)
        await others.set_trace_callback(None)
    return len(seen)


# At what cost


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_a_look_asks_the_database_as_often_for_many_webhooks_as_for_few(
    idle: Runtime,
) -> None:
    maker = Maker(idle, kept=KEPT)
    mia, olaf = [
        keys.viewer_of((await keys.create(name, Role.MEMBER))[0]) for name in ("mia", "olaf")
    ]
    one, foreign = await make_hook(idle, NOWHERE, mia), await make_hook(idle, NOWHERE, olaf)
    hears = await make_hook(idle, NOWHERE, mia, where={"name": {"contains": "A"}})
    deaf = await make_hook(idle, NOWHERE, mia, where={"name": {"contains": "$1 or ?"}})
    counted: list[int] = []
    made = 1
    for more in (0, 3, 30):
        at = (await one.row()).position
        for number in range(more):
            await copies(one, 1, position=number % (at + 1))
            await copies(foreign, 1, position=number % (at + 1))
            for hook, text in ((hears, f"A{' job'[: number % 4]}"), (deaf, f"B{number}")):
                where = jsontext.dumps({"name": {"contains": text}})
                await copies(hook, 1, where_json=where)
        await maker.look(await idle.events.complete_until())
        before = await WebhookDelivery.all().count()
        await make_job(idle, viewer=MEMBER)
        until = await idle.events.complete_until()
        counted.append(await counting(maker.look(until)))
        made += more
        assert await WebhookDelivery.all().count() - before == 2 * made
        assert await WebhookDelivery.filter(webhook_id__in=[foreign.id, deaf.id]).count() == 0
    assert counted[0] == counted[1] == counted[2]


async def test_one_that_is_far_behind_holds_up_no_other(idle: Runtime) -> None:
    maker = Maker(idle, kept=KEPT)
    last = await make_hook(idle, NOWHERE)
    await make_job(idle, name="old")
    await write_many(2 * making.WINDOW)
    first = await make_hook(idle, NOWHERE)
    await make_job(idle, name="new")
    until = await idle.events.complete_until()
    assert await maker.look(until)
    told = await first.deliveries()
    assert [jsontext.loads(each.body)["data"]["name"] for each in told] == ["new"]
    while await maker.look(until):
        pass
    told = await last.deliveries()
    assert [jsontext.loads(each.body)["data"]["name"] for each in told] == ["old", "new"]
    assert len(await first.deliveries()) == 1


async def test_many_webhooks_hear_of_many_events_each_once(idle: Runtime) -> None:
    """More than is written at once; two workers look at the same time."""
    one = await make_hook(idle, NOWHERE)
    await copies(one, 29)
    for _ in range(40):
        await make_job(idle)
    until = await idle.events.complete_until()
    makers = [Maker(idle, kept=KEPT) for _ in range(2)]
    for _ in range(2):
        await asyncio.gather(*(maker.look(until) for maker in makers))
    rows = await WebhookDelivery.all().values_list("webhook_id", "seq")
    assert len(rows) == len(set(rows)) == 30 * 40
    assert set(Counter(webhook for webhook, _ in rows).values()) == {40}
    assert set(await Webhook.all().values_list("position", flat=True)) == {until}


# From which place


@pytest.fixture
async def elsewhere(database_url: str) -> AsyncIterator[Elsewhere]:
    dial = cast("Callable[[str], Awaitable[Connection]]", asyncpg.connect)
    other = Elsewhere(await dial(database_url))
    yield other
    await other.close()


@only_postgres
async def test_a_webhook_waits_for_what_was_begun_before_it_and_is_not_told_of_it(
    rt: Runtime, elsewhere: Elsewhere
) -> None:
    job = await make_job(rt)
    async with fake_agent(takes) as endpoint:
        await elsewhere.write(job.id)
        await make_job(rt, name="before")
        saving = asyncio.create_task(make_hook(rt, endpoint.url, types=["NOTE", "STATUS_CHANGE"]))
        await asyncio.sleep(0.3)  # for one that would not wait
        assert not saving.done()
        await elsewhere.end("COMMIT")
        hook = await saving
        await make_job(rt, name="after")
        assert [event["data"]["name"] for event in await heard(endpoint, 1)] == ["after"]
        assert len(await hook.settled(1)) == 1


@only_postgres
async def test_a_webhook_misses_nothing_that_is_committed_after_it_with_an_earlier_place(
    rt: Runtime, elsewhere: Elsewhere
) -> None:
    job = await make_job(rt)
    async with fake_agent(takes) as endpoint:
        late = await elsewhere.write(job.id)
        await make_job(rt)
        hook = await make_hook(rt, endpoint.url, types=["NOTE"])
        await elsewhere.end("COMMIT")
        (row,) = await hook.settled(1)
        assert row.seq == late


# How many


async def test_the_limit_holds_for_those_that_are_made_at_the_same_time(rt: Runtime) -> None:
    await make_hook(rt, NOWHERE, OTHER)
    made = await asyncio.gather(
        *(make_hook(rt, NOWHERE, MEMBER) for _ in range(hooks.MAX_PER_OWNER + 10)),
        return_exceptions=True,
    )
    refused = [each for each in made if isinstance(each, LimitExceeded)]
    assert [each.limit for each in refused] == [hooks.MAX_PER_OWNER] * 10
    assert await Webhook.filter(owner_id="mia").count() == hooks.MAX_PER_OWNER
    assert await Webhook.all().count() == hooks.MAX_PER_OWNER + 1


# For whom


async def test_members_hear_of_the_workspace_where_they_see_it(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path, members_see="workspace")
    started = runtime(settings, allow_private_agents=True, allow_private_webhooks=True)
    async with started as rt, fake_agent(takes) as endpoint:
        await keys.create("mia", Role.MEMBER)
        await make_hook(rt, endpoint.url, MEMBER)
        await make_job(rt, viewer=OTHER, name="olaf's")
        assert [event["data"]["name"] for event in await heard(endpoint, 1)] == ["olaf's"]


# What is broken


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("owner_role", "EMPEROR", enabled.DAMAGED),
        ("types_json", "{", making.UNMATCHED),
        ("types_json", '["PARTY"]', making.UNMATCHED),
        ("where_json", "{", making.UNMATCHED),
        ("where_json", '{"created_at": {"gt": "-P999999D"}}', making.UNMATCHED),
    ],
)
async def test_a_webhook_that_cannot_be_read_is_disabled_once_and_holds_up_no_other(
    rt: Runtime, column: str, value: str, reason: str
) -> None:
    async with fake_agent(takes) as endpoint:
        bad = await make_hook(rt, endpoint.url, enabled=False)
        where = f"WHERE \"id\" = '{bad.id}'"
        with capture_logs() as logs:
            sql = f'UPDATE "webhooks" SET "{column}" = \'{value}\', "enabled" = true {where}'  # noqa: S608
            await connections.get("default").execute_query(sql)
            await make_hook(rt, endpoint.url)
            for count in (1, 2, 3):
                await make_job(rt)
                await heard(endpoint, count)
        told = [each for each in logs if each["log_level"] != "debug"]
        assert [(each["event"], each["reason"]) for each in told] == [("webhook disabled", reason)]
        state = Webhook.filter(id=bad.id).values_list("enabled", "disabled_reason", "position")
        ((enabled, why, position),) = await state
        assert (enabled, why) == (False, reason)
        assert await bad.ends() == by_itself(reason)
        first = await JobLog.all().order_by("seq").first()
        assert first
        assert position < first.seq  # it goes on from there when it was mended


async def test_a_secret_that_cannot_sign_is_complained_of_once_and_shows(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await Webhook.filter(id=hook.id).update(secret_sealed=rt.vault.seal("no secret"))
        with capture_logs() as logs:
            for _ in range(4):
                await make_job(rt)

            async def failed() -> bool:
                rows = await hook.deliveries()
                return len(rows) == 4 and all(row.tries for row in rows)

            await until(failed)
        mistakes = [each for each in logs if each["log_level"] == "error"]
        assert [each["event"] for each in mistakes] == ["a delivery failed unexpectedly"]
        assert "no secret" not in str(logs)
        row = await hook.row()
        text = "A mistake on our side; the server's log has it."
        assert (row.failures, row.reason) == (4, text)
        assert {(each.state, each.error) for each in await hook.deliveries()} == {("PENDING", text)}
        saved = await hooks.rotate_secret(rt, ADMIN, hook.id, 0)
        await hook.let_due()
        assert len(await heard(endpoint, 4)) == 4
        assert saved.new_secret
        verified(endpoint.received[0], saved.new_secret)


# Old secrets


async def test_a_secret_that_cannot_be_read_is_not_kept_at_a_rotation(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        unreadable = Vault(Vault.new_key()).seal(hook.secret)
        await Webhook.filter(id=hook.id).update(secret_sealed=unreadable)
        saved = await hooks.rotate_secret(rt, ADMIN, hook.id, 60)
        row = await hook.row()
        assert (row.old_secret_sealed, row.old_secret_until) == (None, None)
        await make_job(rt)
        await heard(endpoint, 1)
        assert saved.new_secret
        verified(endpoint.received[0], saved.new_secret)


async def test_an_old_secret_that_cannot_be_read_does_not_sign(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        unreadable = Vault(Vault.new_key()).seal(hook.secret)
        later = datetime.now(UTC) + timedelta(hours=1)
        await Webhook.filter(id=hook.id).update(
            old_secret_sealed=unreadable, old_secret_until=later
        )
        await make_job(rt)
        await heard(endpoint, 1)
        verified(endpoint.received[0], hook.secret)
        assert " " not in endpoint.received[0].headers["webhook-signature"]


async def test_an_old_secret_is_erased_when_its_time_has_passed(rt: Runtime) -> None:
    brief, long = await make_hook(rt, NOWHERE), await make_hook(rt, NOWHERE)
    await hooks.rotate_secret(rt, ADMIN, long.id, 3600)
    saved = await hooks.rotate_secret(rt, ADMIN, brief.id, 1)
    assert saved.webhook.old_secret_sealed is not None

    async def erased() -> bool:
        return (await brief.row()).old_secret_until is None

    await until(erased)
    assert (await brief.row()).old_secret_sealed is None
    kept = await long.row()
    assert kept.old_secret_sealed
    assert rt.vault.open(kept.old_secret_sealed) == long.secret
    assert rt.vault.open((await brief.row()).secret_sealed) == saved.new_secret
