"""What is kept of changes that belong to no job: who did what to which thing, and when.

The entries have one chain of their own. Secrets are never told, only that there is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from models import AuditEntry, AuditHead, jsontext, statements
from services.actors import Actor, Viewer
from services.log import bounded
from services.paging import Page, Sort, Window, fetch, int64
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import storable

LONG_BYTES = 2_000
"""Over which a value is told by its size and its hash."""
NEWEST_FIRST = (Sort("seq", int64, descending=True),)


@atomic
async def record(
    rt: Runtime, by: Actor | Viewer, action: str, subject: str, changes: Mapping[str, Any]
) -> None:
    """Tell of it in the transaction under way, or in one of its own.

    `action` is a noun and a verb in the past tense, `agent.saved`; `subject` is the public id
    of what was changed; `changes` are made by `between`.
    """
    await append(by, action, subject, changes)


async def append(by: Actor | Viewer, action: str, subject: str, changes: Mapping[str, Any]) -> None:
    """The same for programs that have no `Runtime`: a transaction must be under way."""
    head = await statements.fetch(AuditHead, id=1)
    if head is None:
        raise LookupError("The row is gone that says where the audit log ends.")
    text, _ = bounded(changes)
    entry = {
        "action": action,
        "subject": storable(subject),
        "changes_json": text or "{}",
        "actor_kind": by.kind,
        "actor_id": by.id,
        "actor_name": by.name,
        "created_at": datetime.now(UTC),
        "hash": "",
    }
    current().log(head, entry)


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ, by their names; None is what was not there."""
    return {
        name: change(before.get(name), value)
        for name, value in after.items()
        if before.get(name) != value
    }


def change(before: Any, after: Any) -> dict[str, Any]:
    """One value, before and after."""
    return {"from": _told(before), "to": _told(after)}


def _told(value: Any) -> Any:
    text = jsontext.dumps(value).encode()
    if len(text) <= LONG_BYTES:
        return value
    return {"bytes": len(text), "sha256": sha256(text).hexdigest()}


def place(url: str) -> str:
    """A URL without what may be secret in it: user, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}{'?…' if parts.query else ''}"


async def entries(window: Window) -> Page[AuditEntry]:
    """Newest first."""
    return await fetch(AuditEntry.all(), NEWEST_FIRST, window)
