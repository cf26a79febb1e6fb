"""Transactions that wait for a turn at the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.statements import Statement


@dataclass(frozen=True, slots=True)
class Batch:
    """Statements of one transaction, and who waits for what they return."""

    statements: Sequence[Statement]
    done: asyncio.Future[list[Any]]

    def settle(self, result: list[Any] | Exception) -> None:
        """Tell the outcome, once; nobody may be there any more to hear it."""
        if self.done.done():
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)
