"""What webhooks deliver, to whom, and what becomes of deliveries that fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import WebhookVerificationError

from models import ApiKey, JobLog, JobLogType, Role, Webhook, WebhookDelivery, WebhookDeliveryState
from services import jobs, keys, verification, workspaces
from services.errors import Forbidden, InvalidInput, NotFound
from services.jobs import CreateJob
from services.paging import Window, encode_position
from services.runtime import Runtime
from services.values import public_id
from services.webhooks import deliveries, enabled, hooks, outcomes, payloads, schedule
from services.webhooks.claims import PER_WEBHOOK
from services.webhooks.hooks import SaveWebhook
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support.hooks import Hook, by_itself, heard, ids, make_hook, takes, told, verified
from tests.support.making import (
    ADMIN,
    MEMBER,
    OTHER,
    answers,
    execute,
    holds,
    in_turn,
    make_agent,
    make_job,
    says_ok,
    stalls,
    until,
)

PENDING, SUCCEEDED, FAILED = (
    WebhookDeliveryState.PENDING,
    WebhookDeliveryState.SUCCEEDED,
    WebhookDeliveryState.FAILED,
)
refuses = answers({"secret": "no"}, "500 Internal Server Error")
goes = answers({}, "410 Gone")


async def completed(rt: Runtime, **given: Any) -> Any:
    async with fake_agent(says_ok) as agent:
        job = await make_job(rt, await make_agent(rt, agent.url), **given)
        return await execute(rt, job)


# What is told


async def test_every_status_change_is_told_once_in_order_and_signed(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        job = await completed(rt, name="Name")
        told = [verified(each, hook.secret) for each in await received(endpoint, 3)]
        entries = await JobLog.filter(type=JobLogType.STATUS_CHANGE).order_by("seq")
        assert told == [
            {
                "type": "job.status_changed",
                "timestamp": entry.created_at.isoformat().replace("+00:00", "Z"),
                "data": {
                    "cursor": encode_position(entry.seq),
                    "logId": public_id("log", entry.seq),
                    "jobId": public_id("job", job.id),
                    "name": "Name",
                    "status": status,
                    "from": source,
                    "reason": reason,
                    "version": version,
                    "attempt": attempt,
                },
            }
            for entry, (status, source, reason, version, attempt) in zip(
                entries,
                [
                    ("ASSIGNED", None, "CREATED", 1, 0),
                    ("IN_EXECUTION", "ASSIGNED", "EXECUTION_REQUESTED", 2, 1),
                    ("COMPLETED", "IN_EXECUTION", "VERDICT_PASSED", job.version, 1),
                ],
                strict=True,
            )
        ]
        rows = await hook.settled(3)
        assert [(row.state, row.attempts, row.status_code) for row in rows] == [
            (SUCCEEDED, 1, 200)
        ] * 3
        assert ids(endpoint.received) == [public_id("delivery", row.id) for row in rows]
        assert list(endpoint.received[0].headers)[1:6] == [
            "content-type",
            "accept-encoding",
            "user-agent",
            "webhook-id",
            "webhook-timestamp",
        ]
        assert endpoint.received[0].start_line == "POST /run HTTP/1.1"


async def received(endpoint: FakeAgent, count: int) -> list[Received]:
    await heard(endpoint, count)
    return endpoint.received[:count]


async def test_a_signature_of_another_secret_or_body_is_refused(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (one,) = await received(endpoint, 1)
        other = await make_hook(rt, endpoint.url)
        with pytest.raises(WebhookVerificationError):
            verified(one, other.secret)
        one.body += b" "
        with pytest.raises(WebhookVerificationError):
            verified(one, hook.secret)


def test_every_type_of_entry_has_a_type_of_event() -> None:
    assert set(payloads.TYPES) == set(JobLogType)
    assert len(set(payloads.TYPES.values())) == len(payloads.TYPES)


async def test_only_the_types_asked_for_are_told(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint, fake_agent(takes) as other:
        await make_hook(rt, endpoint.url, types=["VERDICT", "AGENT_RESPONSE"])
        await make_hook(rt, other.url, types=["NOTE"])
        job = await completed(rt)
        events = await heard(endpoint, 2)
        assert [event["type"] for event in events] == ["job.agent_answered", "job.judged"]
        assert events[1]["data"]["from"] is None
        await jobs.add_note(rt, ADMIN, job.id, "Well done.")
        assert [event["type"] for event in await heard(other, 1)] == ["job.noted"]
        assert "Well done" not in str(told(other.received))


async def test_a_filter_is_held_against_the_job(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        where = {"tags": {"any": ["loud"]}, "priority": {"gte": "HIGH"}}
        hook = await make_hook(rt, endpoint.url, where=where)
        for name, tags, priority in (("a", ["loud"], 1), ("b", [], 3), ("c", ["loud"], 2)):
            await make_job(rt, name=name, tags=tags, priority=priority)
        events = await heard(endpoint, 1)
        assert [event["data"]["name"] for event in events] == ["c"]
        assert len(await hook.settled(1)) == 1


async def test_events_before_a_webhook_was_made_are_not_told(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        await make_job(rt, name="before")
        await make_hook(rt, endpoint.url)
        await make_job(rt, name="after")
        assert [event["data"]["name"] for event in await heard(endpoint, 1)] == ["after"]


async def test_a_disabled_webhook_goes_on_from_its_place_when_enabled(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt, name="one")
        await heard(endpoint, 1)
        await change(rt, hook, endpoint, enabled=False)
        other = await make_hook(rt, endpoint.url)
        await make_job(rt, name="two")
        await heard(endpoint, 2)
        await other.settled(1)
        assert len(await hook.deliveries()) == 1
        await change(rt, hook, endpoint, enabled=True)
        events = await heard(endpoint, 3)
        assert [event["data"]["name"] for event in events] == ["one", "two", "two"]


async def test_events_older_than_deliveries_are_kept_are_left_out(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url, enabled=False)
        await make_job(rt, name="old")
        await JobLog.all().update(created_at=datetime.now(UTC) - timedelta(days=31))
        await make_job(rt, name="new")
        await change(rt, hook, endpoint, enabled=True)
        assert [event["data"]["name"] for event in await heard(endpoint, 1)] == ["new"]


async def change(rt: Runtime, hook: Hook, endpoint: FakeAgent, **given: Any) -> None:
    wanted = {"id": hook.id, "url": endpoint.url, "types": ["STATUS_CHANGE"]}
    await hooks.save(rt, ADMIN, SaveWebhook.model_validate(wanted | given))


# For whom


async def test_a_webhook_hears_of_its_workspace_alone(rt: Runtime) -> None:
    other = await workspaces.create("other")
    elsewhere = replace(MEMBER, workspace_id=other.id)
    async with fake_agent(takes) as endpoint:
        await make_hook(rt, endpoint.url, ADMIN)
        foreign = await make_job(rt, viewer=elsewhere, name="foreign")
        own = await make_job(rt, name="own")
        assert [event["data"]["name"] for event in await heard(endpoint, 1)] == ["own"]
        hook = await Webhook.get()
    assert own.workspace_id == hook.workspace_id
    assert foreign.workspace_id == other.id
    for stranger in (replace(ADMIN, workspace_id=other.id), replace(ADMIN, agents=frozenset())):
        with pytest.raises(NotFound):
            await hooks.get(stranger, hook.id)
        assert (await hooks.page(stranger, Window())).rows == []
    before = await Webhook.all().values()
    with pytest.raises(Forbidden, match="cannot manage keys or webhooks"):
        await make_hook(rt, "http://127.0.0.1:9/", replace(MEMBER, agents=frozenset()))
    assert await Webhook.all().values() == before


async def test_a_webhook_tells_what_its_owner_sees_at_that_time(rt: Runtime) -> None:
    for name, role in (("mia", Role.MEMBER), ("olaf", Role.MEMBER), ("ada", Role.ADMIN)):
        await keys.create(name, role)
    ada = keys.viewer_of((await keys.create("ada", Role.ADMIN))[0])
    async with fake_agent(takes) as mias, fake_agent(takes) as olafs, fake_agent(takes) as adas:
        mia = await make_hook(rt, mias.url, MEMBER)
        await make_hook(rt, olafs.url, OTHER)
        await make_hook(rt, adas.url, ada)
        for number in range(3):
            await make_job(rt, viewer=MEMBER, name=f"mia's {number}")
            await make_job(rt, viewer=OTHER, name=f"olaf's {number}")
        assert len(await heard(adas, 6)) == 6
        assert {event["data"]["name"][:3] for event in await heard(mias, 3)} == {"mia"}
        assert {event["data"]["name"][:4] for event in await heard(olafs, 3)} == {"olaf"}
        assert len(mias.received) == len(olafs.received) == 3
        for key in await ApiKey.filter(name="ada"):
            await keys.revoke(key.prefix)
        await keys.create("ada", Role.MEMBER)
        await keys.create("mia", Role.ADMIN)
        await make_job(rt, viewer=OTHER, name="olaf's last")
        await make_job(rt, viewer=replace(ada, role=Role.MEMBER), name="ada's own")
        assert (await heard(adas, 7))[6]["data"]["name"] == "ada's own"
        await make_job(rt, viewer=MEMBER, name="mia's last")
        assert (await heard(mias, 4))[3]["data"]["name"] == "mia's last"
        assert len(await mia.settled(4)) == 4
        assert len(adas.received) == 7


async def test_a_lower_key_of_the_same_name_takes_nothing_over(rt: Runtime) -> None:
    """What an admin's key was told, or was still to be told, does not go where a member says."""
    high, low = [
        keys.viewer_of((await keys.create("ada", role))[0]) for role in (Role.ADMIN, Role.MEMBER)
    ]
    async with fake_agent(refuses) as endpoint, fake_agent(takes) as thief:
        hook = await make_hook(rt, endpoint.url, high)
        await make_job(rt, viewer=OTHER, name="olaf's")
        (row,) = await tries(hook, 1)
        wanted = {"id": hook.id, "url": thief.url, "types": ["STATUS_CHANGE"]}
        await hooks.save(rt, low, SaveWebhook.model_validate(wanted))
        changed = await hook.row()
        assert (changed.owner_role, changed.enabled) == (Role.MEMBER, True)
        assert changed.disabled_reason is None
        assert await hook.deliveries() == []
        with pytest.raises(NotFound):
            await deliveries.redeliver(rt, low, row.id)
        await make_job(rt, viewer=OTHER, name="olaf's last")
        await make_job(rt, viewer=low, name="ada's")
        assert [event["data"]["name"] for event in await heard(thief, 1)] == ["ada's"]
        assert len(await hook.settled(1)) == 1


