"""The hashes that logs end with, on paper: what is cut off later is missed by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from services import verification
from services.errors import InvalidInput
from services.verification import Total, Verification


def kept(file: Path) -> dict[str, str]:
    """What `verify-audit --heads` printed, by the names of the logs; the last line of each counts.

    Raises `InvalidInput` for a file that is not of that kind.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.at("against", message=f"cannot be read: {error}") from None
    pairs = [line.split() for line in lines if line.startswith(("audit ", "job_"))]
    if not pairs or any(len(pair) not in (1, 2) for pair in pairs):
        raise InvalidInput.at("against", message="must be what `verify-audit --heads` printed")
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


async def verify(kept: Mapping[str, str], *, show: Callable[[str], object]) -> Verification:
    """Every log; `show` gets a line for each."""
    total = Total()
    async with aclosing(verification.logs(kept)) as found:
        async for log in found:
            total.add(log)
            show(f"{log.name} {log.found.head}".rstrip())
    return total.verification
