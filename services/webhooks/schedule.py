"""When a delivery that failed is tried again."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from uuid import UUID

MINUTE, HOUR = 60, 3600
PAUSES = (5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 10 * HOUR)
"""Seconds after each failed try; after one more it is given up, some 28 hours after the first."""
JITTER = 0.1
"""By how much of itself a pause is longer at most."""
DISABLED_AFTER = timedelta(days=5)
"""How long a webhook may do nothing but fail."""
ENOUGH_FAILURES = 10
"""How many failures in a row that takes: two in a quiet week say nothing."""


def pause(delivery_id: UUID, failed: int) -> float | None:
    """Seconds until the next try after `failed` ones; None if that was the last.

    The jitter is spread over deliveries by their ids, and the same whenever it is asked for.
    """
    if failed > len(PAUSES):
        return None
    seconds = PAUSES[failed - 1]
    digest = hashlib.sha256(f"{delivery_id.hex}.{failed}".encode()).digest()
    return seconds * (1 + JITTER * int.from_bytes(digest[:4]) / 2**32)
