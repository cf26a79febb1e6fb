"""A document held against the schema, in bounded time, and the work that it made."""

from __future__ import annotations

from typing import Any, cast

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OverlappingFieldsCanBeMergedRule,
    ValidationContext,
    specified_rules,
    validate,
)
from graphql.validation.validate import ValidationAbortedError
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from services.errors import ErrorCode

MAX_PROBLEMS = 5
"""Told of a document: many of them print what they are about, which may be most of it."""
MAX_COMPARISONS = 20_000
"""Steps of comparing fields that come together, each with each: about 5 microseconds each."""
STEPS_A_UNIT = 2
CHARACTERS_A_UNIT = 20
"""Of a document, for each of its problems."""


class _Compared(OverlappingFieldsCanBeMergedRule):
    """With a budget of ours: the library's is a second and a half."""

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self.rule_context.remaining_complexity_budget = MAX_COMPARISONS

    @property
    def steps(self) -> int:
        return MAX_COMPARISONS - self.rule_context.remaining_complexity_budget


RULES = tuple(each for each in specified_rules if each is not OverlappingFieldsCanBeMergedRule)
OF_STRAWBERRY = (MaybeNullValidationRule, OneOfInputValidationRule)


def validated(
    schema: GraphQLSchema, document: DocumentNode, characters: int
) -> tuple[list[GraphQLError], int]:
    """What is wrong with it, and the units of cost that it took to find out."""
    compared: list[_Compared] = []

    def comparing(context: ValidationContext) -> _Compared:
        compared.append(_Compared(context))
        return compared[-1]

    rules = cast("Any", (*RULES, comparing, *OF_STRAWBERRY))
    found = validate(schema, document, rules, max_errors=MAX_PROBLEMS)
    work = sum(each.steps for each in compared) // STEPS_A_UNIT
    return _told(found), work + len(found) * characters // CHARACTERS_A_UNIT


def _told(found: list[GraphQLError]) -> list[GraphQLError]:
    """One that was given up before anything was wrong is too much, and not wrong."""
    if len(found) == 1 and isinstance(found[0], ValidationAbortedError):
        message = "To tell whether this document's fields can go together takes too long."
        return [GraphQLError(message, extensions={"code": ErrorCode.LIMIT_EXCEEDED})]
    return found
