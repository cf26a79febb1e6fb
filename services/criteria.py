"""Acceptance criteria: as a user drafts them, and as the checklist a verdict is held against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models import CriterionKind, jsontext
from services.judges import configs
from services.values import STORABLE, RawJson

MAX_ITEMS = 100
MAX_TEXT = 20_000
MAX_ITEM_TEXT = 2_000
MAX_CONFIG_BYTES = 20_000

MARKER = re.compile(r"([ \t]*)(?:[-*•]|\d{1,3}[.)])[ \t]+(?:\[[ xX]?\](?=\s|$)[ \t]*)?(.*)")
RULE = re.compile(r"\s*([-*_])(?:\s*\1){2,}\s*")
HEADING = re.compile(
    r"\s*(?:#{1,6}\s.*|(?:acceptance )?criteria:?|requirements:?)\s*", re.IGNORECASE
)


class Criterion(BaseModel):
    """One requirement; `config` is what its kind needs, valid since it was drafted."""

    model_config = ConfigDict(frozen=True)

    key: str
    text: str
    kind: CriterionKind = CriterionKind.LLM
    config: dict[str, Any] = Field(default_factory=dict[str, Any])
    weight: float = 1
    required: bool = True


class Checklist(BaseModel):
    """The text as the user wrote it, and what is checked.

    `pass_threshold` is the weighted share of all criteria that must pass,
    besides every required one; at 0 only the required ones decide.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    items: tuple[Criterion, ...]
    pass_threshold: float = 0


class CriterionDraft(BaseModel):
    """One requirement; `config` depends on the kind."""

    model_config = ConfigDict(frozen=True)

    key: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$"), STORABLE]
        | None
    ) = Field(default=None, description="Names it in results; made up if not given.")
    text: Annotated[str, Field(min_length=1, max_length=MAX_ITEM_TEXT, pattern=r"\S"), STORABLE] = (
        Field(description="What must hold, in words.")
    )
    kind: CriterionKind = Field(default=CriterionKind.LLM, description="Who checks it, and how.")
    config: RawJson | None = Field(
        default=None,
        validate_default=True,
        description=(
            "By kind: EXACT {value, pointer?}, CONTAINS {value, pointer?, ignoreCase?}, "
            "REGEX {pattern, pointer?}, JSON_SCHEMA {schema, pointer?}, "
            "JSON_PATH {path, value? | exists?}, EXPRESSION {cel}, LATENCY {maxMs}, "
            "LLM {instructions?}. A pointer is RFC 6901, into the agent's output."
        ),
    )
    weight: float = Field(
        default=1, gt=0, le=1_000, allow_inf_nan=False, description="Its share of the score."
    )
    required: bool = Field(default=True, description="Whether the output fails without it.")

    @field_validator("config", mode="after")
    @classmethod
    def _config_of_its_kind(cls, config: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if kind is None:  # refused already
            return config
        given = _plain_json({} if config is None else config)
        try:
            configs.CONFIGS[kind].model_validate(given)
        except ValidationError as e:
            raise _located(e) from None
        return given


class CriteriaDraft(BaseModel):
    """What the result must be: free text, a checklist, or both.

    Given items are the checklist, and the text stays beside them as record.
    Free text alone becomes the checklist, see `split`.
    """

    model_config = ConfigDict(frozen=True)

    text: Annotated[str, Field(max_length=MAX_TEXT), STORABLE] | None = Field(
        default=None, description="Kept verbatim; without items it is split into a checklist."
    )
    items: Annotated[list[CriterionDraft], Field(max_length=MAX_ITEMS)] | None = Field(
        default=None, description="The checklist."
    )
    pass_threshold: float = Field(
        default=0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "Weighted share of all criteria that must pass, besides every required one; "
            "0 = only the required ones decide."
        ),
    )

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        if why := _undecidable(checklist(self)):
            raise PydanticCustomError("undecidable", "{why}", {"why": why})
        return self


def checklist(draft: CriteriaDraft) -> Checklist:
    """What is stored of a draft and judged by: every item with a key, the text never empty."""
    items = draft.items or [CriterionDraft.model_construct(text=t) for t in split(draft.text)]
    text = draft.text or "\n".join(f"- {item.text}" for item in items)
    return Checklist(text=text, items=tuple(_keyed(items)), pass_threshold=draft.pass_threshold)


def split(text: str | None) -> list[str]:
    """Free text as requirements, none of it lost.

    Bullets, checkboxes and numbered lines are one requirement each, with the
    deeper bullets and the lines that continue them. A line that ends in a colon
    introduces the bullets after it and is put before each (“The summary must:
    be short”). Headings are dropped. Any other paragraph is a requirement of
    its own; so is a text without bullets, as a whole.
    """
    text = text or ""
    lines = text.splitlines()
    indents = [len(m[1].expandtabs(4)) for m in map(_marker, lines) if m]
    if not indents:
        return [text.strip()] if text.strip() else []
    found = list(_requirements(_blocks(lines, min(indents))))
    return found or [text.strip()]


