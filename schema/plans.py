"""What a document's operations are made of: read once, in one pass over each definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any, cast

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLNamedType,
    GraphQLSchema,
    InlineFragmentNode,
    ListTypeNode,
    NamedTypeNode,
    NonNullTypeNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    TypeNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_leaf_type,
    value_from_ast_untyped,
)

from schema import cost, given
from schema.cost import CEILING, NOTHING, Counted, Factor, Given, PageSize, Sums, Term
from schema.given import LEAF, Room, Shape, Shapes
from schema.limits import MAX_FRAGMENTS, MAX_REPEATS, Limits, exceeded
from services.paging import DEFAULT_SIZE

CONNECTION = "Connection"
ITEMS = frozenset({"nodes", "edges"})
INTROSPECTION = frozenset({"__schema", "__type"})


@dataclass(frozen=True, slots=True)
class Measure:
    """Of a selection. `each` is what there is once for every item of a page."""

    depth: int = 0
    aliases: int = 0
    directives: int = 0
    fields: int = 0
    once: Term = NOTHING
    each: Term = NOTHING
    introspects: bool = False


EMPTY = Measure()


SPARE_VARIABLES = 100
"""Variables that are not declared: GraphQL ignores them, and some clients send a few."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is known of an operation before its variables are."""

    cost: Term
    introspects: bool
    shapes: Mapping[str, Shape]
    defaults: Mapping[str, Any]
    steps: list[cost.Step]
    max_variables: int

    def requested(self, variables: Mapping[str, Any] | None, max_filters: int) -> int:
        """What it costs; raises `InvalidInput` for variables with too much in them.

        Raises `GraphQLError` for many variables that no operation of its document declares.
        """
        most = self.max_variables + SPARE_VARIABLES
        if variables and len(variables) > most:
            raise exceeded("variables", len(variables), most)
        if self.defaults:
            variables = {**self.defaults, **(variables or {})}
        if not variables:
            return cost.evaluate(self.cost, self.steps, Given({}, {}))
        room = Room(max_filters)
        counts = {
            name: given.count(shape, variables[name], name, room)
            for name, shape in self.shapes.items()
            if variables.get(name) is not None
        }
        return cost.evaluate(self.cost, self.steps, Given(variables, counts))


@dataclass(slots=True)
class Reader:
    """Reads documents for one schema; raises the `GraphQLError` of the first limit exceeded.

    What is unknown to the schema counts little: validation, which comes after, refuses it.
    """

    schema: GraphQLSchema
    limits: Limits
    shapes: Shapes = field(default_factory=Shapes)
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.sizes = _introspected(self.schema)

    def read(self, document: DocumentNode) -> dict[str | None, Operation]:
        """The operations by name."""
        pass_ = Pass(self, document)
        if len(pass_.fragments) > MAX_FRAGMENTS:
            raise exceeded("fragments", len(pass_.fragments), MAX_FRAGMENTS)
        for fragment in pass_.ordered():
            pass_.measures[fragment.name.value] = pass_.of_fragment(fragment)
        return {
            each.name.value if each.name else None: pass_.operation(each)
            for each in document.definitions
            if isinstance(each, OperationDefinitionNode)
        }


