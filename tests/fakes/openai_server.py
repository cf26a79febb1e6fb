"""An OpenAI-compatible server on loopback: the Responses API and chat completions.

It judges by the criteria's text: “must fail” fails, “unclear” is inconclusive,
the rest passes with the output's beginning as evidence. `script` makes it misbehave,
one behaviour a request; when the script is over it behaves.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

JSON = dict[str, Any]
Behaviour = Callable[["FakeOpenAI", web.Request, JSON], Awaitable[web.StreamResponse]]

SECTION = re.compile(r"<<<(\w+) (\w+)\n(.*?)\n\1 \2>>>", re.DOTALL)


@dataclass
class FakeOpenAI:
    """`requests` are the bodies received, `paths` and `keys` where and with what they came."""

    base_url: str = ""
    has_responses: bool = True
    script: deque[Behaviour] = field(default_factory=deque[Behaviour])
    requests: list[JSON] = field(default_factory=list[JSON])
    paths: list[str] = field(default_factory=list[str])
    keys: list[str] = field(default_factory=list[str])

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization", ""))
        if request.path.endswith("/responses") and not self.has_responses:
            return web.json_response({"error": {"message": "Unknown path"}}, status=404)
        if self.script:
            return await self.script.popleft()(self, request, body)
        return self.answer(request, json.dumps({"results": judged(body)}))

    def answer(self, request: web.Request, text: str) -> web.Response:
        """`text` as what the model said."""
        part: JSON = {"type": "output_text", "text": text, "annotations": []}
        return web.json_response(_envelope(request, part))


def sections(body: JSON) -> dict[str, str]:
    """What the judge was shown, by the name of its section."""
    if "input" in body:
        return {name: text for name, _, text in SECTION.findall(body["input"][0]["content"])}
    return {name: text for name, _, text in SECTION.findall(body["messages"][1]["content"])}


def judged(body: JSON) -> list[JSON]:
    shown = sections(body)
    return [judgement(told, shown["OUTPUT"]) for told in json.loads(shown["CRITERIA"])]


def judgement(told: JSON, output: str) -> JSON:
    outcome = "PASS"
    if "must fail" in told["text"]:
        outcome = "FAIL"
    elif "unclear" in told["text"]:
        outcome = "INCONCLUSIVE"
    return {
        "criterion": told["criterion"],
        "reason": f"It is {outcome}.",
        "evidence": [{"pointer": "", "quote": output[:20]}],
        "outcome": outcome,
    }


def says(text: str) -> Behaviour:
    async def behave(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
        return fake.answer(request, text)

    return behave


def judges(*results: JSON, **more: Any) -> Behaviour:
    return says(json.dumps({"results": list(results), **more}))


def fails(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Behaviour:
    """An error as OpenAI words it; it repeats the key that came with the request."""

    async def behave(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
        told = f"{message} (key: {request.headers.get('Authorization')})"
        error = {"error": {"message": told, "type": "error", "code": None}}
        return web.json_response(error, status=status, headers=headers)

    return behave


def sends(body: bytes, content_type: str = "application/json") -> Behaviour:
    async def behave(fake: FakeOpenAI, request: web.Request, _: JSON) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type)

    return behave


async def refuses(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
    return web.json_response(_envelope(request, {"type": "refusal", "refusal": "I'd rather not."}))


def stops(why: str) -> Behaviour:
    """The answer ends early, though what there is of it reads like a judgement."""

    async def behave(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
        text = json.dumps({"results": judged(body)})
        envelope = _envelope(request, {"type": "output_text", "text": text, "annotations": []})
        if "choices" in envelope:
            envelope["choices"][0]["finish_reason"] = why
        else:
            envelope |= {"status": "incomplete", "incomplete_details": {"reason": why}}
        return web.json_response(envelope)

    return behave


async def breaks(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
    """The model fails within a response of HTTP 200."""
    error = {"code": "server_error", "message": "The model overheated"}
    return web.json_response(
        {"id": "r", "object": "response", "status": "failed", "error": error, "output": []}
    )


async def hangs(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def drips(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
    """A byte now and then, for ever: no single read ever times out."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def cuts(fake: FakeOpenAI, request: web.Request, body: JSON) -> web.StreamResponse:
    """The connection ends in the midst of the body."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id": "r", ')
    assert request.transport
    request.transport.close()
    return response


@asynccontextmanager
async def running(*, has_responses: bool = True) -> AsyncGenerator[FakeOpenAI, None]:
    fake = FakeOpenAI(has_responses=has_responses)
    app = web.Application(client_max_size=10_000_000)
    app.router.add_post("/v1/responses", fake.handle)
    app.router.add_post("/v1/chat/completions", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.base_url = f"http://{host}:{port}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()


def _envelope(request: web.Request, part: JSON) -> JSON:
    if request.path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": part.get("text"), "refusal": part.get("refusal")}
        return {
            "id": "c",
            "object": "chat.completion",
            "model": "fake-chat-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    return {
        "id": "r",
        "object": "response",
        "model": "fake-1",
        "status": "completed",
        "output": [
            {"type": "reasoning", "id": "x", "summary": []},
            {"type": "message", "id": "m", "role": "assistant", "content": [part]},
        ],
        "usage": {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16},
    }
