"""One trace, from the request for an execution to its agent and its judge.

What goes along is a `traceparent` as the W3C defines it: in with a request, to the worker with
the attempt, out with the call of an agent. Where nothing records traces it is handed on as it
came.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol, TypeAlias

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
ERROR = "error.type"
"""The attribute that says that a span is a failure's."""

Attributes: TypeAlias = dict[str, str | int | float | bool]


class Kind(StrEnum):
    SERVER = "SERVER"
    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"


class Span(Protocol):
    @property
    def traceparent(self) -> str: ...

    def end(self, attributes: Attributes) -> None: ...


class Tracer(Protocol):
    """Records spans somewhere."""

    def start(self, name: str, kind: Kind, parent: str | None) -> Span:
        """`parent` is a valid traceparent, or None where a trace begins."""
        ...

    def close(self) -> None:
        """Send what has not been sent; waits a few seconds at most."""
        ...


_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current() -> str | None:
    """The traceparent of what is under way, if it belongs to a trace."""
    return _current.get()


@contextmanager
def under(traceparent: str | None) -> Generator[None]:
    """What happens inside belongs to that trace; to none, if this is no valid traceparent."""
    valid = traceparent is not None and TRACEPARENT.fullmatch(traceparent)
    token = _current.set(traceparent if valid else None)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def span(
    tracer: Tracer | None, name: str, kind: Kind, attributes: Mapping[str, str | int] | None = None
) -> Generator[Attributes]:
    """One step of the trace under way; what is put into the yielded attributes is told with it.

    Neither payloads nor secrets belong there, so of an exception only its type is told.
    """
    told: Attributes = dict(attributes or {})
    if tracer is None:
        yield told
        return
    started = tracer.start(name, kind, _current.get())
    token = _current.set(started.traceparent)
    try:
        yield told
    except BaseException as error:
        told.setdefault(ERROR, type(error).__name__)
        raise
    finally:
        _current.reset(token)
        started.end(told)
