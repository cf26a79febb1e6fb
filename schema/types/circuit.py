from __future__ import annotations

from datetime import datetime
from typing import Self

import strawberry

from schema.enums import CircuitState
from services import circuits


@strawberry.type(description="Keeps work from an agent that fails again and again.")
class Circuit:
    state: CircuitState
    failures: int = strawberry.field(description="Failed calls in a row.")
    reason: str | None = strawberry.field(description="The latest of them in words.")
    open_until: datetime | None = strawberry.field(
        description="When one execution is let through to try; past while half open."
    )

    @classmethod
    def of(cls, circuit: circuits.Circuit) -> Self:
        return cls(
            state=circuit.state,
            failures=circuit.failures,
            reason=circuit.reason,
            open_until=circuit.open_until,
        )
