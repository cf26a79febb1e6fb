"""Errors as clients get them: expected ones with a code, all others masked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

import structlog
from graphql import GraphQLError
from strawberry.exceptions import MissingQueryError
from strawberry.pydantic import InputValidationError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError

from models.statements import Unavailable
from services.errors import DatabaseUnavailable, ErrorCode, InvalidInput, RateLimited, SignoffError

logger = structlog.get_logger(__name__)

MAX_ERRORS = 100
MAX_MESSAGE = 1000
"""Characters: messages quote what they are about, which may be megabytes."""
NO_OPERATION = (CannotGetOperationTypeError, InvalidOperationTypeError, MissingQueryError)
HINT = re.compile(r" Did you mean [^?]*\?")


def without_hint(error: GraphQLError) -> GraphQLError:
    """A mistake in a document or its variables, without names that the caller did not write."""
    cause = error.original_error
    if cause is not None and not isinstance(cause, GraphQLError):
        return error
    return GraphQLError(
        HINT.sub("", error.message),
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        original_error=cause,
        extensions=error.extensions,
    )


def shown_failure(error: Exception) -> GraphQLError:
    """The same of what was raised outside of an operation's fields."""
    return shown(GraphQLError("", original_error=error))


def shown(error: GraphQLError) -> GraphQLError:
    """What a client may know of `error`, with an `extensions.code`; the rest is logged by an id."""
    cause = error.original_error
    if cause is None:
        return _with(error, error.message, dict(error.extensions or {}), "GRAPHQL_ERROR")
    if isinstance(cause, Unavailable):
        cause = DatabaseUnavailable()
    if isinstance(cause, DatabaseUnavailable):
        logger.warning("the database is away", path=error.path, exc_info=error.original_error)
    if isinstance(cause, SignoffError):
        return _with(error, str(cause), _data(cause), cause.code)
    if isinstance(cause, InputValidationError):
        problems = [_field(e.location, e.message) for e in cause.errors]
        return _with(error, str(cause), {"fields": problems}, ErrorCode.VALIDATION)
    if isinstance(cause, (GraphQLError, *NO_OPERATION)):
        return _with(error, _why_not(error, cause), {}, "GRAPHQL_ERROR")
    error_id = secrets.token_hex(8)
    logger.error("unexpected error", error_id=error_id, path=error.path, exc_info=cause)
    message = f"Something went wrong on our side; the server's log has it as {error_id}."
    return _with(error, message, {"id": error_id}, "INTERNAL")


def _data(cause: SignoffError) -> dict[str, object]:
    if isinstance(cause, InvalidInput):
        return {"fields": [_field(p.path, p.message) for p in cause.problems]}
    if isinstance(cause, RateLimited):
        return {"retryAfter": cause.retry_after}
    return {}


def _field(path: Iterable[object], message: str) -> dict[str, object]:
    return {"path": [clipped(str(each)) for each in path], "message": clipped(message)}


def clipped(text: str) -> str:
    """As much of a message as is shown."""
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def _why_not(error: GraphQLError, cause: Exception) -> str:
    if isinstance(cause, GraphQLError):
        return error.message
    if not isinstance(cause, CannotGetOperationTypeError):
        return "There is no operation of a kind that can be done here."
    if cause.operation_name is None:
        return "Say by operationName which: the document has several operations, or none."
    return f"The document has no operation “{cause.operation_name}”."


def _with(
    error: GraphQLError, message: str, extensions: Mapping[str, object], code: str
) -> GraphQLError:
    return GraphQLError(
        clipped(message),
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        extensions={"code": code, **extensions},
    )
