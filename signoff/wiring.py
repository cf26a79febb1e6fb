"""From settings to a running `Runtime`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial

import structlog

from services import execution, idempotency, queue, scheduling, shielding
from services.agent_http import AgentClient
from services.bounds import QueueBound
from services.bus import Bus, NoBus, PostgresBus
from services.engine import Engine, Work
from services.events import Events
from services.events.horizon import Gapless, InOrder
from services.judges.openai import OpenAIJudge
from services.judges.sandbox import Sandbox
from services.rates import BURST_SECONDS, Rates
from services.runtime import Options, Runtime
from services.secrets import Vault
from services.webhooks import deliveries, hooks
from services.webhooks.client import WebhookClient
from services.webhooks.deliverer import Deliverer
from signoff import database, otel
from signoff.settings import Settings

logger = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""How late another process's log entries are seen."""
SWEEP_SECONDS = 600


class BadSettings(Exception):
    """A setting that cannot be; the message says which and what to do."""


@asynccontextmanager
async def runtime(
    settings: Settings,
    *,
    allow_private_agents: bool,
    allow_private_webhooks: bool = False,
    work: bool = True,
) -> AsyncGenerator[Runtime]:
    """Everything started, on a migrated database; stopped again in reverse order.

    `work` False runs no executions here.
    """
    async with AsyncExitStack() as stack:
        if work:
            stack.enter_context(database.only_worker(settings.database_url))
        await database.migrate(settings.database_url)
        vault = Vault(secret_key(settings))
        await stack.enter_async_context(database.connected(settings.database_url))
        rt = Runtime(
            agents=await stack.enter_async_context(
                AgentClient(
                    allow_private=allow_private_agents,
                    max_response_bytes=settings.agent_max_response_bytes,
                )
            ),
            bus=_bus(settings),
            engine=Engine(
                alone=settings.on_sqlite,
                lease_seconds=settings.lease_seconds,
                heartbeat_seconds=settings.heartbeat_seconds,
                max_tasks=settings.max_executions,
            ),
            events=_events(settings),
            judge=_judge(settings),
            sandbox=Sandbox(),
            vault=vault,
            tracer=otel.tracer(os.environ),
            options=Options(
                allow_private_agents=allow_private_agents,
                allow_private_webhooks=allow_private_webhooks,
                members_see_workspace=settings.members_see == "workspace",
                agent_tries=settings.agent_tries,
                retry_initial_seconds=settings.retry_initial_seconds,
                retry_max_seconds=settings.retry_max_seconds,
                max_losses=settings.max_losses,
                circuit_failures=settings.circuit_failures,
                circuit_seconds=settings.circuit_seconds,
                public_url=settings.public_url,
                judge_input_usd=settings.judge_input_usd_per_million,
                judge_output_usd=settings.judge_output_usd_per_million,
            ),
            bound=QueueBound(settings.max_queued),
            rates=_rates(settings),
        )
        if rt.tracer is not None:
            stack.push_async_callback(asyncio.to_thread, rt.tracer.close)
        stack.push_async_callback(rt.sandbox.close)
        if rt.judge is not None:
            stack.push_async_callback(rt.judge.close)
        stack.push_async_callback(shielding.drain, rt)
        await rt.events.start()
        stack.push_async_callback(rt.events.stop)

        def heard(*, work: bool) -> None:
            rt.events.wake()
            if work:
                rt.engine.heard()

        await rt.bus.start(heard)
        stack.push_async_callback(rt.bus.stop)  # after the engine, which tells by it to the end
        kept = timedelta(days=settings.webhook_keep_days)
        if work:
            client = WebhookClient(allow_private=allow_private_webhooks)
            await stack.enter_async_context(client)
            seconds = settings.webhook_timeout_seconds
            deliverer = Deliverer(rt, client, seconds=seconds, kept=kept)
            deliverer.start()
            stack.push_async_callback(deliverer.stop)
            await rt.engine.start(_work(rt))
            stack.push_async_callback(rt.engine.stop, settings.shutdown_seconds)
        sweeper = asyncio.create_task(_sweep(kept))
        stack.callback(sweeper.cancel)
        yield rt


def _work(rt: Runtime) -> Work:
    return Work(
        run=partial(execution.run, rt),
        give_up=partial(execution.give_up, rt),
        aborted=partial(execution.aborted, rt),
        take_over=partial(execution.take_over, rt),
        due=partial(_due, rt),
    )


def _bus(settings: Settings) -> Bus:
    if settings.nats_url is None:
        return NoBus() if settings.on_sqlite else PostgresBus(settings.database_url)
    if settings.on_sqlite:
        raise BadSettings("SIGNOFF_NATS_URL is for several processes, and those need Postgres")
    try:
        from services.nats_bus import NatsBus  # noqa: PLC0415 - an extra
    except ImportError:
        raise BadSettings("SIGNOFF_NATS_URL needs the extra: pip install 'signoff[nats]'") from None
    return NatsBus(settings.nats_url.get_secret_value())


async def _due(rt: Runtime, now: datetime) -> datetime | None:
    """What the clock asks for; returns when it asks again."""
    return queue.earliest(await scheduling.due(rt, now), await hooks.erase_old_secrets(now))


def _events(settings: Settings) -> Events:
    if settings.on_sqlite:
        return Events(InOrder(), None)
    return Events(Gapless(), POLL_SECONDS)


def _rates(settings: Settings) -> Rates:
    """The dearest operation must fit into what may be used at once."""
    if not settings.rate_per_minute:
        return Rates()
    at_once = settings.rate_per_minute * BURST_SECONDS // 60
    return Rates(settings.rate_per_minute, burst=max(at_once, settings.max_cost))


def _judge(settings: Settings) -> OpenAIJudge | None:
    if settings.openai_api_key is None:
        return None
    return OpenAIJudge(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        model=settings.judge_model,
        timeout_seconds=settings.judge_timeout_seconds,
        max_output_tokens=settings.judge_max_output_tokens,
    )


async def _sweep(kept: timedelta) -> None:
    """Forget answered mutations too old to be repeated, and deliveries older than `kept`."""
    while True:
        try:
            await idempotency.forget()
            await deliveries.forget(kept)
        except Exception:
            logger.exception("sweeping failed; trying again later")
        await asyncio.sleep(SWEEP_SECONDS)


def secret_key(settings: Settings) -> str:
    """The key that seals secrets: the setting, or the key file, made with mode 0600 if need be."""
    if settings.secret_key is not None:
        key = settings.secret_key.get_secret_value()
        source = "SIGNOFF_SECRET_KEY"
    else:
        key = _key_file(settings)
        source = str(settings.key_file)
    try:
        Vault(key)
    except ValueError:
        raise BadSettings(
            f"{source} is not a Fernet key (32 bytes in URL-safe base64); make one with: python -c "
            '"from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
        ) from None
    return key


def _key_file(settings: Settings) -> str:
    file = settings.key_file
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text().strip()
    except OSError as error:
        raise BadSettings(
            f"the key file {file} cannot be made ({error.strerror}); "
            "set SIGNOFF_KEY_FILE or SIGNOFF_SECRET_KEY"
        ) from None
    key = Vault.new_key()
    with os.fdopen(descriptor, "w") as out:
        out.write(key + "\n")
    return key
