"""The GraphQL schema: what a client can see, and nothing of how it is done."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any, Self, cast

import strawberry
from graphql import (
    Executor,
    GraphQLError,
    build_schema,
    lexicographic_sort_schema,
    print_schema,
)
from strawberry.extensions import SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter
from strawberry.types import ExecutionContext

from resolvers.context import Context
from schema import enums as enums  # before the inputs, which have fields of these types
from schema import inputs as inputs
from schema.documents import Documents
from schema.errors import HANDLERS
from schema.failures import MAX_ERRORS, shown, without_hint
from schema.limits import Limits, may_introspect
from schema.mutation import Mutation
from schema.query import Query
from schema.scalars import SCALARS
from schema.sharing import Sharable
from schema.steps import Steps
from schema.subscription import Subscription
from schema.tracing import Traced
from schema.types.attempt import Attempt
from schema.types.verdict import Verdict


class _Names(NameConverter):
    """A trailing underscore sets a name apart from a keyword of Python: `in_` is `in`."""

    def apply_naming_config(self, name: str) -> str:
        return super().apply_naming_config(name.rstrip("_"))


class Schema(strawberry.Schema):
    """`documents` are those that it takes, and keeps parsed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.documents = Documents(self._schema)

    def limited(self, limits: Limits, trusted: Iterable[str] | None = None) -> Self:
        """The same schema for a server of its own, which takes only `trusted` texts if given.

        Raises `GraphQLError` for a trusted one that is not valid.
        """
        limited = copy(self)
        limited.documents = Documents(self._schema, limits)
        if trusted is not None:
            limited.documents = limited.documents.trusting(trusted)
        return limited

    def shared_variables(self, asked: Sharable) -> frozenset[str]:
        """Those that make a difference to what a subscription tells, which was executed before."""
        return self.documents.again(asked.query).shared[asked.operation_name]

    def executor(self, asked: Sharable) -> Executor[Any]:
        """What executes an operation that was executed before, so that it is known to be valid."""
        made = cast("Any", self.execution_context_class).build(
            self._schema,
            self.documents.again(asked.query).document,
            None,
            None,
            asked.variables,
            asked.operation_name,
        )
        assert not isinstance(made, list), made  # noqa: S101
        return made

    def create_extensions_runner(
        self, execution_context: ExecutionContext, extensions: list[SchemaExtension]
    ) -> SchemaExtensionsRunner:
        return Steps(execution_context, extensions, self.documents)

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Leave of them what a client may know; what is unexpected is logged there."""
        context: Context | None = execution_context.context if execution_context else None
        told = errors[:MAX_ERRORS]
        if context and not may_introspect(self.documents.limits, context.viewer):
            told = [without_hint(error) for error in told]
        errors[:] = [shown(error) for error in told]


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    types=[Attempt, Verdict],
    exception_handlers=HANDLERS,
    extensions=[Traced],
    config=StrawberryConfig(name_converter=_Names(), scalar_map=SCALARS),
)


def sdl() -> str:
    """The schema in its definition language, sorted, as it is committed."""
    return print_schema(lexicographic_sort_schema(build_schema(schema.as_str()))) + "\n"


__all__ = ["schema", "sdl"]
