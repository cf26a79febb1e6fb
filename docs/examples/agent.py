#!/usr/bin/env python3
import base64
import hmac
import os
import time

from aiohttp import web

KEY = base64.b64decode(os.environ["SIGNING_SECRET"].removeprefix("whsec_"))


async def run(request: web.Request) -> web.Response:
    body, headers = await request.read(), request.headers
    at, signature = headers.get("webhook-timestamp", ""), headers.get("webhook-signature", "")
    signed = f"{headers.get('webhook-id')}.{at}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256"))
    if not hmac.compare_digest(expected, signature.encode()) or time.time() - int(at) > 5 * 60:
        raise web.HTTPUnauthorized(text="Not signed by Signoff, or too long ago.")
    limit = 5 if "signoff-feedback" in headers else 10
    words = (await request.json())["text"].split()[:limit]
    return web.json_response({"summary": " ".join(words)})


app = web.Application()
app.router.add_post("/run", run)
web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "9000")))
