"""How large a document may be, and what its operations may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphql import GraphQLError, Node

from models import Role
from schema.permissions import RANKS
from services.actors import Viewer
from services.errors import ErrorCode


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each document and its operations; `introspection` None is for nobody."""

    max_document_chars: int = 65_536
    max_tokens: int = 2_000
    max_depth: int = 15
    max_aliases: int = 50
    max_root_fields: int = 50
    max_directives: int = 50
    max_filters: int = 200
    max_cost: int = 30_000
    cache_bytes: int = 33_554_432
    introspection: Role | None = Role.VIEWER


MAX_REPEATS = 30
"""Of one response name in a selection: each is compared with each."""
MAX_FRAGMENTS = 60
"""Of a document: each is compared with each that is spread beside it."""
MAX_INPUT_VALUES = 2_000
"""Input objects and listed values in one variable or argument, JSON aside."""
MAX_INPUT_DEPTH = 40
"""Of objects and lists: more than any input needs, and less than recursion can take."""


MAX_DIGITS = 400
"""Of a number in a document, all its characters: what reads it takes no more."""


def may_introspect(limits: Limits, viewer: Viewer) -> bool:
    """Whether a caller may ask for the schema, and is told of names like the one they wrote."""
    lowest = limits.introspection
    return lowest is not None and RANKS[viewer.role] >= RANKS[lowest]


def exceeded(
    what: str,
    requested: int,
    maximum: int,
    *,
    code: ErrorCode = ErrorCode.LIMIT_EXCEEDED,
    nodes: Sequence[Node] = (),
) -> GraphQLError:
    """The error of a document that has too much of something, or costs too much."""
    return GraphQLError(
        f"This has {requested} {what}; at most {maximum} are taken."
        if code is ErrorCode.LIMIT_EXCEEDED
        else f"This costs {requested}; at most {maximum} may be asked for at once.",
        nodes=list(nodes) or None,
        extensions={"code": code, "requested": requested, "maximum": maximum},
    )


def too_much(error: GraphQLError) -> GraphQLError:
    """A limit that the parser found exceeded."""
    return GraphQLError(
        error.message.removeprefix("Syntax Error: "),
        source=error.source,
        positions=error.positions,
        extensions={"code": ErrorCode.LIMIT_EXCEEDED},
    )
