"""What an OpenAI-compatible server answers, read as far as a judgement needs it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.judges.base import JudgeFailed

MAX_TOKENS = 1_000_000_000


class Quote(BaseModel):
    model_config = ConfigDict(strict=True)

    pointer: str | None
    quote: str | None


class Judgement(BaseModel):
    """What the model says of one criterion."""

    model_config = ConfigDict(strict=True)

    criterion: str
    reason: str
    evidence: list[Quote]
    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Judgements(BaseModel):
    model_config = ConfigDict(strict=True)

    results: list[Judgement]


class OutputPart(BaseModel):
    type: str
    text: str | None = None
    refusal: str | None = None


class OutputItem(BaseModel):
    type: str
    content: list[OutputPart] | None = None


class Said(BaseModel):
    """A problem, as a server tells it."""

    message: str | None = None
    reason: str | None = None


class Usage(BaseModel):
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """In and out, as either API names them, within what can be kept."""
        into, out = (
            max(self.input_tokens, self.prompt_tokens),
            max(self.output_tokens, self.completion_tokens),
        )
        return min(max(into, 0), MAX_TOKENS), min(max(out, 0), MAX_TOKENS)


class ResponsesBody(BaseModel):
    model: str = ""
    status: str
    output: list[OutputItem]
    error: Said | None = None
    incomplete_details: Said | None = None
    usage: Usage | None = None

    def text(self) -> str:
        if self.status == "incomplete":
            why = self.incomplete_details.reason if self.incomplete_details else None
            raise JudgeFailed(*_cut_short(why))
        if self.status != "completed":
            why = self.error.message if self.error else self.status
            raise JudgeFailed("FAILED", f"The judge's model failed: {why}")
        parts = [
            part for item in self.output if item.type == "message" for part in item.content or ()
        ]
        for part in parts:
            if part.type == "refusal":
                raise JudgeFailed("REFUSED", f"The judge's model refused: {part.refusal}")
        return "".join(part.text or "" for part in parts if part.type == "output_text")


class ChatMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class ChatChoice(BaseModel):
    message: ChatMessage
    finish_reason: str | None = None


class ChatBody(BaseModel):
    model: str = ""
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage | None = None

    def text(self) -> str:
        choice = self.choices[0]
        if choice.message.refusal:
            raise JudgeFailed("REFUSED", f"The judge's model refused: {choice.message.refusal}")
        if choice.finish_reason != "stop":
            raise JudgeFailed(*_cut_short(choice.finish_reason))
        return choice.message.content or ""


def _cut_short(why: str | None) -> tuple[str, str]:
    if why == "content_filter":
        return "FILTERED", "The judge's answer was stopped by its content filter"
    return "INCOMPLETE", f"The judge's answer is incomplete ({why or 'no reason given'})"