@dataclass(slots=True)
class Block:
    """A bullet or a paragraph, with the lines that belong to it."""

    bullet: bool
    lines: list[str]


def _blocks(lines: Iterable[str], indent: int) -> Iterator[Block]:
    block: Block | None = None
    after_blank = False
    for line in lines:
        if not line.strip():
            after_blank = True
            continue
        begun = _begun(line, block, indent, after_blank=after_blank)
        after_blank = False
        if begun is None:
            cast("Block", block).lines.append(line.expandtabs(4)[indent:].rstrip())
            continue
        if block:
            yield block
        block = begun
    if block:
        yield block


def _begun(line: str, block: Block | None, indent: int, *, after_blank: bool) -> Block | None:
    """The block that a line begins, or nothing if it belongs to the one before."""
    marker = _marker(line)
    if marker and (not block or len(marker[1].expandtabs(4)) <= indent + 1):
        return Block(bullet=True, lines=[marker[2].strip()])
    if not block or _separates(line) or _is_heading(block):
        return Block(bullet=False, lines=[line.strip()])
    indented = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip()) > indent
    if after_blank and not (block.bullet and indented):
        return Block(bullet=False, lines=[line.strip()])
    return None


def _requirements(blocks: Iterable[Block]) -> Iterator[str]:
    intro, used = "", True
    for block in blocks:
        text = "\n".join(block.lines).strip()
        if block.bullet and text:
            yield f"{intro} {text}" if intro else text
            used = True
        elif not block.bullet:
            if not used:
                yield intro
            intro, used = "", True
            if text.endswith(":") and not _is_heading(block):
                intro, used = text, False
            elif text and not _is_heading(block):
                yield text
    if not used:
        yield intro


def _is_heading(block: Block) -> bool:
    return not block.bullet and all(map(_separates, block.lines))


def _separates(line: str) -> bool:
    return bool(HEADING.fullmatch(line) or RULE.fullmatch(line))


def _marker(line: str) -> re.Match[str] | None:
    return None if RULE.fullmatch(line) else MARKER.fullmatch(line)


def _keyed(drafts: list[CriterionDraft]) -> Iterator[Criterion]:
    taken = {draft.key for draft in drafts}
    free = (key for key in map("c{}".format, count(1)) if key not in taken)
    for draft in drafts:
        yield Criterion(
            key=draft.key or next(free),
            text=draft.text,
            kind=draft.kind,
            config=cast("dict[str, Any]", draft.config or {}),
            weight=draft.weight,
            required=draft.required,
        )


def _undecidable(checklist: Checklist) -> str | None:
    keys = [item.key for item in checklist.items]
    if not keys:
        return "Say what the result must be: give `text`, or at least one item"
    if len(keys) > MAX_ITEMS:
        return f"The text has {len(keys)} list items, at most {MAX_ITEMS} are allowed"
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        return f"Keys must differ; given more than once: {', '.join(twice)}"
    if checklist.pass_threshold == 0 and not any(item.required for item in checklist.items):
        return (
            "No item is required and the pass threshold is 0, so nothing would decide: "
            "require an item or set a threshold"
        )
    return None


def _plain_json(config: Any) -> Any:
    try:
        text = jsontext.dumps(config)
    except TypeError as e:
        raise PydanticCustomError(
            "not_json", "config: not JSON that can be stored: {why}", {"why": str(e)}
        ) from None
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise PydanticCustomError(
            "too_long", "config: at most {limit} bytes of JSON", {"limit": MAX_CONFIG_BYTES}
        )
    if any("\0" in part for part in _strings(config)):
        raise PydanticCustomError(
            "nul_character", "config: the NUL character (U+0000) is not allowed"
        )
    return config


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in cast("dict[str, Any]", value).items():
            yield key
            yield from _strings(child)
    elif isinstance(value, list):
        for child in cast("list[Any]", value):
            yield from _strings(child)


def _located(error: ValidationError) -> ValidationError:
    """The same errors, each naming its place inside `config`: clients see no path into a JSON."""
    details: list[InitErrorDetails] = []
    for e in error.errors(include_url=False):
        loc = tuple(step for step in e["loc"] if step not in {"bool", "dict[str,any]"})
        where = ".".join(("config", *map(str, loc)))
        kind = PydanticCustomError(e["type"], "{why}", {"why": f"{where}: {e['msg']}"})  # type: ignore[arg-type]
        details.append(InitErrorDetails(type=kind, loc=loc, input=e["input"]))
    return ValidationError.from_exception_data("config", details)
