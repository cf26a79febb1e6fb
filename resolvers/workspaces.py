from __future__ import annotations

from services import workspaces


async def name_of(workspace_id: int) -> str:
    return await workspaces.name_of(workspace_id)
