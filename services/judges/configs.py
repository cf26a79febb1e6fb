"""What each kind of criterion is told by its `config`; a config that is valid can be checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from models import CriterionKind, jsontext
from services import json_schemas
from services.judges import languages, pointers


def _compiles(compile: Callable[[str], object]) -> Callable[[str], str]:
    def check(source: str) -> str:
        try:
            compile(source)
        except languages.BadSource as e:
            raise PydanticCustomError("bad_source", "{why}", {"why": str(e)}) from None
        return source

    return check


def _pointer(pointer: str) -> str:
    if why := pointers.problem(pointer):
        raise PydanticCustomError("bad_pointer", "{why}", {"why": why})
    return pointer


def _schema(schema: Any) -> Any:
    _compiles(json_schemas.compile)(jsontext.dumps(schema))
    return schema


Pointer = Annotated[str, Field(max_length=1_000), AfterValidator(_pointer)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Located(Config):
    pointer: Pointer = ""


class ExactConfig(Located):
    """The value at the pointer is this one."""

    value: Any


class ContainsConfig(Located):
    """The text at the pointer, or its JSON, has this in it."""

    value: Annotated[str, Field(min_length=1)]
    ignore_case: bool = Field(default=False, alias="ignoreCase")


class RegexConfig(Located):
    """RE2 finds the pattern somewhere in the text at the pointer."""

    pattern: Annotated[str, AfterValidator(_compiles(languages.regex))]


class JsonSchemaConfig(Located):
    """The value at the pointer fits the schema."""

    schema_: Annotated[dict[str, Any] | bool, AfterValidator(_schema)] = Field(alias="schema")


class JsonPathConfig(Config):
    """The path selects something (or nothing: `exists: false`), or something equal to `value`."""

    path: Annotated[str, AfterValidator(_compiles(languages.json_path))]
    value: Any = None
    exists: bool = True

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if {"value", "exists"} <= self.model_fields_set:
            raise PydanticCustomError("ambiguous", "Give `value` or `exists`, not both")
        return self


class ExpressionConfig(Config):
    """The CEL expression is true of `input`, `output` and `job`."""

    cel: Annotated[str, AfterValidator(_compiles(languages.expression))]


class LatencyConfig(Config):
    """The agent answered within so many milliseconds."""

    max_ms: Annotated[int, Field(gt=0, le=2**31)] = Field(alias="maxMs")


class LLMConfig(Config):
    """A model judges; `instructions` tell it how to read this criterion."""

    instructions: Annotated[str, Field(max_length=4_000)] | None = None


CONFIGS: Mapping[CriterionKind, type[Config]] = {
    CriterionKind.EXACT: ExactConfig,
    CriterionKind.CONTAINS: ContainsConfig,
    CriterionKind.REGEX: RegexConfig,
    CriterionKind.JSON_SCHEMA: JsonSchemaConfig,
    CriterionKind.JSON_PATH: JsonPathConfig,
    CriterionKind.EXPRESSION: ExpressionConfig,
    CriterionKind.LATENCY: LatencyConfig,
    CriterionKind.LLM: LLMConfig,
}