async def test_a_token_saves_no_webhook(rt: Runtime) -> None:
    by_token = replace(ADMIN, id="oidc:eve")
    hook = await make_hook(rt, "http://127.0.0.1:9/")
    before = await Webhook.all().values()
    with pytest.raises(Forbidden, match="with an API key, not with a token"):
        await make_hook(rt, "http://127.0.0.1:9/", by_token)
    wanted = {"id": hook.id, "url": "http://127.0.0.1:8/", "types": ["NOTE"]}
    with pytest.raises(Forbidden, match="with an API key, not with a token"):
        await hooks.save(rt, by_token, SaveWebhook.model_validate(wanted))
    assert await Webhook.all().values() == before


async def test_who_has_no_key_any_more_is_told_nothing(rt: Runtime) -> None:
    key, _ = await keys.create("mia", Role.MEMBER)
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url, MEMBER)
        await make_job(rt, viewer=MEMBER)
        await heard(endpoint, 1)
        await keys.revoke(key.prefix)
        await keys.create("mia", Role.VIEWER)
        await make_job(rt, viewer=MEMBER)

        async def disabled() -> bool:
            return not (await hook.row()).enabled

        await until(disabled)
        assert (await hook.row()).disabled_reason == enabled.KEYLESS
        assert await hook.ends() == by_itself(enabled.KEYLESS)
        assert len(await hook.deliveries()) == len(endpoint.received) == 1


