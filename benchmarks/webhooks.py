"""Deliveries per second to one webhook, on SQLite and on Postgres side by side.

    python benchmarks/webhooks.py postgres://…     # an empty database; SQLite is a file of its own

An endpoint process on loopback that answers 204 at once, and a worker in this process. The events
are in the log before the webhook is enabled; the clock runs from its first delivery until the last
one is noted as SUCCEEDED: making the deliveries, sending them, and writing down what came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import uvloop
from aiohttp import web

from models import Webhook, WebhookDelivery, WebhookDeliveryState
from services import jobs
from services.actors import LOCAL_ADMIN
from services.jobs import CreateJob
from services.runtime import Runtime
from services.webhooks import hooks
from services.webhooks.hooks import SaveWebhook
from signoff import cli
from signoff.settings import Settings
from signoff.wiring import runtime

PORT = 8393
URL = f"http://127.0.0.1:{PORT}/"
AT_ONCE = 50


def endpoint() -> None:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", answer)
    web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)


@contextmanager
def endpoint_process() -> Generator[None]:
    there = multiprocessing.get_context("spawn").Process(target=endpoint, daemon=True)
    there.start()
    try:
        yield
    finally:
        there.terminate()


async def make_events(rt: Runtime, count: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    draft = {"name": "benchmark", "acceptance_criteria": {"text": "- It is good."}}

    async def one() -> None:
        async with gate:
            await jobs.create(rt, LOCAL_ADMIN, CreateJob.model_validate(draft))

    await asyncio.gather(*[one() for _ in range(count)])


async def deliveries_a_second(rt: Runtime, count: int) -> float:
    command = SaveWebhook.model_validate({"url": URL, "types": ["STATUS_CHANGE"], "enabled": False})
    hook = (await hooks.save(rt, LOCAL_ADMIN, command)).webhook
    await make_events(rt, count)
    done = WebhookDelivery.filter(webhook_id=hook.id, state=WebhookDeliveryState.SUCCEEDED)
    await Webhook.filter(id=hook.id).update(enabled=True)
    while not await WebhookDelivery.filter(webhook_id=hook.id).exists():
        await asyncio.sleep(0.005)
    began = time.perf_counter()
    while await done.count() < count:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    await hooks.delete(rt, LOCAL_ADMIN, hook.id)
    return count / seconds


async def measure(database_url: str | None, count: int) -> float:
    """The best of three runs."""
    with tempfile.TemporaryDirectory() as folder, endpoint_process():
        settings = Settings(
            database_url=database_url or f"sqlite://{folder}/signoff.db",
            key_file=Path(folder) / "signoff.key",
            openai_api_key=None,
        )
        async with runtime(settings, allow_private_agents=True, allow_private_webhooks=True) as rt:
            await deliveries_a_second(rt, 100)  # warm
            cli.keep_what_is_loaded()
            runs = [await deliveries_a_second(rt, count) for _ in range(3)]
    each = ", ".join(f"{run:.0f}" for run in runs)
    name = "Postgres" if database_url else "SQLite"
    print(f"{name:9}{max(runs):8.0f} deliveries/s   (runs {each})")
    return max(runs)


def measured(database_url: str | None, count: int) -> float:
    return uvloop.run(measure(database_url, count))


def apart(database_url: str | None, count: int) -> float:
    """In a process of its own: Tortoise remembers one database's SQL for the next."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measured, database_url, count).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", help="postgres://… of an empty database")
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    on_sqlite = apart(None, given.count)
    on_postgres = apart(given.database, given.count)
    print(f"Postgres / SQLite {on_postgres / on_sqlite:.2f}")


if __name__ == "__main__":
    main()
