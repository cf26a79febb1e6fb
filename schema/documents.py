"""Documents are parsed and validated once, however often they are sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from graphql import DocumentNode, GraphQLError
from strawberry.extensions import SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
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
        """Leaves what cannot be parsed to the parser proper, which is next: it tells why."""
        context = self.execution_context
        with suppress(GraphQLError):
            context.graphql_document, self._problems = self._checked(context.query or "")
        return NOTHING

    def validation(self) -> Any:
        if self._problems is not None:
            self.execution_context.pre_execution_errors = list(self._problems)
        return NOTHING

    def on_stream_result(self, result: object) -> Any:
        return NOTHING
