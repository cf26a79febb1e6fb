"""Telling other processes by NATS, for who has it anyway. Needs the extra `nats`.

Core NATS forgets what nobody hears, and that is all right: the rows are the truth, and who
missed the word of them looks a little later by itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.bus import CHANNEL, TIMEOUT_SECONDS, Announcer, Channel

PING_SECONDS = 10


class NatsBus(Announcer):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @asynccontextmanager
    async def channel(
        self, hear: Callable[[str], None], lost: Callable[[], None]
    ) -> AsyncGenerator[Channel]:
        async def on_end() -> None:
            lost()

        async def on_message(message: Msg) -> None:
            hear(message.data.decode(errors="replace"))

        client = await nats.connect(
            self._url,
            allow_reconnect=False,  # the announcer does, and looks what it missed
            connect_timeout=TIMEOUT_SECONDS,
            ping_interval=PING_SECONDS,
            closed_cb=on_end,
            disconnected_cb=on_end,
            error_cb=_nothing,
        )
        try:
            await client.subscribe(CHANNEL, cb=on_message)
            await client.flush(TIMEOUT_SECONDS)
            yield _Publishing(client)
        finally:
            with suppress(Exception):
                await client.close()


class _Publishing:
    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def is_open(self) -> bool:
        return self._client.is_connected

    async def say(self, message: str) -> None:
        """Return when the server has it, so that the last word before the end is not lost."""
        await self._client.publish(CHANNEL, message.encode())
        await self._client.flush(TIMEOUT_SECONDS)


async def _nothing(_: Exception) -> None:
    """Whatever goes wrong ends in a closed connection, of which we hear."""
