"""Subscriptions that ask for the same: known by their documents, executed once for all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeVar, cast

import orjson
from graphql import (
    DocumentNode,
    ExecutionResult,
    Executor,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    VariableNode,
    Visitor,
    visit,
)

from models.statements import Unavailable
from resolvers.context import Context
from schema.failures import MAX_ERRORS, shown
from services.errors import DatabaseUnavailable
from services.listening import Batch, Question

OWN = ("after", "snapshot")
"""Arguments of a subscription that say where it begins, not what it tells."""

T = TypeVar("T")
Messages = Callable[[Batch], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Sharable:
    """A subscription by its document, as its client sent it."""

    query: str
    variables: dict[str, Any] | None
    operation_name: str | None

    def key(self, shared: frozenset[str]) -> tuple[str, str | None, bytes]:
        """The same for all that tell the same; `shared` as `shared_variables` finds them."""
        given = {k: v for k, v in (self.variables or {}).items() if k in shared}
        return self.query, self.operation_name, _canonical(given)


def _canonical(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a number beyond 64 bits
        return repr(value).encode()


def shared_variables(document: DocumentNode) -> dict[str | None, frozenset[str]]:
    """The variables of each subscription, by name, that make a difference to what it tells.

    None is the name of the only operation too.
    """
    operations = [
        each for each in document.definitions if isinstance(each, OperationDefinitionNode)
    ]
    subscriptions = [each for each in operations if each.operation is OperationType.SUBSCRIPTION]
    if not subscriptions:
        return {}
    uses = _Uses()
    visit(document, uses)
    found = {
        each.name.value if each.name else None: _shared(each, uses.counts) for each in subscriptions
    }
    return found | ({None: _shared(operations[0], uses.counts)} if len(operations) == 1 else {})


def _shared(operation: OperationDefinitionNode, uses: Counter[str]) -> frozenset[str]:
    own = Counter(_own(operation))
    declared = {each.variable.name.value for each in operation.variable_definitions or ()}
    return frozenset(name for name in declared if uses[name] != own[name])


def _own(operation: OperationDefinitionNode) -> list[str]:
    """The variables that stand as such an argument of the root field."""
    return [
        argument.value.name.value
        for field in operation.selection_set.selections
        if isinstance(field, FieldNode)
        for argument in field.arguments or ()
        if argument.name.value in OWN and isinstance(argument.value, VariableNode)
    ]


class _Uses(Visitor):
    """Counts how often each variable is used, wherever that is."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def enter_variable(self, node: VariableNode, _key: Any, parent: Any, *_: Any) -> None:
        if getattr(parent, "kind", "") != "variable_definition":
            self.counts[node.name.value] += 1


class Selection:
    """What a subscription selects of each message."""

    def __init__(self, executor: Executor[Any], messages: Messages) -> None:
        self._executor = executor
        self._messages = messages

    async def results(self, context: Context, batch: Batch) -> list[dict[str, Any]]:
        """The answers that tell of `batch`, in order. Raises `Unavailable`.

        What has begun is executed to its end: it only reads, and graphql-core does not clean up
        behind what is cut off.
        """
        messages = self._messages(batch)
        made = asyncio.gather(*[self._result(context, each) for each in messages])
        return await asyncio.shield(made)

    async def _result(self, context: Context, message: object) -> dict[str, Any]:
        executor = cast("Any", self._executor).build_per_event_executor(message)
        executor.context_value = context
        executed: Any = executor.execute_operation(serially=False)
        result: ExecutionResult = await executed if isawaitable(executed) else executed
        if not result.errors:
            return {"data": result.data}
        if any(map(_is_away, result.errors)):
            raise Unavailable("the database is away")
        errors = result.errors[:MAX_ERRORS]
        return {"data": result.data, "errors": [shown(each).formatted for each in errors]}


def _is_away(error: GraphQLError) -> bool:
    return isinstance(error.original_error, Unavailable | DatabaseUnavailable)


class Enquiry(Context):
    """The context in which an operation says what it would tell, and tells nothing."""

    asked: tuple[Question, Messages] | None = None

    async def listen(
        self, question: Question, messages: Callable[[Batch], Sequence[T]]
    ) -> AsyncGenerator[T, None]:
        self.asked = question, messages
        for nothing in ():
            yield nothing
