"""What an agent says that a call took, in headers of its response: believed if it can be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

INPUT_TOKENS = "signoff-input-tokens"
OUTPUT_TOKENS = "signoff-output-tokens"
COST_USD = "signoff-cost-usd"
MAX_TOKENS = 1_000_000_000
MAX_USD = 1_000_000
MICROS = 1_000_000
"""Costs are kept in millionths of a dollar."""

_TOKENS = re.compile(r"\d{1,10}", re.ASCII)
_USD = re.compile(r"\d{1,10}(\.\d{1,30})?([eE][-+]?\d{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reported:
    """What a call took; None where the agent did not say. `ignored` headers made no sense."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_micros: int | None = None
    ignored: tuple[str, ...] = ()

    @property
    def has_all_tokens(self) -> bool:
        return self.input_tokens is not None and self.output_tokens is not None

    def to_json(self) -> dict[str, Any]:
        """For the log; empty if nothing was reported."""
        told = {
            "inputTokens": self.input_tokens,
            "outputTokens": self.output_tokens,
            "costUsd": None if self.cost_micros is None else self.cost_micros / MICROS,
            "ignored": list(self.ignored) or None,
        }
        return {name: value for name, value in told.items() if value is not None}


NOTHING = Reported()


def read(headers: Mapping[str, str]) -> Reported:
    """Headers that are not a number within the limits are ignored, and named."""
    given = {name: headers.get(name) for name in (INPUT_TOKENS, OUTPUT_TOKENS, COST_USD)}
    if not any(text is not None for text in given.values()):
        return NOTHING
    found = {
        name: (_micros if name == COST_USD else _tokens)(text.strip())
        for name, text in given.items()
        if text is not None
    }
    return Reported(
        found.get(INPUT_TOKENS),
        found.get(OUTPUT_TOKENS),
        found.get(COST_USD),
        tuple(name for name, value in found.items() if value is None),
    )


def _tokens(text: str) -> int | None:
    if not _TOKENS.fullmatch(text) or int(text) > MAX_TOKENS:
        return None
    return int(text)


def _micros(text: str) -> int | None:
    if not _USD.fullmatch(text) or (value := Decimal(text)) > MAX_USD:
        return None
    return micros(value)


def micros(usd: Decimal) -> int:
    """Millionths of a dollar, rounded up: a call never counts for less than it cost."""
    return int((usd * MICROS).to_integral_value(ROUND_CEILING))
