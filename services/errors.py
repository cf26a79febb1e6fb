"""Expected failures. Each carries what a caller needs to act on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from models import Agent, Job, JobStatus


class ErrorCode(StrEnum):
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    VALIDATION = "VALIDATION"
    INVALID_TRANSITION = "INVALID_TRANSITION"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    DEPENDENCY_CYCLE = "DEPENDENCY_CYCLE"
    DEPENDENCIES_UNMET = "DEPENDENCIES_UNMET"
    AGENT_UNAVAILABLE = "AGENT_UNAVAILABLE"
    INPUT_SCHEMA = "INPUT_SCHEMA"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    COST_EXCEEDED = "COST_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"
    UNTRUSTED_DOCUMENT = "UNTRUSTED_DOCUMENT"
    INTROSPECTION_OFF = "INTROSPECTION_OFF"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    UNAVAILABLE = "UNAVAILABLE"


class SignoffError(Exception):
    """Base of every expected failure; anything else is a bug."""

    code: ClassVar[ErrorCode]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one value: its path in the input, and why."""

    path: tuple[str, ...]
    message: str


class DatabaseUnavailable(SignoffError):
    """The database did not answer, or could not take it."""

    code = ErrorCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(
            "The database cannot be reached, or cannot take this, at the moment; try again. "
            "Whether this was done is unknown: with an idempotencyKey it is done once."
        )


class NotFound(SignoffError):
    """Also the answer for what exists but is not the caller's to see."""

    code = ErrorCode.NOT_FOUND

    def __init__(self, id: str) -> None:
        super().__init__(f"There is no {id} that you can see.")
        self.id = id


class Forbidden(SignoffError):
    """The caller sees the thing, but may not do this."""

    code = ErrorCode.FORBIDDEN


class Unauthenticated(SignoffError):
    """No valid credential came with the request."""

    code = ErrorCode.UNAUTHENTICATED


class UnknownDocument(SignoffError):
    """The server was asked for one of its own documents, and has none of that id."""

    code = ErrorCode.UNTRUSTED_DOCUMENT


class RateLimited(SignoffError):
    """The caller has used up what they may ask for in a while."""

    code = ErrorCode.RATE_LIMITED

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"That was too much in a short time; try again in {retry_after} s.")
        self.retry_after = retry_after


class InvalidInput(SignoffError):
    code = ErrorCode.VALIDATION

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(p.path)}: {p.message}" for p in problems))
        self.problems = tuple(problems)

    @classmethod
    def at(cls, *path: str, message: str) -> InvalidInput:
        return cls([Problem(path, message)])


class IllegalTransition(SignoffError):
    code = ErrorCode.INVALID_TRANSITION

    def __init__(
        self, status: JobStatus, action: str, why: str, allowed_actions: Sequence[str]
    ) -> None:
        super().__init__(why)
        self.status = status
        self.action = action
        self.allowed_actions = tuple(allowed_actions)


class VersionConflict(SignoffError):
    code = ErrorCode.VERSION_CONFLICT

    def __init__(self, expected: int, current: Job) -> None:
        super().__init__(
            f"The job has changed: you expected version {expected}, it is at {current.version}. "
            "Read it again and repeat."
        )
        self.expected = expected
        self.current = current


class SchemaMismatch(SignoffError):
    """A value does not fit an agent's schema."""

    code = ErrorCode.INPUT_SCHEMA

    def __init__(self, message: str, *, pointer: str, keyword: str) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.keyword = keyword


class AgentUnavailable(SignoffError):
    code = ErrorCode.AGENT_UNAVAILABLE

    def __init__(self, agent: Agent) -> None:
        super().__init__(
            f"The agent “{agent.name}” is {agent.availability.value}; "
            "choose an ACTIVE one or set its availability."
        )
        self.agent = agent


class DependencyProblem(SignoffError):
    """`jobs` stand in the way, among them perhaps some that the caller must not see."""

    def __init__(self, message: str, jobs: Sequence[Job]) -> None:
        super().__init__(message)
        self.jobs = tuple(jobs)


class DependenciesUnmet(DependencyProblem):
    code = ErrorCode.DEPENDENCIES_UNMET

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> DependenciesUnmet:
        waits = "a job that is" if len(jobs) == 1 else f"{len(jobs)} jobs that are"
        return cls(f"It waits for {waits} not completed.", jobs)


class DependencyCycle(DependencyProblem):
    code = ErrorCode.DEPENDENCY_CYCLE

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(f"The job would wait for itself, in a circle of {len(jobs)}.", jobs)


class IdempotencyConflict(SignoffError):
    code = ErrorCode.IDEMPOTENCY_MISMATCH

    def __init__(self, key: str, original_request_at: datetime) -> None:
        super().__init__(
            f"The idempotency key “{key}” came with another request before; "
            "use a new key for a new request."
        )
        self.original_request_at = original_request_at


class LimitExceeded(SignoffError):
    """Something has as many as it may have."""

    code = ErrorCode.LIMIT_EXCEEDED

    def __init__(self, message: str, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class BudgetExceeded(SignoffError):
    """The next call could take more than is left of a job's budget."""

    code = ErrorCode.BUDGET_EXCEEDED