# Secrets


async def test_a_rotated_secret_signs_beside_the_old_one_for_a_time(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        saved = await hooks.rotate_secret(rt, ADMIN, hook.id, 60)
        await make_job(rt)
        (both,) = await received(endpoint, 1)
        assert len(both.headers["webhook-signature"].split(" ")) == 2
        assert saved.new_secret
        assert verified(both, saved.new_secret) == verified(both, hook.secret)
        await Webhook.filter(id=hook.id).update(old_secret_until=datetime.now(UTC))
        await make_job(rt)
        _, alone = await received(endpoint, 2)
        verified(alone, saved.new_secret)
        with pytest.raises(WebhookVerificationError):
            verified(alone, hook.secret)


async def test_a_leaked_secret_is_replaced_at_once(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        saved = await hooks.rotate_secret(rt, ADMIN, hook.id, 0)
        await make_job(rt)
        (one,) = await received(endpoint, 1)
        assert saved.new_secret
        verified(one, saved.new_secret)
        assert len(one.headers["webhook-signature"].split(" ")) == 1
        assert (await hook.row()).old_secret_sealed is None


async def test_secrets_and_addresses_are_sealed_at_rest(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, f"{endpoint.url}?token=t0ken")
        row = str(vars(await hook.row()))
        assert "t0ken" not in row
        assert "127.0.0.1" not in row
        assert hook.secret not in row


# What fails


async def test_a_failed_delivery_is_tried_again_by_the_schedule_with_one_id(rt: Runtime) -> None:
    async with fake_agent(refuses) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        for tried in range(1, 8):
            (row,) = await tries(hook, tried)
            assert (row.state, row.attempts, row.status_code) == (PENDING, tried, 500)
            assert row.error == "It answered 500 Internal Server Error."
            seconds = schedule.pause(row.id, tried)
            assert row.attempted_at
            assert seconds
            assert row.next_attempt_at == row.attempted_at + timedelta(seconds=seconds)
            await hook.let_due()
        (row,) = await tries(hook, 8)
        assert (row.state, row.attempts, row.next_attempt_at) == (FAILED, 8, None)
        assert len(set(ids(endpoint.received))) == 1
        assert len({each.body for each in endpoint.received}) == 1
        assert "secret" not in str(vars(row))


async def tries(hook: Hook, count: int) -> list[WebhookDelivery]:
    async def found() -> list[WebhookDelivery] | None:
        rows = await hook.deliveries()
        return rows if rows and all(row.tries == count and settled(row) for row in rows) else None

    return await until(found)


def settled(row: WebhookDelivery) -> bool:
    return row.state is not WebhookDeliveryState.SENDING


def test_pauses_grow_over_a_day_with_a_bit_of_jitter() -> None:
    one, two = UUID(int=1), UUID(int=2)
    for failed, seconds in enumerate(schedule.PAUSES, 1):
        for each in (one, two):
            pause = schedule.pause(each, failed)
            assert pause == schedule.pause(each, failed)
            assert pause is not None
            assert seconds <= pause < seconds * 1.1
        assert schedule.pause(one, failed) != schedule.pause(two, failed)
    assert schedule.pause(one, len(schedule.PAUSES) + 1) is None
    assert 86_400 < sum(schedule.PAUSES) < 1.2 * 86_400


@pytest.mark.parametrize(
    ("asked", "seconds"), [("120", 120), ("1", None), ("999999", 3600), ("soon", None)]
)
async def test_retry_after_is_kept_to_within_an_hour(
    rt: Runtime, asked: str, seconds: float | None
) -> None:
    busy = answers({}, "429 Too Many Requests", f"retry-after: {asked}")
    async with fake_agent(busy) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await tries(hook, 1)
        assert row.attempted_at
        assert row.next_attempt_at
        wanted = seconds or schedule.pause(row.id, 1)
        assert row.next_attempt_at - row.attempted_at == timedelta(seconds=wanted or 0)
        webhook = await hook.row()
        if asked == "soon":
            assert webhook.open_until is None
        else:  # the others are not sent meanwhile either
            assert webhook.open_until
            assert webhook.open_until > row.attempted_at


async def test_who_is_gone_is_disabled_and_told_when_it_is_back(rt: Runtime) -> None:
    """It wants no more events now: what was under way to it is not given up for that."""

    async def goes_at_once(received: Received) -> None:
        await holds(lambda: len(endpoint.received) == 3)
        await goes(received)

    async with fake_agent(goes_at_once) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        for _ in range(3):
            await make_job(rt)
        rows = await tries(hook, 1)
        assert {(row.state, row.status_code) for row in rows} == {(PENDING, 410)}
        row = rows[0]
        webhook = await hook.row()
        assert (webhook.enabled, webhook.disabled_reason) == (
            False,
            "It answered 410 Gone: it wants no more events.",
        )
        assert await hook.ends() == by_itself(outcomes.GONE)
        with pytest.raises(InvalidInput, match="disabled"):
            await deliveries.redeliver(rt, ADMIN, row.id)
        with pytest.raises(InvalidInput, match="disabled"):
            await deliveries.test(rt, ADMIN, hook.id)
        endpoint.behave = takes
        await change(rt, hook, endpoint, enabled=True)
        webhook = await hook.row()
        assert (webhook.enabled, webhook.disabled_reason) == (True, None)
        await deliveries.redeliver(rt, ADMIN, row.id)
        await hook.let_due()
        rows = await hook.settled(3)
        assert {(row.state, row.attempts) for row in rows} == {(SUCCEEDED, 2)}
        assert len(set(ids(endpoint.received))) == 3


async def test_an_answer_of_an_old_address_says_nothing_of_the_new(rt: Runtime) -> None:
    changed = asyncio.Event()

    async def goes_late(received: Received) -> None:
        await changed.wait()
        await goes(received)

    async with fake_agent(goes_late) as old, fake_agent(takes) as new:
        hook = await make_hook(rt, old.url)
        await make_job(rt)
        await heard(old, 1)
        await change(rt, hook, new)
        changed.set()
        (row,) = await tries(hook, 1)
        assert (row.state, row.status_code) == (PENDING, 410)
        webhook = await hook.row()
        assert (webhook.enabled, webhook.failures, webhook.reason) == (True, 0, None)
        assert await hook.ends() == []


async def test_who_has_only_failed_for_days_is_disabled(rt: Runtime) -> None:
    async with fake_agent(refuses) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        await tries(hook, 1)
        long_ago = datetime.now(UTC) - schedule.DISABLED_AFTER
        await Webhook.filter(id=hook.id).update(failing_since=long_ago, failures=8)
        await hook.let_due()
        await tries(hook, 2)
        assert (await hook.row()).enabled is True
        await hook.let_due()
        await tries(hook, 3)
        webhook = await hook.row()
        assert (webhook.enabled, webhook.disabled_reason) == (
            False,
            "It has only failed for 5 days. The last time: It answered 500 Internal Server Error.",
        )
        assert await hook.ends() == by_itself(webhook.disabled_reason or "")
        assert (await verification.of_workspace(ADMIN, int)).ok


@pytest.mark.parametrize(
    ("behave", "status", "error"),
    [
        (
            answers({}, "302 Found", "location: http://127.0.0.1:1/"),
            302,
            "It answered 302 Found. Redirects are not followed.",
        ),
        (answers({}, "299 Odd"), 299, None),
        (answers({}, "404 Not Found"), 404, "It answered 404 Not Found."),
    ],
)
async def test_only_a_success_counts_as_one(
    rt: Runtime, behave: Any, status: int, error: str | None
) -> None:
    async with fake_agent(behave) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await tries(hook, 1)
        assert (row.status_code, row.error) == (status, error)
        assert row.state is (PENDING if error else SUCCEEDED)


async def hangs_up(received: Received) -> None:
    received.close()


async def speaks_nonsense(received: Received) -> None:
    await received.send(b"HELO\r\n\r\n")
    received.close()


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (hangs_up, "It closed the connection without an answer."),
        (speaks_nonsense, "Its answer is not valid HTTP."),
    ],
)
async def test_a_broken_answer_is_a_failed_try(rt: Runtime, behave: Any, error: str) -> None:
    async with fake_agent(behave) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await tries(hook, 1)
        assert (row.state, row.status_code, row.error) == (PENDING, None, error)


