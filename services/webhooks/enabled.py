"""Webhooks as workers read them, and for whom each one tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from models import ActorKind, Role, Webhook, statements
from services import keys
from services.actors import Viewer
from services.runtime import Runtime
from services.webhooks import hooks

KEYLESS = "Its owner has no valid API key any more that may have webhooks."
DAMAGED = "What is stored of it cannot be read."
DAMAGES = (ValueError, TypeError)
"""What reading a row raises that holds what cannot be."""


async def read(rt: Runtime, ids: Sequence[UUID]) -> list[Webhook]:
    """Those that are enabled; one that cannot be read is not from now on, and holds up no other."""
    slices = [ids[start : start + keys.SLICE] for start in range(0, len(ids), keys.SLICE)]
    return [hook for each in slices for hook in await _read(rt, each)]


async def _read(rt: Runtime, ids: Sequence[UUID]) -> list[Webhook]:
    marks = ", ".join(f"${n}" for n in range(1, len(ids) + 1))
    source = f'"webhooks" t0 WHERE t0."enabled" AND t0."id" IN ({marks})'
    try:
        rows = await statements.fetch_all((Webhook,), source, *map(str, ids))
    except DAMAGES:
        if len(ids) == 1:
            await hooks.stop(rt, ids[0], DAMAGED)
            return []
        return [hook for id in ids for hook in await _read(rt, [id])]
    return [hook for (hook,) in rows]


async def owners(rt: Runtime, found: Sequence[Webhook]) -> dict[UUID, Viewer | None]:
    """Who each webhook tells for; None for who lost all keys.

    Their role is what they had when they saved it, or what they have now if that is less: other
    keys of one name may be other people's.
    """
    by_key = {hook.owner_id for hook in found if hook.owner_kind is ActorKind.API_KEY}
    roles = await keys.roles_of(by_key) if by_key else {}
    return {hook.id: _told_for(rt, hook, roles) for hook in found}


def _told_for(rt: Runtime, hook: Webhook, roles: Mapping[tuple[int, str], Role]) -> Viewer | None:
    by_key = hook.owner_kind is ActorKind.API_KEY
    held = roles.get((hook.workspace_id, hook.owner_id)) if by_key else hook.owner_role
    role = held and min(held, hook.owner_role, key=keys.RANK.index)
    return None if role is None or role is Role.VIEWER else owner_as(rt, hook, role)


def owner_as(rt: Runtime, hook: Webhook, role: Role) -> Viewer:
    """The owner, with the role."""
    return Viewer(
        hook.owner_kind,
        hook.owner_id,
        hook.owner_name,
        role,
        workspace_id=hook.workspace_id,
        sees_workspace=rt.options.members_see_workspace,
    )
