"""Operations executed, their results encoded: what WebSockets and event streams send."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

import structlog
from graphql import GraphQLError
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError

from resolvers.context import Context
from schema.failures import shown_failure
from signoff.asked import Asked, encoded
from signoff.guarding import Guard

logger = structlog.get_logger(__name__)


class NotExecuted(Exception):
    """Nothing came of the operation but these errors, as clients get them."""

    def __init__(self, errors: Sequence[GraphQLError]) -> None:
        super().__init__()
        self.errors: list[Any] = [error.formatted for error in errors]


async def stream(guard: Guard, context: Context, asked: Asked) -> AsyncGenerator[bytes]:
    """Each result of any operation, encoded: one of a query, any number of a subscription.

    Raises `NotExecuted`, of what is unexpected too.
    """
    try:
        results = await guard.schema.stream(
            guard.admitted(asked, context),
            variable_values=asked.variables,
            context_value=context,
            operation_name=asked.operation_name,
            operation_extensions=asked.extensions,
        )
        async with aclosing(results):
            async for result in results:
                yield encoded(_executed(result))
    except NotExecuted:
        raise
    except Exception as error:
        raise NotExecuted([shown_failure(error)]) from error


def _executed(result: object) -> dict[str, Any]:
    told = cast("ExecutionResult", result)  # @defer and @stream are not in the schema
    if not_executed(told):
        raise NotExecuted(told.errors or [])
    return body(told)


def body(result: ExecutionResult) -> dict[str, Any]:
    """What a client gets of it."""
    told: dict[str, Any] = {} if not_executed(result) else {"data": result.data}
    if result.errors:
        told["errors"] = [error.formatted for error in result.errors]
    if result.extensions:
        told["extensions"] = result.extensions
    return told


def not_executed(result: ExecutionResult) -> bool:
    """Whether it ended before execution began: nothing was resolved, so no error has a path."""
    if isinstance(result, PreExecutionError):
        return True
    return result.data is None and all(error.path is None for error in result.errors or ())
