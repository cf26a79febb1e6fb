"""Keyset pages: as quick at the millionth row as at the first."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson
from tortoise.expressions import Q
from tortoise.models import Model
from tortoise.queryset import QuerySet

from services.errors import InvalidInput, Problem

Row = TypeVar("Row", bound=Model)

DEFAULT_SIZE = 20
MAX_SIZE = 100


def int32(value: Any) -> int:
    """A number of an integer column; each of these raises `ValueError` or `TypeError`."""
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError
    return value


def int64(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def instant(value: Any) -> datetime:
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError
    return found.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Sort:
    """One column of an order: its attribute, what reads a value of it, its direction."""

    column: str
    read: Callable[[Any], Any]
    descending: bool = False

    def turned(self) -> Sort:
        return Sort(self.column, self.read, not self.descending)


@dataclass(frozen=True, slots=True)
class Window:
    """Relay's pagination arguments."""

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None

    @property
    def backwards(self) -> bool:
        return self.last is not None or (self.first is None and self.before is not None)

    @property
    def size(self) -> int:
        given = self.last if self.backwards else self.first
        return DEFAULT_SIZE if given is None else given


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Rows in the order asked for. `total` counts all of them, when called."""

    rows: list[Row]
    sorts: tuple[Sort, ...]
    has_next_page: bool
    has_previous_page: bool
    query: QuerySet[Row]

    def cursor(self, row: Row) -> str:
        values = [_plain(getattr(row, sort.column)) for sort in self.sorts]
        return _encode([_order(self.sorts), values])

    async def total(self) -> int:
        return await self.query.count()


async def fetch(query: QuerySet[Row], sorts: Sequence[Sort], window: Window) -> Page[Row]:
    """One page of `query`. The last of `sorts` must be unique.

    Raises `InvalidInput` for limits out of range, for a cursor that is none or is of
    another order, and for windows from both ends.
    """
    _check(window)
    order = tuple(sorts)
    page = query
    for text, name in ((window.after, "after"), (window.before, "before")):
        if text is not None:
            values = _decode(text, order, name)
            page = page.filter(_beyond(order, values, before=name == "before"))
    walked = tuple(sort.turned() for sort in order) if window.backwards else order
    page = page.order_by(*[f"{'-' * sort.descending}{sort.column}" for sort in walked])
    rows = await page.limit(window.size + 1)
    more = len(rows) > window.size
    rows = rows[: window.size]
    if window.backwards:
        return Page(rows[::-1], order, window.before is not None, more, query)
    return Page(rows, order, more, window.after is not None, query)


def _check(window: Window) -> None:
    problems = [
        Problem((name,), f"must be between 0 and {MAX_SIZE}")
        for name, value in (("first", window.first), ("last", window.last))
        if value is not None and not 0 <= value <= MAX_SIZE
    ]
    if window.first is not None and window.last is not None:
        problems.append(Problem(("last",), "cannot be combined with first"))
    if problems:
        raise InvalidInput(problems)


def _beyond(sorts: Sequence[Sort], values: Sequence[Any], *, before: bool) -> Q:
    """Rows past a position.

    The bound on the first column is said beside the exact condition, since a
    database only seeks by the former: without it deep pages scan from the top.
    """
    exact = Q()
    for depth, sort in enumerate(sorts):
        same = {s.column: v for s, v in zip(sorts[:depth], values, strict=False)}
        way = "lt" if sort.descending != before else "gt"
        step = Q(**same, **{f"{sort.column}__{way}": values[depth]})
        exact = step if depth == 0 else exact | step
    first = sorts[0]
    way = "lte" if first.descending != before else "gte"
    return Q(**{f"{first.column}__{way}": values[0]}) & exact


def _plain(value: Any) -> Any:
    """Asyncpg has a UUID of its own, which orjson does not know."""
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _order(sorts: Sequence[Sort]) -> str:
    return ",".join(f"{'-' * sort.descending}{sort.column}" for sort in sorts)


def _encode(content: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(content)).decode().rstrip("=")


def _decode(text: str, sorts: Sequence[Sort], name: str) -> list[Any]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        order, values = orjson.loads(raw)
        if order != _order(sorts):
            raise InvalidInput.at(name, message="is a cursor of another order of this list")
        return [sort.read(value) for sort, value in zip(sorts, values, strict=True)]
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError):
        raise InvalidInput.at(name, message="is not a cursor of this list") from None


def encode_position(seq: int) -> str:
    """A position in the event log as clients see it."""
    return _encode(seq)


def decode_position(text: str, name: str = "after") -> int:
    """Raises `InvalidInput` for what is no position."""
    try:
        seq = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError):
        seq = None
    if type(seq) is not int or not 0 <= seq < 2**63:
        raise InvalidInput.at(name, message="is not a position of the event log")
    return seq
