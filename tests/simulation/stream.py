"""A subscriber that lives through it all."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.simulation.fleet import Fleet

CHANGES = """
subscription($after: EventCursor) {
  jobStatusChanged(after: $after) { cursor from to reason actor { name } job { id } }
}"""
START = "MA"
"""The position before the first entry."""

Change = tuple[int, str | None, str, str, str, str]
"""Position, from, to, reason, actor and job of a change of status."""


@dataclass
class Subscriber:
    """Follows every change of status; after a broken connection it resumes where it was."""

    key: str
    seen: list[Change] = field(default_factory=list[Change])
    connections: int = 0
    ended: asyncio.Task[None] | None = None
    _cursor: str = START

    def end(self, task: asyncio.Task[None]) -> None:
        """It must not end by itself."""
        self.ended = task

    @property
    def position(self) -> int:
        return self.seen[-1][0] if self.seen else 0

    async def follow(self, fleet: Fleet, first: int) -> None:
        """For ever; of all servers it prefers number `first`."""
        while True:
            up = [machine for machine in fleet.servers if machine.up.is_set()]
            if up:
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await self._listen(fleet.session, up[first % len(up)].url)
            await asyncio.sleep(0.02)

    async def _listen(self, session: aiohttp.ClientSession, url: str) -> None:
        self.connections += 1
        body = {"query": CHANGES, "variables": {"after": self._cursor}}
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "text/event-stream"}
        async with session.post(f"{url}/graphql", json=body, headers=headers) as response:
            if response.status != 200:
                return
            async for line in response.content:
                if line.startswith(b"data: {") and line.endswith(b"\n"):  # not cut off
                    self._hear(orjson.loads(line[6:]))

    def _hear(self, message: Any) -> None:
        if not message or message.get("errors"):
            return  # too slow, or the server is ending: it is subscribed to again
        change = message["data"]["jobStatusChanged"]
        self._cursor = change["cursor"]
        position = int(base64.urlsafe_b64decode(self._cursor + "=="))
        names = change["reason"], change["actor"]["name"], change["job"]["id"]
        self.seen.append((position, change["from"], change["to"], *names))
