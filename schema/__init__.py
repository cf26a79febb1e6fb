"""The GraphQL schema: what a client can see, and nothing of how it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import strawberry
from graphql import GraphQLError, build_schema, lexicographic_sort_schema, print_schema
from strawberry.extensions import ParserCache, ValidationCache
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter
from strawberry.types import ExecutionContext

from schema import enums as enums  # before the inputs, which have fields of these types
from schema import inputs as inputs
from schema.errors import HANDLERS
from schema.failures import Failures
from schema.mutation import Mutation
from schema.query import Query
from schema.scalars import SCALARS
from schema.subscription import Subscription
from schema.tracing import Traced
from schema.types.attempt import Attempt
from schema.types.verdict import Verdict

CACHED_DOCUMENTS = 1000


class _Names(NameConverter):
    """A trailing underscore sets a name apart from a keyword of Python: `in_` is `in`."""

    def apply_naming_config(self, name: str) -> str:
        return super().apply_naming_config(name.rstrip("_"))


class _Documents(ParserCache):
    """Leaves what cannot be parsed to the parser proper: an error from here is told uncooked."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        with suppress(GraphQLError):
            context.graphql_document = self.cached_parse_document(
                context.query, **context.parse_options
            )
        yield


class Schema(strawberry.Schema):
    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Log nothing here: what is unexpected is logged where it is masked, the rest is told."""


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    types=[Attempt, Verdict],
    exception_handlers=HANDLERS,
    extensions=[
        Failures,
        Traced,
        lambda: _Documents(maxsize=CACHED_DOCUMENTS),
        lambda: ValidationCache(maxsize=CACHED_DOCUMENTS),
    ],
    config=StrawberryConfig(name_converter=_Names(), scalar_map=SCALARS),
)


def sdl() -> str:
    """The schema in its definition language, sorted, as it is committed."""
    return print_schema(lexicographic_sort_schema(build_schema(schema.as_str()))) + "\n"


__all__ = ["schema", "sdl"]
