"""JSON pointers, RFC 6901."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

INDEX = re.compile(r"0|[1-9][0-9]{0,15}")
BAD_ESCAPE = re.compile(r"~(?![01])")


def problem(pointer: str) -> str | None:
    """Why this is not a pointer, or nothing."""
    if pointer and not pointer.startswith("/"):
        return "a JSON pointer is empty or begins with “/” (RFC 6901)"
    if BAD_ESCAPE.search(pointer):
        return "in a JSON pointer “~” is written “~0” and “/” is written “~1” (RFC 6901)"
    return None


def resolve(value: Any, pointer: str) -> Any:
    """What `pointer` points at. Raises `LookupError` when there is nothing."""
    if problem(pointer):
        raise LookupError(pointer)
    for step in pointer.split("/")[1:]:
        value = _child(value, step.replace("~1", "/").replace("~0", "~"))
    return value


def of(path: Iterable[str | int]) -> str:
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _child(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)[step]
    if isinstance(value, list) and INDEX.fullmatch(step):
        return cast("list[Any]", value)[int(step)]
    raise LookupError(step)
