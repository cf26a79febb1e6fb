from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from strawberry.extensions import SchemaExtension
from strawberry.types.graphql import OperationType

from resolvers.context import Context
from services import tracing
from services.tracing import ERROR, Kind

MAX_NAME = 200


class Traced(SchemaExtension):
    """A span for each query and mutation; a subscription is as long as somebody listens."""

    def on_execute(self) -> Iterator[None]:
        running = self.execution_context
        context = cast("Context | None", running.context)
        tracer = context.rt.tracer if context else None
        if tracer is None or running.operation_type is OperationType.SUBSCRIPTION:
            yield
            return
        kind = running.operation_type.value
        with tracing.span(tracer, kind, Kind.SERVER, {"graphql.operation.type": kind}) as told:
            if running.operation_name:
                told["graphql.operation.name"] = running.operation_name[:MAX_NAME]
            yield
            if running.result is not None and running.result.errors:
                told[ERROR] = "graphql"
