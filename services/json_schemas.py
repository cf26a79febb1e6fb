"""JSON Schemas that users wrote: for agents' input and output, and as a criterion.

Nothing is ever fetched, patterns are linear. Yet a schema of a few hundred bytes
can take years on a small value (alternatives that refer to alternatives), so only
what is known to be cheap is checked right here; the rest goes to the sandbox.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Protocol, cast
from urllib.parse import unquote

import orjson

from services.judges import languages, pointers
from services.judges.languages import BadSource, NotEvaluated

MAX_BYTES = 64_000
MAX_NESTING = 64

# Bytes of a value times nodes of a schema that are checked in this process: 50 ms at worst.
CHEAP = 50_000_000
# What visiting a node costs even for the smallest value, in bytes.
VISIT = 1_000
UNFOLLOWED = {"$dynamicRef", "$recursiveRef", "$id", "id"}
REPEAT = re.compile(r"\{(?:\d*,)?(\d+)\}")

__all__ = ["BadSource", "Mismatch", "NotEvaluated", "TooCostly", "check", "check_within", "compile"]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a value does not fit: a pointer into it (RFC 6901) and the schema's keyword."""

    message: str
    pointer: str
    keyword: str


class TooCostly(Exception):
    """A check that may take long: do it by `check_within` a sandbox."""

    def __init__(self) -> None:
        super().__init__("To check this value against this schema may take too long.")


class Sandbox(Protocol):
    async def mismatch(self, schema_text: str, value: Any) -> dict[str, Any] | None: ...


@lru_cache(maxsize=256)
def compile(schema_text: str) -> int:
    """Refuse, by `BadSource`, a schema that could not be checked. The weight of it otherwise."""
    if len(schema_text.encode()) > MAX_BYTES:
        raise BadSource(f"a schema has at most {MAX_BYTES} bytes")
    try:
        parsed = orjson.loads(schema_text)
    except ValueError as e:
        raise BadSource(f"not JSON: {e}") from None
    if _nesting(parsed) > MAX_NESTING:
        raise BadSource(f"a schema is nested at most {MAX_NESTING} levels deep")
    languages.schema(schema_text)
    return _weight(parsed)


def check(schema_text: str, value: Any) -> Mismatch | None:
    """Where `value` does not fit, at once. Raises `TooCostly` if that may take long."""
    weight = compile(schema_text)
    if weight * (VISIT + len(languages.compact(value))) > CHEAP:
        raise TooCostly
    return _of(languages.mismatch(schema_text, value))


async def check_within(sandbox: Sandbox, schema_text: str, value: Any) -> Mismatch | None:
    """Where `value` does not fit, whatever the schema: what may take long is done in the sandbox.

    Raises `NotEvaluated` when there is no answer in time.
    """
    try:
        return check(schema_text, value)
    except TooCostly:
        return _of(await sandbox.mismatch(schema_text, value))


def _of(found: dict[str, Any] | None) -> Mismatch | None:
    if found is None:
        return None
    return Mismatch(found["message"], pointers.of(found["path"]), found["keyword"])


def _nesting(value: Any) -> int:
    children = _children(value)
    return 1 + max(map(_nesting, children), default=0) if children else 0


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def _weight(schema: Any) -> int:
    """How many nodes a checker visits at worst: references count with all they lead to.

    Those that go in circles, or that cannot be followed by their pointer, weigh `CHEAP`.
    """
    known: dict[str, int] = {}

    def node(value: Any) -> int:
        if isinstance(value, str):
            return _repeats(value)
        total = 1 + sum(map(node, _children(value)))
        if isinstance(value, dict):
            total += sum(member(key, child) for key, child in cast("dict[str, Any]", value).items())
        return min(total, CHEAP)

    def member(key: str, child: Any) -> int:
        if key == "$ref" and isinstance(child, str):
            return reference(child)
        return CHEAP if key in UNFOLLOWED and value_is_text(child) else _repeats(key)

    def reference(ref: str) -> int:
        if ref not in known:
            known[ref] = CHEAP  # what it weighs if it comes by here again
            known[ref] = node(_target(schema, ref))
        return known[ref]

    def value_is_text(value: Any) -> bool:
        return isinstance(value, str)

    return node(schema)


def _target(schema: Any, ref: str) -> Any:
    """What a reference inside the schema leads to; itself if only a resolver could say."""
    try:
        return pointers.resolve(schema, unquote(ref.removeprefix("#")))
    except LookupError:
        return {"$ref": ref}


def _repeats(text: str) -> int:
    """1, or for what looks like a pattern that repeats, its size when written out."""
    factor = prod(int(m) or 1 for m in REPEAT.findall(text))
    return 1 if factor == 1 else min(1 + len(text) * factor // 16, CHEAP)