@dataclass
class Pass:
    """Over one document; a fragment is measured once, before what it is spread in."""

    reader: Reader
    document: DocumentNode
    measures: dict[str, Measure] = field(default_factory=dict[str, Measure])
    sums: Sums = field(default_factory=Sums)

    @cached_property
    def fragments(self) -> dict[str, FragmentDefinitionNode]:
        return {
            each.name.value: each
            for each in self.document.definitions
            if isinstance(each, FragmentDefinitionNode)
        }

    @cached_property
    def variables(self) -> set[str]:
        """Of all operations: clients send one set for whichever of them is run."""
        return {
            each.variable.name.value
            for operation in self.document.definitions
            if isinstance(operation, OperationDefinitionNode)
            for each in operation.variable_definitions or ()
        }

    def ordered(self) -> Iterator[FragmentDefinitionNode]:
        """Fragments after all that they spread; on a circle, which is refused later, somehow."""
        seen: set[str] = set()
        for name in self.fragments:
            path = self._entered(name, seen)
            while path:
                current, spread = path[-1]
                below = next((each for each in spread if each not in seen), None)
                if below is None:
                    path.pop()
                    yield self.fragments[current]
                else:
                    path += self._entered(below, seen)

    def _entered(self, name: str, seen: set[str]) -> list[tuple[str, Iterator[str]]]:
        if name in seen:
            return []
        seen.add(name)
        spread = _spread(self.fragments[name].selection_set)
        return [(name, iter([each for each in spread if each in self.fragments]))]

    def of_fragment(self, fragment: FragmentDefinitionNode) -> Measure:
        parent = self.reader.schema.get_type(fragment.type_condition.name.value)
        return self._measure(fragment.selection_set, parent, {}, len(fragment.directives or ()))

    def operation(self, node: OperationDefinitionNode) -> Operation:
        root = self.reader.schema.get_root_type(node.operation)
        directives = len(node.directives or ()) + sum(
            len(each.directives or ()) for each in node.variable_definitions or ()
        )
        measure = self._measure(node.selection_set, root, {}, directives)
        self._hold(measure, node)
        return Operation(
            self.sums.total(cost.OPERATION, [(1, measure.once)]),
            measure.introspects,
            self._shapes(node),
            self._defaults(node),
            self.sums.steps,
            len(self.variables),
        )

    def _hold(self, measure: Measure, node: OperationDefinitionNode) -> None:
        limits = self.reader.limits
        for what, requested, maximum in (
            ("levels of fields", measure.depth, limits.max_depth),
            ("aliases", measure.aliases, limits.max_aliases),
            ("directives", measure.directives, limits.max_directives),
            ("root fields", measure.fields, limits.max_root_fields),
        ):
            if requested > maximum:
                raise exceeded(what, requested, maximum, nodes=[node])

    def _shapes(self, node: OperationDefinitionNode) -> dict[str, Shape]:
        found: dict[str, Shape] = {}
        for each in node.variable_definitions or ():
            shape = self._shape(each.type)
            if not shape.is_leaf:
                found[each.variable.name.value] = shape
        return found

    def _shape(self, node: TypeNode) -> Shape:
        if isinstance(node, NonNullTypeNode):
            return self._shape(node.type)
        if isinstance(node, ListTypeNode):
            return Shape(item=self._shape(node.type), is_list=True)
        name = cast("NamedTypeNode", node).name.value
        return self.reader.shapes.of(self.reader.schema.get_type(name))

    def _defaults(self, node: OperationDefinitionNode) -> dict[str, Any]:
        return {
            each.variable.name.value: value_from_ast_untyped(each.default_value)
            for each in node.variable_definitions or ()
            if each.default_value is not None
        }

    def _measure(
        self,
        node: SelectionSetNode | None,
        parent: GraphQLNamedType | None,
        names: dict[str, int],
        directives: int,
    ) -> Measure:
        """Of all selections; `names` counts how often each response name is in them."""
        every = [self._selection(each, parent, names) for each in (node.selections if node else ())]
        return Measure(
            depth=max((each.depth for each in every), default=0),
            aliases=_sum(each.aliases for each in every),
            directives=_sum([directives, *(each.directives for each in every)]),
            fields=_sum(each.fields for each in every),
            once=self.sums.total(0, [(1, each.once) for each in every]),
            each=self.sums.total(0, [(1, each.each) for each in every]),
            introspects=any(each.introspects for each in every),
        )

    def _selection(
        self, node: SelectionNode, parent: GraphQLNamedType | None, names: dict[str, int]
    ) -> Measure:
        directives = len(node.directives or ())
        if isinstance(node, FieldNode):
            return self._field(node, parent, names, directives)
        if isinstance(node, InlineFragmentNode):
            condition = node.type_condition
            inside = self.reader.schema.get_type(condition.name.value) if condition else parent
            return self._measure(node.selection_set, inside, names, directives)
        spread = self.measures.get(cast("FragmentSpreadNode", node).name.value, EMPTY)
        return spread if not directives else _with(spread, directives)

    def _field(
        self,
        node: FieldNode,
        parent: GraphQLNamedType | None,
        names: dict[str, int],
        directives: int,
    ) -> Measure:
        name = node.name.value
        response = node.alias.value if node.alias else name
        names[response] = names.get(response, 0) + 1
        if names[response] > MAX_REPEATS:
            raise exceeded(
                f"times “{response}” in one place", names[response], MAX_REPEATS, nodes=[node]
            )
        definition = self._definition(name, parent)
        type_ = _named(definition) if definition else None
        inner = self._measure(node.selection_set, type_, {}, directives)
        once = each = NOTHING
        if _is_connection(parent) and name in ITEMS:
            each = self.sums.total(1, [(1, inner.once)])
        else:
            once = self._cost(node, definition, parent, inner)
        return Measure(
            depth=inner.depth + 1,
            aliases=_sum([node.alias is not None, inner.aliases]),
            directives=inner.directives,
            fields=1,
            once=once,
            each=each,
            introspects=inner.introspects or name in INTROSPECTION,
        )

    def _definition(self, name: str, parent: GraphQLNamedType | None) -> GraphQLField | None:
        return self.reader.schema.get_field(cast("Any", parent), name) if parent else None

    def _cost(
        self,
        node: FieldNode,
        definition: GraphQLField | None,
        parent: GraphQLNamedType | None,
        inner: Measure,
    ) -> Term:
        """Of a field with all that is in it."""
        if definition is None or parent is None:
            return Term(1)
        type_ = _named(definition)
        if parent.name.startswith("__") or type_.name.startswith("__"):
            return self._introspection(node.name.value, definition, inner)
        parts = self._arguments(node, definition)
        if _is_connection(type_):
            parts += [(1, inner.once), (_page(node, definition), inner.each)]
            return self.sums.total(cost.PAGE, parts)
        own = cost.COUNT if _is_connection(parent) and node.name.value == "totalCount" else 1
        if parent is self.reader.schema.mutation_type:
            own = cost.MUTATION
        times = self._length(node.name.value, definition, parent)
        return self.sums.total(
            own, [*parts, (times, self.sums.total(times > 1, [(1, inner.once)]))]
        )

    def _introspection(self, name: str, definition: GraphQLField, inner: Measure) -> Term:
        """Leaves cost nothing, since their objects are small; lists are as long as they are."""
        if is_leaf_type(_named(definition)) or name == "ofType":
            return NOTHING
        times = self.reader.sizes.get(name, 1)
        return self.sums.total(times, [(times, inner.once)])

    def _length(self, name: str, definition: GraphQLField, parent: GraphQLNamedType) -> int:
        if is_leaf_type(_named(definition)):
            return 1
        if not str(cast("Any", definition.type)).startswith("["):
            return 1
        return cost.LISTS.get((parent.name, name), cost.LIST)

    def _arguments(self, node: FieldNode, definition: GraphQLField) -> list[tuple[Factor, Term]]:
        """Input objects and listed values, in the document and in variables."""
        parts: list[tuple[Factor, Term]] = []
        for each in node.arguments or ():
            argument = definition.args.get(each.name.value)
            shape = self.reader.shapes.of(argument.type) if argument else LEAF
            if shape.is_leaf:
                continue
            parts += [(Counted(name), Term(cost.INPUT)) for name in _variables(each.value)]
            parts.append((self._literal(each.name.value, each.value, shape), Term(cost.INPUT)))
        return parts

    def _literal(self, name: str, value: ValueNode, shape: Shape) -> int:
        """Raises `InvalidInput` for an argument with too much in it."""
        if isinstance(value, VariableNode):
            return 0
        room = Room(self.reader.limits.max_filters)
        return given.count(shape, value_from_ast_untyped(value), name, room)