async def floods(received: Received) -> None:
    await received.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
    while True:
        await received.send(b"x" * 65_536)


async def test_an_endless_answer_is_not_read(rt: Runtime) -> None:
    async with fake_agent(floods) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await hook.settled(1)
        assert (row.state, row.status_code) == (SUCCEEDED, 200)
        await endpoint.all_closed()


# The circuit


async def test_a_circuit_opens_lets_one_through_and_closes(rt: Runtime) -> None:
    async with fake_agent(refuses) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        for _ in range(40):
            await make_job(rt)

        async def is_open() -> bool:
            return (await hook.row()).open_until is not None

        await until(is_open)

        async def none_sending() -> bool:
            return not [row for row in await hook.deliveries() if not settled(row)]

        await until(none_sending)
        asked = len(endpoint.received)
        assert 5 <= asked < 5 + PER_WEBHOOK
        webhook = await hook.row()
        assert (webhook.failures, webhook.opened) == (asked, 1)
        assert webhook.reason == "It answered 500 Internal Server Error."
        await Webhook.filter(id=hook.id).update(open_until=datetime.now(UTC))
        await holds(lambda: len(endpoint.received) == asked + 1)

        async def opened_again() -> bool:
            return (await hook.row()).opened == 2

        await until(opened_again)
        endpoint.behave = takes
        await hook.let_due()
        rows = await hook.settled(40)
        assert {row.state for row in rows} == {SUCCEEDED}
        webhook = await hook.row()
        assert (webhook.failures, webhook.opened, webhook.open_until) == (0, 0, None)
        assert (webhook.reason, webhook.failing_since) == (None, None)


