"""What is kept of changes that belong to no job: who did what to which thing, and when.

The entries of a workspace have one chain. Secrets are never told, only that there is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from models import AuditEntry, Workspace, jsontext, statements
from services.actors import Actor, Viewer
from services.errors import Forbidden
from services.log import bounded
from services.paging import Page, Sort, Window, fetch, int64
from services.transactions import current
from services.values import storable

LONG_BYTES = 2_000
"""Over which a value is told by its size and its hash."""
REDACTED = "[secret]"
"""What is told in the place of a secret."""
PRUNED = "log.pruned"
"""Retention removed the beginning of a job's log, or all of it."""
NEWEST_FIRST = (Sort("seq", int64, descending=True),)


async def record(by: Viewer, action: str, subject: str, changes: Mapping[str, Any]) -> None:
    """Tell of it in the transaction under way, in the workspace of who did it.

    `action` is a noun and a verb in the past tense, `agent.changed`; `subject` is the public id
    of what was changed; `changes` are made by `between`.
    """
    await append(by.actor, by.workspace_id, action, subject, changes)


async def append(
    by: Actor, workspace_id: int, action: str, subject: str, changes: Mapping[str, Any]
) -> None:
    """The same for those who belong to no workspace."""
    workspace = await statements.fetch(Workspace, id=workspace_id)
    if workspace is None:
        raise LookupError(f"There is no workspace {workspace_id}, so nothing can be done in it.")
    tell(workspace, by, action, subject, changes)


def tell(
    workspace: Workspace, by: Actor, action: str, subject: str, changes: Mapping[str, Any]
) -> None:
    """The same of a workspace that was read, or that the transaction makes."""
    text, _ = bounded(changes)
    entry = {
        "workspace_id": workspace.id,
        "action": action,
        "subject": storable(subject),
        "changes_json": text or "{}",
        "actor_kind": by.kind,
        "actor_id": by.id,
        "actor_name": by.name,
        "created_at": datetime.now(UTC),
        "hash": "",
    }
    current().log(workspace, entry)


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


async def entries(viewer: Viewer, window: Window) -> Page[AuditEntry]:
    """Of the viewer's workspace, newest first; raises `Forbidden`."""
    demand_whole(viewer)
    rows = AuditEntry.filter(workspace_id=viewer.workspace_id)
    return await fetch(rows, NEWEST_FIRST, window)


def demand_whole(viewer: Viewer) -> None:
    """Raises `Forbidden` for who does not see all that is done in their workspace."""
    if not viewer.is_admin:
        raise Forbidden("Only an admin sees what was done in the whole workspace.")
    if viewer.is_scoped:
        raise Forbidden(
            "Your key is limited to some agents or owners: it does not see what was done in the "
            "whole workspace."
        )