def _with(measure: Measure, directives: int) -> Measure:
    return Measure(
        measure.depth,
        measure.aliases,
        _sum([measure.directives, directives]),
        measure.fields,
        measure.once,
        measure.each,
        measure.introspects,
    )


def _sum(numbers: Any) -> int:
    return min(CEILING, sum(numbers))


def _named(field: GraphQLField) -> GraphQLNamedType:
    return cast("GraphQLNamedType", get_named_type(cast("Any", field.type)))


def _is_connection(type_: GraphQLNamedType | None) -> bool:
    return type_ is not None and type_.name.endswith(CONNECTION)


def _page(node: FieldNode, definition: GraphQLField) -> Factor:
    """How long a page is, as far as the document says it."""
    said = {each.name.value: each.value for each in node.arguments or ()}
    ends = {name: _size(said.get(name)) for name in ("first", "last") if name in definition.args}
    size = PageSize(ends.get("first"), ends.get("last"), _default(definition))
    return size(Given({}, {})) if size.is_fixed else size


def _default(definition: GraphQLField) -> int:
    """How long a page is where nothing is said, nor in variables."""
    first = definition.args.get("first")
    size: Any = first.default_value if first else None
    return size if isinstance(size, int) else DEFAULT_SIZE


def _size(said: ValueNode | None) -> str | int | None:
    if isinstance(said, VariableNode):
        return said.name.value
    value: Any = value_from_ast_untyped(said) if said else None
    return value if isinstance(value, int) else None


def _variables(value: ValueNode) -> list[str]:
    """The variables in a literal, each as often as it is used."""
    found: list[str] = []
    level: list[Any] = [value]
    while level:
        each = level.pop()
        if isinstance(each, VariableNode):
            found.append(each.name.value)
        level += getattr(each, "values", None) or ()
        level += [member.value for member in getattr(each, "fields", None) or ()]
    return found


def _spread(node: SelectionSetNode) -> list[str]:
    """The fragments spread anywhere in a selection."""
    found: list[str] = []
    level: list[SelectionSetNode] = [node]
    while level:
        for each in level.pop().selections:
            if isinstance(each, FragmentSpreadNode):
                found.append(each.name.value)
            inside = cast("SelectionSetNode | None", getattr(each, "selection_set", None))
            if inside is not None:
                level.append(inside)
    return found


def _introspected(schema: GraphQLSchema) -> dict[str, int]:
    """How long the lists of introspection are, on average where there is one for each type."""
    types = list(schema.type_map.values())
    objects = [cast("Any", each) for each in types]

    def average(attribute: str) -> int:
        lengths = [len(getattr(each, attribute, ())) for each in objects]
        return ceil(sum(lengths) / len(lengths))

    fields = [f for each in objects for f in getattr(each, "fields", {}).values()]
    arguments = sum(len(getattr(each, "args", ())) for each in fields)
    return {
        "types": len(types),
        "directives": len(schema.directives),
        "fields": average("fields"),
        "inputFields": average("fields"),
        "enumValues": average("values"),
        "interfaces": average("interfaces"),
        "possibleTypes": average("types"),
        "args": ceil(arguments / max(1, len(fields))),
    }


__all__ = ["Operation", "Reader"]