async def test_a_slow_endpoint_gets_few_requests_and_delays_no_other(rt: Runtime) -> None:
    async with fake_agent(stalls) as slow, fake_agent(takes) as quick:
        await make_hook(rt, slow.url)
        await make_hook(rt, quick.url)
        for _ in range(20):
            await make_job(rt)
        assert len(await heard(quick, 20)) == 20
        assert len(slow.received) == PER_WEBHOOK


async def test_events_of_one_job_wait_for_each_other(rt: Runtime) -> None:
    async with fake_agent(stalls) as slow, fake_agent(takes) as quick:
        hook = await make_hook(rt, slow.url)
        await make_hook(rt, quick.url)
        job = await completed(rt)
        await heard(quick, 3)
        assert len(slow.received) == 1
        assert len(await hook.deliveries()) == 3
        await make_job(rt)
        first, second = await heard(slow, 2)
        assert first["data"]["jobId"] == public_id("job", job.id)
        assert second["data"]["jobId"] != public_id("job", job.id)


# By hand


async def test_a_redelivery_has_the_same_id_and_all_its_tries(rt: Runtime) -> None:
    async with fake_agent(in_turn(takes, refuses)) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await hook.settled(1)
        again = await deliveries.redeliver(rt, ADMIN, row.id)
        assert (again.state, again.attempts, again.tries) == (PENDING, 1, 0)
        await heard(endpoint, 2)
        (row,) = await tries(hook, 1)
        assert (row.state, row.attempts, row.status_code) == (PENDING, 2, 500)
        assert ids(endpoint.received) == [public_id("delivery", row.id)] * 2
        assert endpoint.received[0].body == endpoint.received[1].body


