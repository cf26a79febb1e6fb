"""The command that verifies, and the hashes that logs end with: they miss what is cut off."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from services import verification
from services.errors import InvalidInput
from services.verification import Total, Verification
from signoff.key_commands import Add, Refused, with_database


def add(command: Add) -> None:
    """The command `verify-audit`."""
    verify = command(
        "verify-audit", _verify_audit, "hold every log against its hashes; fails at a break"
    )
    verify.add_argument("--heads", action="store_true", help="print the hash each log ends with")
    verify.add_argument(
        "--against", type=Path, metavar="FILE", help="what --heads printed before must be in it"
    )


def _verify_audit(given: argparse.Namespace) -> None:
    expected = kept(given.against) if given.against else {}
    show = print if given.heads else str
    total = with_database(lambda: verify(expected, show=show))
    if not total.ok:
        raise Refused(f"the logs are not as they were written: {total.problem}")
    gone = f"; the beginnings of {total.pruned} logs were pruned" if total.pruned else ""
    print(f"{total.checked} entries are as they were written{gone}; together {total.head}")


def kept(file: Path) -> dict[str, str]:
    """What `verify-audit --heads` printed, by the names of the logs; the last line of each counts.

    Raises `InvalidInput` for a file that is not of that kind.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.at("against", message=f"cannot be read: {error}") from None
    pairs = [line.split() for line in lines if line.startswith(("workspace_", "job_"))]
    if not pairs or any(len(pair) not in (1, 2) for pair in pairs):
        raise InvalidInput.at("against", message="must be what `verify-audit --heads` printed")
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


async def verify(kept: Mapping[str, str], *, show: Callable[[str], object]) -> Verification:
    """Every log; `show` gets a line for each."""
    total = Total()
    async with aclosing(verification.everywhere(kept)) as found:
        async for log in found:
            total.add(log)
            show(f"{log.name} {log.found.head}".rstrip())
    return total.verification
