"""How many values are in variables and arguments: counted before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from graphql import GraphQLInputObjectType, GraphQLList, GraphQLNonNull

from schema.limits import MAX_INPUT_DEPTH, MAX_INPUT_VALUES
from services.errors import InvalidInput

FILTERS = frozenset({"JobFilter", "AgentFilter"})


@dataclass(slots=True)
class Shape:
    """What is in a value of an input type; scalars, and so JSON, have nothing in them."""

    item: Shape | None = None
    fields: dict[str, Shape] | None = None
    is_list: bool = False
    is_filter: bool = False

    @property
    def is_leaf(self) -> bool:
        return not self.is_list and self.fields is None


LEAF = Shape()
Path: TypeAlias = tuple[str | int, ...]
Value: TypeAlias = tuple[Shape, Any, Path]


@dataclass(slots=True)
class Shapes:
    """The shapes of a schema's input types, each made once."""

    _known: dict[str, Shape] = field(default_factory=dict[str, Shape])

    def of(self, type_: Any) -> Shape:
        """Of an input type, as graphql-core has it."""
        if isinstance(type_, GraphQLNonNull):
            return self.of(cast("Any", type_).of_type)
        if isinstance(type_, GraphQLList):
            return Shape(item=self.of(cast("Any", type_).of_type), is_list=True)
        if not isinstance(type_, GraphQLInputObjectType):
            return LEAF
        shape = self._known.get(type_.name)
        if shape is None:
            shape = self._known[type_.name] = Shape(fields={}, is_filter=type_.name in FILTERS)
            shape.fields = {name: self.of(each.type) for name, each in type_.fields.items()}
        return shape


@dataclass(slots=True)
class Room:
    """How much more may be given; raises `InvalidInput` with the path of what is too much."""

    max_filters: int
    max_values: int = MAX_INPUT_VALUES
    filters: int = 0
    values: int = 0

    def take(self, values: int, filters: int, path: Path) -> None:
        self.values += values
        self.filters += filters
        if self.values > self.max_values:
            raise refused(path, f"there are more than {self.max_values} input values in all")
        if self.filters > self.max_filters:
            raise refused(path, f"there are more than {self.max_filters} filters in all")


def count(shape: Shape, value: Any, name: str, room: Room) -> int:
    """Input objects and listed values in what is given as `name`, taken from `room`.

    Members that the type does not know count too: they are refused later, each with its name.
    """
    before = room.values
    room.take(1, shape.is_filter, (name,))
    level: list[Value] = [(shape, value, (name,))]
    for _ in range(MAX_INPUT_DEPTH):
        level = [below for each in level for below in _inside(*each, room)]
        if not level:
            return room.values - before
    raise refused(level[0][2], f"is nested more than {MAX_INPUT_DEPTH} levels deep")


def _inside(shape: Shape, value: Any, path: Path, room: Room) -> list[Value]:
    if shape.is_list:
        item = shape.item or LEAF
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        room.take(len(items), len(items) if item.is_filter else 0, path)
        return [] if item.is_leaf else [(item, each, (*path, i)) for i, each in enumerate(items)]
    if isinstance(value, Mapping):
        return _members(shape.fields or {}, cast("Mapping[str, Any]", value), path, room)
    return []


def _members(
    fields: dict[str, Shape], given: Mapping[str, Any], path: Path, room: Room
) -> list[Value]:
    found = [
        (fields[name], each, (*path, name))
        for name, each in given.items()
        if each is not None and name in fields and not fields[name].is_leaf
    ]
    unknown = sum(name not in fields for name in given)
    room.take(len(found) + unknown, sum(shape.is_filter for shape, _, _ in found), path)
    return found


def refused(path: Path, message: str) -> InvalidInput:
    return InvalidInput.at(*map(str, path), message=message)
