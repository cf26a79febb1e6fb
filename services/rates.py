"""How much a caller may ask of this process in a while."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from services.errors import RateLimited

MAX_CALLERS = 10_000
"""Remembered at once; who used theirs least lately is forgotten first."""
BURST_SECONDS = 10
ROUNDING = 0.001
"""Of a unit: what sums of floats may be off by."""


class Rates:
    """A budget for each caller that refills evenly (GCRA: one number a caller).

    `per_minute` None limits nothing. `burst` is what may be used at once, by default what comes
    back in ten seconds; it must hold the dearest single charge.
    """

    def __init__(
        self,
        per_minute: int | None = None,
        *,
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_callers: int = MAX_CALLERS,
    ) -> None:
        self.per_minute = per_minute
        self.burst = burst or max(1, (per_minute or 0) * BURST_SECONDS // 60)
        self._unit = 60 / per_minute if per_minute else 0.0
        self._tolerance = self.burst * self._unit
        self._clock = clock
        self._max_callers = max_callers
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def charge(self, caller: str, cost: int = 1) -> None:
        """Take `cost` units; raises `RateLimited`, and takes nothing, if there are not so many."""
        if self.per_minute is not None:
            self._remember(caller, self._after(caller, cost))

    def owe(self, caller: str, cost: int) -> None:
        """Take units for what is done already, also of those that have yet to come back."""
        if self.per_minute is not None:
            self._remember(caller, self._full_with(caller, cost))

    def check(self, caller: str, cost: int = 1) -> None:
        """Raise `RateLimited` where `charge` would."""
        if self.per_minute is not None:
            self._after(caller, cost)

    def left(self, caller: str) -> int | None:
        """Units that `caller` has, None without a limit."""
        if self.per_minute is None:
            return None
        missing = max(0.0, self._full_at.get(caller, 0.0) - self._clock())
        return max(0, math.floor((self._tolerance - missing) / self._unit + ROUNDING))

    def __len__(self) -> int:
        return len(self._full_at)

    def _after(self, caller: str, cost: int) -> float:
        """When the budget is full again if this much is taken now."""
        full_at = self._full_with(caller, cost)
        missing = full_at - self._clock() - self._tolerance
        if missing > ROUNDING * self._unit:
            raise RateLimited(max(1, math.ceil(missing)))
        return full_at

    def _full_with(self, caller: str, cost: int) -> float:
        now = self._clock()
        return max(now, self._full_at.get(caller, now)) + cost * self._unit

    def _remember(self, caller: str, full_at: float) -> None:
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > self._max_callers:
            self._full_at.popitem(last=False)
