"""Deliveries per second to one webhook, on SQLite and on Postgres side by side.

    python benchmarks/webhooks.py postgres://…     # an empty database; SQLite is a file of its own

An endpoint process on loopback that answers 204 at once, and a worker in this process. The events
are in the log before the webhook is enabled; the clock runs from its first delivery until the last
one is noted as SUCCEEDED: making the deliveries, sending them, and writing down what came of it.

Then how long one look at a page of the log takes for a thousand webhooks, each with a filter of its
own that lets nothing through: the look that first sees them, which makes their SQL, and later ones.
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
from datetime import timedelta
from pathlib import Path

import uvloop
from aiohttp import web

from models import Webhook, WebhookDelivery, WebhookDeliveryState, statements
from models.base import uuid7
from services import filters, jobs
from services.actors import LOCAL_ADMIN
from services.filters import JobFilter
from services.jobs import CreateJob
from services.runtime import Runtime
from services.webhooks import hooks
from services.webhooks.hooks import SaveWebhook
from services.webhooks.making import PAGE, Maker
from signoff import cli
from signoff.settings import Settings
from signoff.wiring import runtime

PORT = 8393
URL = f"http://127.0.0.1:{PORT}/"
AT_ONCE = 50
FILTERS = 1000


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


def one_filter(number: int) -> JobFilter:
    """One of six kinds, and different from all others."""
    kinds = (
        {"name": {"contains": f"job {number}"}},
        {"tags": {"any": [f"tag{number}", "loud"]}, "priority": {"gte": "HIGH"}},
        {"status": {"in_": ["PENDING", "ASSIGNED"]}, "created_by": {"eq": f"mia{number}"}},
        {"agent": {"name": {"starts_with": f"A{number}"}}},
        {"created_at": {"gt": "-P7D"}, "name": {"eq": f"{number}"}},
        {"or_": [{"name": {"starts_with": f"x{number}"}}, {"blocked": True}]},
    )
    return JobFilter.model_validate(kinds[number % len(kinds)])


async def seconds_a_look(rt: Runtime) -> list[float]:
    """The first look, and those after it."""
    command = SaveWebhook.model_validate({"url": URL, "types": ["STATUS_CHANGE"]})
    saved = (await hooks.save(rt, LOCAL_ADMIN, command)).webhook
    columns = {name: getattr(saved, name) for name in statements.attributes(Webhook)}
    wheres = [filters.stored(one_filter(number)) for number in range(FILTERS)]
    others = [Webhook(**columns | {"id": uuid7(), "where_json": where}) for where in wheres]
    await Webhook.bulk_create(others)
    await hooks.delete(rt, LOCAL_ADMIN, saved.id)
    maker, taken = Maker(rt, kept=timedelta(days=30)), list[float]()
    for _ in range(6):
        await make_events(rt, PAGE - 1)
        until = await rt.events.complete_until()
        began = time.perf_counter()
        await maker.look(until)
        taken.append(time.perf_counter() - began)
    return taken


async def measure(database_url: str | None, count: int) -> float:
    """The best of three runs."""
    with tempfile.TemporaryDirectory() as folder, endpoint_process():
        settings = Settings(
            database_url=database_url or f"sqlite://{folder}/signoff.db",
            key_file=Path(folder) / "signoff.key",
            openai_api_key=None,
        )
        private = {"allow_private_agents": True, "allow_private_webhooks": True}
        async with runtime(settings, **private) as rt:
            await deliveries_a_second(rt, 100)  # warm
            cli.keep_what_is_loaded()
            runs = [await deliveries_a_second(rt, count) for _ in range(3)]
        async with runtime(settings, **private, work=False) as rt:
            first, *looks = await seconds_a_look(rt)
    each = ", ".join(f"{run:.0f}" for run in runs)
    name = "Postgres" if database_url else "SQLite"
    print(f"{name:9}{max(runs):8.0f} deliveries/s   (runs {each})")
    told = ", ".join(f"{look * 1000:.0f}" for look in looks)
    print(f"{name:9}{FILTERS} filters, {PAGE} events: {first * 1000:.0f} ms, then {told}")
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
