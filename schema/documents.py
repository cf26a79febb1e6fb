"""Documents are parsed and validated once, however often they are sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from graphql import DocumentNode, GraphQLError, OperationDefinitionNode
from strawberry.extensions import SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
from strawberry.schema.exceptions import CannotGetOperationTypeError
from strawberry.types import ExecutionContext

Checked = tuple[DocumentNode, list[GraphQLError]]
"""A document, and what is wrong with it."""

NOTHING = nullcontext()


class Steps(SchemaExtensionsRunner):
    """The steps of an operation, of which extensions have a part in `executing` alone.

    To look for their hooks in every step takes longer than many an operation.
    """

    def __init__(
        self,
        context: ExecutionContext,
        extensions: list[SchemaExtension],
        checked: Callable[[str], Checked],
    ) -> None:
        super().__init__(context, extensions)
        self._checked = checked
        self._problems: list[GraphQLError] | None = None

    def operation(self) -> Any:
        return NOTHING

    def parsing(self) -> Any:
        """Leaves what cannot be parsed to the parser proper, which is next: it tells why.

        Of several operations none is the first: which one has to be said.
        """
        context = self.execution_context
        with suppress(GraphQLError):
            context.graphql_document, self._problems = self._checked(context.query or "")
            if _name_of(context) is None and _several(context.graphql_document):
                raise CannotGetOperationTypeError(None)
        return NOTHING

    def validation(self) -> Any:
        if self._problems is not None:
            self.execution_context.pre_execution_errors = list(self._problems)
        return NOTHING

    def on_stream_result(self, result: object) -> Any:
        return NOTHING


def _name_of(context: ExecutionContext) -> str | None:
    """As the request has it; `operation_name` falls back on the first operation's."""
    return context._provided_operation_name  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _several(document: DocumentNode) -> bool:
    found = (each for each in document.definitions if isinstance(each, OperationDefinitionNode))
    return next(found, None) is not None and next(found, None) is not None
