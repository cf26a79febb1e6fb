#!/usr/bin/env python3
import asyncio
import base64
import hmac
import os
import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientSession, web

KEY = base64.b64decode(os.environ["SIGNING_SECRET"].removeprefix("whsec_"))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
work: dict[str, asyncio.Task[dict[str, str]]] = {}


@web.middleware
async def signed(request: web.Request, handler: Handler) -> web.StreamResponse:
    body, headers = await request.read(), request.headers
    at, signature = headers.get("webhook-timestamp", ""), headers.get("webhook-signature", "")
    text = f"{headers.get('webhook-id')}.{at}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.digest(KEY, text, "sha256"))
    if not hmac.compare_digest(expected, signature.encode()) or time.time() - int(at) > 5 * 60:
        raise web.HTTPUnauthorized(text="Not signed by Signoff, or too long ago.")
    return await handler(request)


async def accept(request: web.Request) -> web.Response:
    key, callback = request.headers["idempotency-key"], request.headers.get("signoff-callback-url")
    if key not in work:  # so it is asked again for the same work as often as need be
        work[key] = asyncio.create_task(summarise((await request.json())["text"]))
    if callback:
        work[key].add_done_callback(lambda done: asyncio.create_task(tell(callback, done)))
    return web.Response(status=202, headers={"location": f"/work/{key}", "retry-after": "2"})


async def summarise(text: str) -> dict[str, str]:
    await asyncio.sleep(float(os.environ.get("SECONDS", "10")))
    return {"summary": " ".join(text.split()[:10])}


async def tell(callback: str, done: asyncio.Task[dict[str, str]]) -> None:
    failed = done.exception()
    answer = {"status": 422, "detail": str(failed)} if failed else done.result()
    kind = {"content-type": "application/problem+json" if failed else "application/json"}
    async with ClientSession() as session, session.post(callback, json=answer, headers=kind):
        pass  # if it does not get through, Signoff asks at the location


async def look(request: web.Request) -> web.Response:
    done = work.get(request.match_info["key"])
    if done is None:
        raise web.HTTPNotFound(text="It is not known here, or not any more.")
    if not done.done():
        return web.Response(status=202)
    if failed := done.exception():  # a 500 would be asked again, until the time is over
        raise web.HTTPUnprocessableEntity(text=str(failed))
    return web.json_response(done.result())


app = web.Application(middlewares=[signed])
app.router.add_post("/run", accept)
app.router.add_get("/work/{key}", look)
web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "9000")))
