"""Expected failures as types, so a client can match on them.

To add one: a class here, a line in `HANDLERS`, and its name in the result
union of each mutation that can end so. Where a field has no union, in queries
and subscriptions, the failure is a GraphQL error with `extensions.code`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import strawberry
from strawberry.pydantic import InputValidationError
from strawberry.types.field import StrawberryField

from resolvers.context import Context
from schema.enums import ErrorCode, JobAction, JobStatus
from schema.failures import clipped
from services import errors

if TYPE_CHECKING:
    from schema.types.agent import Agent
    from schema.types.job import Job


@strawberry.interface(description="Why a mutation did not do what it was asked.")
class Error:
    code: ErrorCode
    message: str


@strawberry.type(description="There is no such thing, or it is not the caller's to see.")
class NotFound(Error):
    id: strawberry.ID


@strawberry.type(description="The caller may not do this.")
class Forbidden(Error):
    pass


@strawberry.type(description="What is wrong with one value.")
class FieldProblem:
    path: list[str] = strawberry.field(
        description="Argument, field names and list indexes, from the outside in."
    )
    message: str


@strawberry.type(description="Values that cannot be taken; nothing was changed.")
class InvalidInput(Error):
    fields: list[FieldProblem]


@strawberry.type(description="The job's status does not allow it.")
class IllegalTransition(Error):
    status: JobStatus
    action: JobAction
    allowed_actions: list[JobAction] = strawberry.field(
        description="What the caller can do with the job now."
    )


@strawberry.type(description="The job has changed since the caller read it.")
class VersionConflict(Error):
    expected: int
    actual: int
    current: Annotated[Job, strawberry.lazy("schema.types.job")]


@strawberry.type(description="A value does not fit the agent's schema.")
class SchemaMismatch(Error):
    pointer: str = strawberry.field(description="RFC 6901 pointer into the value.")
    keyword: str = strawberry.field(description="The keyword of the schema that refused it.")


@strawberry.type(description="The idempotency key came with another request before.")
class IdempotencyConflict(Error):
    original_request_at: datetime


@strawberry.type(description="The agent takes no work.")
class AgentUnavailable(Error):
    agent: Annotated[Agent, strawberry.lazy("schema.types.agent")]


@strawberry.type(description="There are as many of something as there may be.")
class LimitExceeded(Error):
    limit: int


@strawberry.type(description="The next call could take more than is left of the job's budget.")
class BudgetExceeded(Error):
    pass


@strawberry.type(description="What the job depends on stands in its way.")
class DependencyProblem(Error):
    jobs: list[Annotated[Job, strawberry.lazy("schema.types.job")]] = strawberry.field(
        description="The jobs that it waits for, or those of the circle that it would close, in "
        "order; without those that are not the caller's to see."
    )


@dataclass(frozen=True)
class Shown:
    """Turns an exception into a member of a result union."""

    exception_type: type[Exception]
    error_type: type[Error]
    convert: Callable[[Any], Error]

    def handle(
        self, exception: Exception, *, field: StrawberryField, info: strawberry.Info
    ) -> Error:
        return self.convert(exception)


class ShownInPart:
    """The same for jobs in the way, as far as the caller may see them."""

    exception_type = errors.DependencyProblem
    error_type = DependencyProblem

    def handle(
        self, exception: Exception, *, field: StrawberryField, info: strawberry.Info
    ) -> Error:
        from schema.types.job import Job

        assert isinstance(exception, errors.DependencyProblem)  # noqa: S101
        viewer = cast("Context", info.context).viewer
        seen = [Job.of(job) for job in exception.jobs if viewer.sees(job)]
        return DependencyProblem(code=exception.code, message=str(exception), jobs=seen)


def _not_found(e: errors.NotFound) -> NotFound:
    return NotFound(code=e.code, message=str(e), id=strawberry.ID(e.id))


def _forbidden(e: errors.Forbidden) -> Forbidden:
    return Forbidden(code=e.code, message=str(e))


def _invalid_input(e: errors.InvalidInput) -> InvalidInput:
    fields = [_field(each.path, each.message) for each in e.problems]
    return InvalidInput(code=e.code, message=clipped(str(e)), fields=fields)


def _invalid_command(e: InputValidationError) -> InvalidInput:
    fields = [_field(each.location, each.message) for each in e.errors]
    return InvalidInput(code=ErrorCode.VALIDATION, message=clipped(str(e)), fields=fields)


def _field(path: Iterable[str], message: str) -> FieldProblem:
    return FieldProblem(path=[clipped(each) for each in path], message=clipped(message))


def _illegal_transition(e: errors.IllegalTransition) -> IllegalTransition:
    return IllegalTransition(
        code=e.code,
        message=str(e),
        status=e.status,
        action=JobAction(e.action),
        allowed_actions=[JobAction(action) for action in e.allowed_actions],
    )


def _version_conflict(e: errors.VersionConflict) -> VersionConflict:
    from schema.types.job import Job

    return VersionConflict(
        code=e.code,
        message=str(e),
        expected=e.expected,
        actual=e.current.version,
        current=Job.of(e.current),
    )


def _schema_mismatch(e: errors.SchemaMismatch) -> SchemaMismatch:
    return SchemaMismatch(code=e.code, message=str(e), pointer=e.pointer, keyword=e.keyword)


def _idempotency_conflict(e: errors.IdempotencyConflict) -> IdempotencyConflict:
    return IdempotencyConflict(
        code=e.code, message=str(e), original_request_at=e.original_request_at
    )


def _agent_unavailable(e: errors.AgentUnavailable) -> AgentUnavailable:
    from schema.types.agent import Agent

    return AgentUnavailable(code=e.code, message=str(e), agent=Agent.of(e.agent))


def _limit_exceeded(e: errors.LimitExceeded) -> LimitExceeded:
    return LimitExceeded(code=e.code, message=str(e), limit=e.limit)


def _budget_exceeded(e: errors.BudgetExceeded) -> BudgetExceeded:
    return BudgetExceeded(code=e.code, message=str(e))


HANDLERS = (
    ShownInPart(),
    Shown(errors.NotFound, NotFound, _not_found),
    Shown(errors.Forbidden, Forbidden, _forbidden),
    Shown(errors.InvalidInput, InvalidInput, _invalid_input),
    Shown(InputValidationError, InvalidInput, _invalid_command),
    Shown(errors.IllegalTransition, IllegalTransition, _illegal_transition),
    Shown(errors.VersionConflict, VersionConflict, _version_conflict),
    Shown(errors.SchemaMismatch, SchemaMismatch, _schema_mismatch),
    Shown(errors.IdempotencyConflict, IdempotencyConflict, _idempotency_conflict),
    Shown(errors.AgentUnavailable, AgentUnavailable, _agent_unavailable),
    Shown(errors.LimitExceeded, LimitExceeded, _limit_exceeded),
    Shown(errors.BudgetExceeded, BudgetExceeded, _budget_exceeded),
)
