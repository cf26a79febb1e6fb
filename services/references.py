"""Results of other jobs in a job's input: `{"$result": "alias"}`, with `pointer` a part of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from models import jsontext
from services.errors import InvalidInput, Problem
from services.judges import pointers

KEY = "$result"
MAX_BYTES = 4_194_304
"""Of a body made with results: a small input could refer to a large one many times."""

FORM = f'must be {{"{KEY}": alias}} or {{"{KEY}": alias, "pointer": "/…"}}: the key is reserved'


@dataclass(frozen=True, slots=True)
class Reference:
    alias: str
    pointer: str = ""

    def __str__(self) -> str:
        return f"“{self.alias}”" + (f" at {self.pointer}" if self.pointer else "")


class NotResolved(Exception):
    """A reference leads to nothing, or to too much; the message says which."""

    def __init__(self, reference: Reference, why: str) -> None:
        super().__init__(f"The result of {reference} {why}.")
        self.alias = reference.alias


def may_be_in(input_json: str) -> bool:
    """A first, quick look at an input as it is stored."""
    return f'"{KEY}"' in input_json


def check(value: Any, aliases: Collection[str]) -> None:
    """Raises `InvalidInput` for what is no reference though it looks like one, or of no alias."""
    found = [Problem(("input", "input", *path), why) for path, why in _problems(value, aliases)]
    if found:
        raise InvalidInput(found)


def _problems(value: Any, aliases: Collection[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for path, each in _walk(value, ()):
        reference = _read(each)
        if isinstance(reference, str):
            yield path, reference
        elif reference.alias not in aliases:
            yield path, f"“{reference.alias}” is not the alias of a job in dependsOn"


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each object that has the key, and where it is."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if KEY in members:
            yield path, members
            return
        for key, child in members.items():
            yield from _walk(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(cast("list[Any]", value)):
            yield from _walk(child, (*path, str(index)))


def _read(members: dict[str, Any]) -> Reference | str:
    """The reference, or what is wrong with it."""
    alias, pointer = members[KEY], members.get("pointer", "")
    if members.keys() - {KEY, "pointer"}:
        return FORM
    if not isinstance(alias, str) or not isinstance(pointer, str):
        return FORM
    return pointers.problem(pointer) or Reference(alias, pointer)


def aliases(value: Any) -> set[str]:
    """Whose results a checked input refers to."""
    return {cast("str", members[KEY]) for _, members in _walk(value, ())}


def resolve(value: Any, results: Callable[[str], Any]) -> str:
    """A checked input as JSON text, with what it refers to in its place. Raises `NotResolved`."""
    sizes: dict[Reference, int] = {}
    total = 0

    def put(value: Any) -> Any:
        nonlocal total
        if isinstance(value, list):
            return [put(child) for child in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        members = cast("dict[str, Any]", value)
        if KEY not in members:
            return {key: put(child) for key, child in members.items()}
        reference = cast("Reference", _read(members))
        part = _part(reference, results(reference.alias))
        if reference not in sizes:
            sizes[reference] = len(jsontext.dumps(part))
        total += sizes[reference]
        if total > MAX_BYTES:
            raise NotResolved(reference, f"makes an input of more than {MAX_BYTES} bytes")
        return part

    filled = put(value)
    try:
        return jsontext.dumps(filled)
    except TypeError:
        deepest = Reference(", ".join(sorted(aliases(value))))
        raise NotResolved(deepest, "makes an input that is nested too deeply") from None


def _part(reference: Reference, result: Any) -> Any:
    try:
        return pointers.resolve(result, reference.pointer)
    except LookupError:
        raise NotResolved(reference, "is not there") from None
