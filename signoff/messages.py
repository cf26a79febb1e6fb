"""Messages of a subscription as bytes of each transport, made once for all who get them."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Sequence
from functools import cached_property

PART_BYTES = 65_536
"""What is written at once to everybody, where messages are smaller than that."""
LENGTH_7, LENGTH_16 = 126, 65_536


class Messages:
    """Encoded answers, in order."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.count = len(answers)
        self.size = sum(map(len, answers))
        self._answers = answers
        self._framed: dict[int, list[tuple[bytes, bytes]]] = {}
        self._last: tuple[bytes, bytes] = b"", b""

    def frames(self, head: bytes) -> bytes:
        """WebSocket frames for the operation that `head` was made for.

        Clients often give the same id to their first operation: they share the bytes.
        """
        if self._last[0] == head:
            return self._last[1]
        pairs = self._framed.get(len(head))
        if pairs is None:
            pairs = self._framed[len(head)] = [_framed(len(head), each) for each in self._answers]
        made = b"".join([part for header, tail in pairs for part in (header, head, tail)])
        self._last = head, made
        return made

    @cached_property
    def events(self) -> bytes:
        """Server-sent events; JSON has no line breaks of its own, so each is one line."""
        return b"".join(b"event: next\r\ndata: " + each + b"\r\n\r\n" for each in self._answers)

    @cached_property
    def chunk(self) -> bytes:
        """The same as a chunk of an HTTP/1.1 body."""
        return chunk(self.events)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


def _framed(head: int, answer: bytes) -> tuple[bytes, bytes]:
    """A text frame in one piece, without a mask as all that a server sends, around the head."""
    tail = answer + b"}"
    length = head + len(tail)
    if length < LENGTH_7:
        return bytes((0x81, length)), tail
    if length < LENGTH_16:
        return b"\x81\x7e" + struct.pack("!H", length), tail
    return b"\x81\x7f" + struct.pack("!Q", length), tail


def parts(answers: Iterable[bytes]) -> Generator[Messages]:
    """The answers in portions, so that a slow reader is noticed in between."""
    portion: list[bytes] = []
    size = 0
    for answer in answers:
        if portion and size + len(answer) > PART_BYTES:
            yield Messages(portion)
            portion, size = [], 0
        portion.append(answer)
        size += len(answer)
    if portion:
        yield Messages(portion)
