"""What the clients of WebSockets send, read so that none of them keeps the others waiting.

Of what has come a transport hands on as much as it likes, and all its frames are parsed in one
go. Here a piece is parsed at each turn of the event loop, and no more is taken meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PIECE = 4096
"""Bytes at one turn."""


class Turns:
    """Between the transport of one WebSocket and the parser behind `feed`.

    `too_much` is called once, and nothing is fed from then on, when more than `most` bytes came
    without a message: in fragments without end.
    """

    def __init__(
        self,
        feed: Callable[[bytes], None],
        transport: asyncio.Transport,
        most: int,
        too_much: Callable[[], None],
    ) -> None:
        self._feed = feed
        self._transport = transport
        self._most = most
        self._too_much = too_much
        self._unread = b""
        self._since = 0  # a message was told
        self._full = False  # is what follows the parser
        self._paused = False
        self._next: asyncio.Handle | None = None

    def receive(self, data: bytes) -> None:
        self._unread += data
        if self._next is None and not self._full:
            self._turn()

    def told(self) -> None:
        """A message has come."""
        self._since = 0

    def hold(self) -> None:
        """Feed nothing until `go_on`."""
        self._full = True

    def go_on(self) -> None:
        """The parser has room again, and what the client sends is read."""
        self._full = self._paused = False
        self._soon()

    def stop(self) -> None:
        self._unread = b""
        if self._next is not None:
            self._next.cancel()

    def _turn(self) -> None:
        self._next = None
        piece, self._unread = self._unread[:PIECE], self._unread[PIECE:]
        self._since += len(piece)
        if self._since > self._most:
            self._refuse()
            return
        self._feed(piece)
        if not self._full:
            self._soon()

    def _refuse(self) -> None:
        self._unread = b""
        self._full = True
        self._transport.pause_reading()
        self._too_much()

    def _soon(self) -> None:
        """Take the next piece when all others had their turn, or else what the client sends."""
        if self._unread:
            if not self._paused:
                self._paused = True
                self._transport.pause_reading()
            self._next = asyncio.get_running_loop().call_soon(self._turn)
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()
