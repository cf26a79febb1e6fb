"""The GraphQL schema: what a client can see, and nothing of how it is done."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

import strawberry
from graphql import (
    Executor,
    GraphQLError,
    build_schema,
    lexicographic_sort_schema,
    parse,
    print_schema,
    specified_rules,
)
from strawberry.extensions import SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter
from strawberry.schema.schema import validate_document
from strawberry.types import ExecutionContext

from schema import enums as enums  # before the inputs, which have fields of these types
from schema import inputs as inputs
from schema.documents import Checked, Steps
from schema.errors import HANDLERS
from schema.failures import MAX_ERRORS, shown
from schema.mutation import Mutation
from schema.query import Query
from schema.scalars import SCALARS
from schema.sharing import Asked, shared_variables
from schema.subscription import Subscription
from schema.tracing import Traced
from schema.types.attempt import Attempt
from schema.types.verdict import Verdict

CACHED_DOCUMENTS = 1000


class _Names(NameConverter):
    """A trailing underscore sets a name apart from a keyword of Python: `in_` is `in`."""

    def apply_naming_config(self, name: str) -> str:
        return super().apply_naming_config(name.rstrip("_"))


class Schema(strawberry.Schema):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._checked = lru_cache(CACHED_DOCUMENTS)(self._check)
        self.shared = lru_cache(CACHED_DOCUMENTS)(self._find_shared)

    def _check(self, query: str) -> Checked:
        document = parse(query)
        return document, validate_document(self._schema, document, tuple(specified_rules))

    def _find_shared(self, query: str, name: str | None) -> frozenset[str] | None:
        """The variables that make a difference to a subscription's messages; None if it is none.

        Nor is it one if there is anything wrong with the document.
        """
        with suppress(GraphQLError):
            document, problems = self._checked(query)
            return None if problems else shared_variables(document, name)
        return None

    def executor(self, asked: Asked) -> Executor[Any]:
        """What executes an operation that was executed before, so that it is known to be valid."""
        document, _ = self._checked(asked.query)
        made = cast("Any", self.execution_context_class).build(
            self._schema, document, None, None, asked.variables, asked.operation_name
        )
        assert not isinstance(made, list), made  # noqa: S101
        return made

    def create_extensions_runner(
        self, execution_context: ExecutionContext, extensions: list[SchemaExtension]
    ) -> SchemaExtensionsRunner:
        return Steps(execution_context, extensions, self._checked)

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Leave of them what a client may know; what is unexpected is logged there."""
        errors[:] = [shown(error) for error in errors[:MAX_ERRORS]]


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
