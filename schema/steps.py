"""What happens to an operation before it runs: its document, its caller, its cost, their rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn, cast

from graphql import GraphQLError
from strawberry.extensions import SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
from strawberry.schema.exceptions import CannotGetOperationTypeError
from strawberry.types import ExecutionContext
from strawberry.types.graphql import OperationType

from resolvers.context import Context
from schema import cost
from schema.documents import Checked, Documents
from schema.limits import exceeded, may_introspect
from schema.plans import Operation
from services.errors import ErrorCode, SignoffError

NOTHING = nullcontext()
COST = "cost"
"""Of a request's `extensions`: true asks for the member of this name in the answer's."""


class Steps(SchemaExtensionsRunner):
    """The steps of an operation, of which extensions have a part in `executing` alone.

    To look for their hooks in every step takes longer than many an operation.
    """

    def __init__(
        self, context: ExecutionContext, extensions: list[SchemaExtension], documents: Documents
    ) -> None:
        super().__init__(context, extensions)
        self._documents = documents
        self._operations: Mapping[str | None, Operation] = {}

    def operation(self) -> Any:
        return NOTHING

    def parsing(self) -> Any:
        """Of several operations none is the first: which one has to be said."""
        running = self.execution_context
        try:
            checked = self._found(running.query or "")
        except (GraphQLError, SignoffError) as error:
            running.parse_options = cast("Any", _Refusal(_told(error)))
            return NOTHING
        running.graphql_document = checked.document
        running.pre_execution_errors = list(checked.problems)
        self._operations = checked.operations
        if len(checked.operations) > 1 and _name_of(running) is None:
            raise CannotGetOperationTypeError(None)
        return NOTHING

    def validation(self) -> Any:
        running = self.execution_context
        if not running.pre_execution_errors:
            try:
                self._admit(self._operations[running.operation_name])
            except (GraphQLError, SignoffError) as error:
                running.pre_execution_errors = [_told(error)]
        return NOTHING

    def on_stream_result(self, result: object) -> Any:
        return NOTHING

    def _found(self, text: str) -> Checked:
        """Anything asked is charged for, and a text that was not sent lately before it is read."""
        self._charge(cost.OPERATION)
        known = self._documents.known(text)
        if known is not None:
            return known
        self._charge(len(text))
        checked = self._documents.check(text)
        if self._context:
            self._context.rt.rates.owe(self._context.viewer.budget, checked.work)
        return checked

    def _admit(self, operation: Operation) -> None:
        """Raise what speaks against running it."""
        limits = self._documents.limits
        running = self.execution_context
        if operation.introspects and self._documents.trusted is None:
            self._let_introspect()
        requested = operation.requested(running.variables, limits.max_filters)
        dear = requested > limits.max_cost
        self._charge(0 if dear else requested - cost.OPERATION)
        self._tell(requested)
        if dear:
            raise exceeded("cost", requested, limits.max_cost, code=ErrorCode.COST_EXCEEDED)

    def _let_introspect(self) -> None:
        context = self._context
        if context and not may_introspect(self._documents.limits, context.viewer):
            raise GraphQLError(
                "The schema is not shown to you here.",
                extensions={"code": ErrorCode.INTROSPECTION_OFF},
            )

    def _charge(self, units: int) -> None:
        if self._context:
            self._context.rt.rates.charge(self._context.viewer.budget, units)

    def _tell(self, requested: int) -> None:
        """Not with each event of a subscription: those are the same for everybody."""
        running = self.execution_context
        asked = (running.operation_extensions or {}).get(COST) is True
        if not asked or running.operation_type is OperationType.SUBSCRIPTION:
            return
        context = self._context
        left = context.rt.rates.left(context.viewer.budget) if context else None
        running.extensions_results[COST] = {
            "requested": requested,
            "maximum": self._documents.limits.max_cost,
            "remaining": left,
        }

    @property
    def _context(self) -> Context | None:
        """None where the program asks itself, such as for the whole schema."""
        return self.execution_context.context


def _name_of(context: ExecutionContext) -> str | None:
    """As the request has it; `operation_name` falls back on the first operation's."""
    return context._provided_operation_name  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _told(error: GraphQLError | SignoffError) -> GraphQLError:
    if isinstance(error, GraphQLError):
        return error
    return GraphQLError(str(error), original_error=error)


class _Refusal(Mapping[str, Any]):
    """Options for the parser that raise an error as soon as they are looked at.

    Strawberry parses next what has no document yet, and answers with what that raises.
    """

    def __init__(self, error: GraphQLError) -> None:
        self._error = error

    def __getitem__(self, name: str) -> NoReturn:
        raise self._error

    def __iter__(self) -> Iterator[NoReturn]:
        raise self._error

    def __len__(self) -> int:
        return 1
