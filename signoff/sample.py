"""A sample agent: a real HTTP endpoint in this process, to try things with.

It summarises `text` by its first two sentences. When it is sent feedback, it keeps to the first.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import orjson
from aiohttp import web

from models import Agent
from services import agent_http, agents
from services.actors import LOCAL_ADMIN
from services.agent_http import BadSignature
from services.agents import SaveAgent
from services.runtime import Runtime
from services.values import RawJson
from signoff.asked import body_of
from signoff.refusals import failure

PATH = "/sample-agent"
NAME = "Sample agent"
INPUT_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 1}},
    "required": ["text"],
}
OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "words": {"type": "integer"}},
    "required": ["summary", "words"],
}


def endpoint(rt: Callable[[], Runtime]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        agent = await _registered()
        if agent is None:
            raise web.HTTPNotFound
        body = await body_of(request)
        secret = rt().vault.open(agent.signing_secret_sealed)
        try:
            agent_http.verify(secret, request.headers, body, now=datetime.now(UTC).timestamp())
        except BadSignature as error:
            return failure(401, str(error), "BAD_SIGNATURE")
        text = orjson.loads(body)["text"]
        hints = orjson.loads(request.headers.get("signoff-feedback", "[]"))
        return web.json_response(summarised(text, sentences=1 if hints else 2))

    return answer


def summarised(text: str, sentences: int) -> dict[str, object]:
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    summary = " ".join(parts[:sentences])
    return {"summary": summary, "words": len(summary.split())}


async def register(rt: Runtime, base_url: str) -> Agent | None:
    """The sample agent of a server at `base_url`.

    Made if there is no agent at all, moved if a server at another address made it, None if
    the user has agents of their own.
    """
    known = await _registered()
    url = base_url + PATH
    if known is None and await Agent.exists():
        return None
    if known is not None and (known.endpoint_url == url or not known.endpoint_url.endswith(PATH)):
        return known
    command = SaveAgent(
        id=known.id if known else None,
        name=NAME,
        description="Summarises `text` by its first sentences; shorter when it gets feedback.",
        endpoint_url=url,
        input_schema=RawJson(INPUT_SCHEMA),
        output_schema=RawJson(OUTPUT_SCHEMA),
        idempotent=True,
        accepts_feedback=True,
        timeout_seconds=30,
    )
    return (await agents.save(rt, LOCAL_ADMIN, command)).agent


async def _registered() -> Agent | None:
    """Where the local admin is; another workspace may have an agent of that name."""
    return await Agent.get_or_none(workspace_id=LOCAL_ADMIN.workspace_id, name=NAME)
