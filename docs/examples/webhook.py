#!/usr/bin/env python3
import base64
import hmac
import json
import os
import time

from aiohttp import web

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
SEEN: set[str] = set()  # yours is a table, written in the transaction of what an event leads to


def is_from_signoff(request: web.Request, body: bytes) -> bool:
    id, at = (request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp"))
    expected = b"v1," + base64.b64encode(hmac.digest(KEY, f"{id}.{at}.".encode() + body, "sha256"))
    signatures = request.headers.get("webhook-signature", "").encode().split(b" ")
    is_fresh = at.isdecimal() and abs(time.time() - int(at)) < 5 * 60
    return is_fresh and any(hmac.compare_digest(expected, each) for each in signatures)


async def hear(request: web.Request) -> web.Response:
    body = await request.read()
    if not is_from_signoff(request, body):
        raise web.HTTPUnauthorized(text="Not signed by Signoff, or too long ago.")
    if request.headers["webhook-id"] not in SEEN:
        SEEN.add(request.headers["webhook-id"])
        event = json.loads(body)
        print(event["type"], event["data"].get("status", ""), flush=True)
    return web.Response(status=204)


app = web.Application()
app.router.add_post("/", hear)
web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "9001")), print=None)
