"""Which of our media types a client takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Media(StrEnum):
    JSON = "application/json"
    GRAPHQL = "application/graphql-response+json"
    EVENTS = "text/event-stream"


SINGLE = (Media.JSON, Media.GRAPHQL)
WILD = {"*/*": 0, "application/*": 1}
"""Ranges with a star, and how exact they are; they never ask for an event stream."""
EXACT = 2
QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`single` is for one answer, None if none is taken.

    `streams` is whether an event stream is taken too, `streamed` whether it is the first choice.
    """

    single: Media | None
    streams: bool
    streamed: bool


@dataclass(frozen=True, slots=True)
class _Range:
    name: str
    quality: float
    place: int


@lru_cache(maxsize=256)
def wanted(accept: str | None) -> Wanted:
    """What an Accept header asks for.

    Of equally good ones the first named wins, and plain JSON where all are the same.
    """
    if accept is None or not accept.strip():
        return Wanted(Media.JSON, streams=False, streamed=False)
    ranges = list(_ranges(accept))
    found = {media: rank for media in Media if (rank := _rank(media, ranges)) is not None}
    single = max((m for m in SINGLE if m in found), key=lambda m: found[m], default=None)
    streams = Media.EVENTS in found
    first = streams and (single is None or found[Media.EVENTS] > found[single])
    return Wanted(single, streams=streams, streamed=first)


def _rank(media: Media, ranges: list[_Range]) -> tuple[float, int] | None:
    """Of the range that fits best; None if there is none or it says no."""
    wild = {} if media is Media.EVENTS else WILD
    fitting = [each for each in ranges if each.name == media or each.name in wild]
    if not fitting:
        return None
    best = max(fitting, key=lambda each: (wild.get(each.name, EXACT), -each.place))
    return (best.quality, -best.place) if best.quality else None


def parameters(text: str) -> tuple[str, dict[str, str]]:
    """A media type's name and its parameters, all in small letters."""
    name, *rest = (each.strip().lower() for each in text.split(";"))
    pairs = (each.partition("=") for each in rest)
    return name, {key.strip(): value.strip().strip('"') for key, _, value in pairs}


def in_utf8(given: Mapping[str, str]) -> bool:
    return given.get("charset", "utf-8") in {"utf-8", "utf8"}


def _ranges(accept: str) -> Iterator[_Range]:
    for place, part in enumerate(accept.split(",")):
        name, given = parameters(part)
        if in_utf8(given):
            quality = given.get("q", "1")
            yield _Range(name, float(quality) if QUALITY.fullmatch(quality) else 0, place)
