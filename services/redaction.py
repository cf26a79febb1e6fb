"""Taking secrets out of what comes from outside: whoever was sent one may send it back.

A secret is found however it is usually written: plain, with the escapes of JSON, URLs and HTML,
with those of one within another, in UTF-16, and in base64, alone or in the midst of something.
"""

from __future__ import annotations

import html
import re
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

MASK = b"[secret]"
MIN_CHARACTERS = 8
"""A shorter one is not taken out of data: it would be found in innocent text."""
MIN_BEGINNING = 4
"""What is left of a secret where a text was cut; less than that tells nothing."""
MAX_NESTING = 4
"""Escapes within escapes; those of backslashes, “%25” and “&amp;” count once together."""

Span: TypeAlias = tuple[int, int]

# It begins with a set, by which the regex engine finds its places fast. Runs are bounded, so that
# a text of backslashes alone takes no longer than another one.
_ESCAPE = re.compile(
    rb"""[\\%&\x00](?:
      (?<=\\) \\{0,15} (?: (?:u00|x) ([0-9A-Fa-f]{2}) | (["'/\\]) )
    | (?<=%) (?:25){0,15} ([0-9A-Fa-f]{2})
    | (?<=&) (?:amp;){0,15} (\#[0-9]{1,7}|\#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,20});
    | (?<=\x00) \x00{0,15}
    )""",
    re.VERBOSE,
)
_CUT_ESCAPE = re.compile(
    rb"(?:\\{1,16}(?:u[0-9A-Fa-f]{0,3}|x[0-9A-Fa-f]?)?|%(?:25){0,15}[0-9A-Fa-f]?"
    rb"|&(?:amp;){0,15}[#0-9A-Za-z]{0,20})\Z"
)
MAX_ESCAPE = 128
_URLSAFE = bytes.maketrans(b"+/", b"-_")
# By how many bytes come before it in its group of three: the characters that depend on them.
_SHARED = (0, 2, 3)


class Secrets:
    """Some secrets that were sent somewhere, to be taken out of what comes back."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = frozenset(value for value in values if value)

    def __repr__(self) -> str:
        return f"<{len(self._values)} secrets>"

    def out_of(self, data: bytes) -> bytes:
        """Data without them. It is complete, and JSON stays JSON."""
        long = (value for value in self._values if len(value) >= MIN_CHARACTERS)
        return _masked(data, _needles(long), may_be_cut=False)

    def out_of_excerpt(self, text: bytes) -> bytes:
        """A text for people without them, the short ones too; it may end in the midst of one."""
        return _masked(text, _needles(self._values), may_be_cut=True)

    def out_of_message(self, text: str) -> str:
        return self.out_of_excerpt(text.encode(errors="replace")).decode(errors="replace")

    def are_in(self, data: bytes) -> bool:
        return self.out_of(data) != data


def _masked(text: bytes, needles: list[bytes], *, may_be_cut: bool) -> bytes:
    pieces: list[bytes] = []
    end = 0
    for start, stop in _united(_found(text, needles, may_be_cut=may_be_cut)):
        hidden = text[start:stop]
        # A number may hold digits of it, and must stay one.
        pieces += [text[end:start], b"1" * len(hidden) if hidden.isdigit() else MASK]
        end = stop
    return b"".join([*pieces, text[end:]])


def _united(spans: Iterable[Span]) -> Iterator[Span]:
    """In order, and those that overlap as one."""
    last: Span | None = None
    for start, stop in sorted(spans):
        if last is None:
            last = start, stop
        elif start < last[1]:
            last = last[0], max(last[1], stop)
        else:
            yield last
            last = start, stop
    if last is not None:
        yield last


def _found(text: bytes, needles: list[bytes], *, may_be_cut: bool) -> Iterator[Span]:
    """Where they are in a text: as it is, and with its escapes decoded, level by level."""
    levels: list[bytes] = []
    for _ in range(MAX_NESTING):
        spans = [span for each in needles for span in _occurrences(text, each)]
        if may_be_cut:
            spans += [span for each in needles for span in _begun(text, each)]
        yield from _origins(levels, spans)
        levels.append(text)
        text = _ESCAPE.sub(_plain, text)
        if text == levels[-1]:
            return


def _occurrences(text: bytes, needle: bytes) -> list[Span]:
    starts = re.finditer(re.escape(needle), text) if needle in text else ()
    return [found.span() for found in starts]


def _begun(text: bytes, needle: bytes) -> Iterator[Span]:
    """Where the text ends in the midst of it, perhaps in an escape."""
    cut = _CUT_ESCAPE.search(text, max(0, len(text) - MAX_ESCAPE))
    end = cut.start() if cut else len(text)
    at = text.find(needle[:MIN_BEGINNING], max(0, end - len(needle) + 1), end)
    while at >= 0:
        if needle.startswith(text[at:end]):
            yield at, len(text)
            return
        at = text.find(needle[:MIN_BEGINNING], at + 1, end)


def _origins(sources: list[bytes], spans: list[Span]) -> list[Span]:
    """What parts of a text are in the first of those that it was decoded from."""
    for source in reversed(sources if spans else ()):
        escapes = _Escapes(source)
        spans = [(escapes.origin(start)[0], escapes.origin(stop - 1)[1]) for start, stop in spans]
    return spans


class _Escapes:
    """Those of a text, and where they stand once it is decoded."""

    def __init__(self, source: bytes) -> None:
        self._spans: list[Span] = []
        self._begins: list[int] = []
        self._ends: list[int] = []
        length = done = 0
        for escape in _ESCAPE.finditer(source):
            start, stop = escape.span()
            self._spans.append((start, stop))
            self._begins.append(length + start - done)
            length = self._begins[-1] + len(_plain(escape))
            self._ends.append(length)
            done = stop

    def origin(self, at: int) -> Span:
        """Where a character of the decoded text comes from."""
        last = bisect_right(self._begins, at) - 1
        if last < 0:
            return at, at + 1
        if at < self._ends[last]:
            return self._spans[last]
        start = self._spans[last][1] + at - self._ends[last]
        return start, start + 1


def _plain(escape: re.Match[bytes]) -> bytes:
    return _meaning(escape[0])


@lru_cache(maxsize=4096)
def _meaning(escape: bytes) -> bytes:
    """Itself if it is not one character of ASCII."""
    found = _ESCAPE.fullmatch(escape)
    backslashed, character, percent, name = found.groups() if found else (None,) * 4
    if code := backslashed or percent:
        return bytes((int(code, 16),))
    if name:
        text = html.unescape(f"&{name.decode()};")
        return text.encode() if len(text) == 1 and text.isascii() else escape
    return character or b""


def _needles(secrets: Iterable[str]) -> list[bytes]:
    return sorted({needle for secret in secrets for needle in _spellings(secret)})


@lru_cache(maxsize=1000)
def _spellings(secret: str) -> tuple[bytes, ...]:
    """What is looked for: escapes that it has itself are decoded in a text as others are."""
    plain = secret.encode()
    decoded = plain
    for _ in range(MAX_NESTING):
        decoded = _ESCAPE.sub(_plain, decoded)
    forms = (plain, plain.replace(b" ", b"+"), decoded, *_in_base64(plain))
    return tuple(form for form in forms if form)


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """The characters that depend on it alone, wherever it is in what was encoded."""
    for before, shared in enumerate(_SHARED):
        encoded = b64encode(bytes(before) + secret)
        sure = encoded[shared : (before + len(secret)) * 8 // 6]
        if len(sure) >= MIN_CHARACTERS:
            yield sure
            yield sure.translate(_URLSAFE)
