"""Scalars, and the Python types that they stand for."""

from __future__ import annotations

from typing import Any, NewType
from uuid import UUID

import strawberry
from strawberry.scalars import JSON
from strawberry.schema.types.scalar import DEFAULT_SCALAR_REGISTRY

from services.values import RawJson

EventCursor = NewType("EventCursor", str)

SCALARS: dict[object, Any] = {
    # Ids come as `job_…`; the commands of the services take them apart.
    UUID: DEFAULT_SCALAR_REGISTRY[strawberry.ID],
    RawJson: DEFAULT_SCALAR_REGISTRY[JSON],
    EventCursor: strawberry.scalar(
        name="EventCursor",
        description="Opaque, exclusive resume position in the event log.",
        serialize=str,
        parse_value=str,
    ),
}