async def test_a_redelivery_is_let_through_an_open_circuit(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt)
        (row,) = await hook.settled(1)
        later = datetime.now(UTC) + timedelta(hours=1)
        await Webhook.filter(id=hook.id).update(open_until=later, failures=5, opened=1)
        await deliveries.redeliver(rt, ADMIN, row.id)
        await heard(endpoint, 2)

        async def closed() -> bool:
            return (await hook.row()).open_until is None

        await until(closed)


async def test_a_test_tells_of_nothing(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        made = await deliveries.test(rt, ADMIN, hook.id)
        assert made.state is PENDING
        (one,) = await received(endpoint, 1)
        event = verified(one, hook.secret)
        assert event["type"] == "webhook.test"
        assert event["data"] == {"webhookId": public_id("webhook", hook.id)}
        (row,) = await hook.settled(1)
        assert (row.state, row.seq, row.job_id) == (SUCCEEDED, None, None)


async def test_old_deliveries_are_forgotten(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        await make_job(rt, name="old")
        await make_job(rt, name="new")
        old, new = await hook.settled(2)
        before = datetime.now(UTC) - timedelta(days=30)
        await WebhookDelivery.filter(id=old.id).update(created_at=before)
        assert await deliveries.forget(timedelta(days=30)) == 1
        assert [row.id for row in await hook.deliveries()] == [new.id]


async def test_a_deleted_webhook_takes_its_deliveries_along(rt: Runtime) -> None:
    async with fake_agent(takes) as endpoint:
        hook = await make_hook(rt, endpoint.url)
        other = await make_hook(rt, endpoint.url)
        for _ in range(3):
            await make_job(rt)
        await hook.settled(3)
        await other.settled(3)
        await hooks.delete(rt, ADMIN, hook.id)
        assert await Webhook.all().count() == 1
        assert await WebhookDelivery.all().count() == 3


async def test_a_job_made_while_webhooks_are_saved_is_told(rt: Runtime) -> None:
    """Whatever is done after the answer to the save is an event for it."""
    async with fake_agent(takes) as endpoint:
        for number in range(5):
            hook = await make_hook(rt, endpoint.url)
            made = await jobs.create(
                rt,
                MEMBER,
                CreateJob.model_validate(
                    {"name": f"{number}", "acceptance_criteria": {"text": "- It is good."}}
                ),
            )
            (row,) = await hook.settled(1)
            assert row.job_id == made.id
            await hooks.delete(rt, ADMIN, hook.id)
