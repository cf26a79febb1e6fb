"""The values that commands are made of, and their limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NewType
from uuid import UUID

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_JSON_BYTES = 1_048_576
MAX_JSON_DEPTH = 200
ORJSON_DEPTH = 254
"""Levels that orjson writes: more than a value may have, since logs and answers wrap it."""
MAX_INT32 = 2_147_483_647


class Command(BaseModel):
    """What a caller asks for: checked when it is made, never changed after."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def public_id(prefix: str, key: UUID | int) -> str:
    """An id as clients see it: `job_0190…`, so that its type can be read off."""
    return f"{prefix}_{key.hex if isinstance(key, UUID) else key}"


def parse_id(prefix: str, text: object) -> UUID:
    """Raises `ValueError` for what is no id of this type."""
    if isinstance(text, UUID):
        return text
    head, _, tail = str(text).partition("_")
    if head != prefix or len(tail) != 32:  # noqa: PLR2004
        raise ValueError(f"is not the id of {'an' if prefix[0] in 'aeiou' else 'a'} {prefix}")
    return UUID(hex=tail)


def _id_of(prefix: str) -> Callable[[object], UUID]:
    return lambda text: parse_id(prefix, text)


JobId = Annotated[UUID, BeforeValidator(_id_of("job"))]
AgentId = Annotated[UUID, BeforeValidator(_id_of("agent"))]
AttemptId = Annotated[UUID, BeforeValidator(_id_of("attempt"))]
WebhookId = Annotated[UUID, BeforeValidator(_id_of("webhook"))]


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the character U+0000")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain half of a surrogate pair") from None
    return text


def storable(text: str) -> str:
    """Text from outside as a database can keep it: Postgres has no U+0000."""
    return text.replace("\0", "\ufffd")


STORABLE = AfterValidator(_storable)
Text = Annotated[str, STORABLE]
Name = Annotated[str, Field(min_length=1, max_length=200), STORABLE]
LongText = Annotated[str, Field(max_length=20_000), STORABLE]
Reason = Annotated[str, Field(min_length=1, max_length=2_000), STORABLE]
Key = Annotated[str, Field(min_length=1, max_length=200), STORABLE]
Version = Annotated[int, Field(ge=1, le=MAX_INT32)]

RawJson = NewType("RawJson", object)


def _encodable(value: Any) -> Any:
    wrapped, spare = value, ORJSON_DEPTH - MAX_JSON_DEPTH
    for _ in range(spare):
        wrapped = [wrapped]
    try:
        size = len(orjson.dumps(wrapped)) - 2 * spare
    except TypeError as error:  # integers over 64 bits, depth, half surrogates
        raise ValueError(f"cannot be kept as JSON: {error}") from None
    if size > MAX_JSON_BYTES:
        raise ValueError(f"is {size} bytes of JSON; at most {MAX_JSON_BYTES} are taken")
    return value


Json = Annotated[RawJson, AfterValidator(_encodable)]
