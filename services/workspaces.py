"""Workspaces: made by whoever runs the installation, never deleted or renamed."""

from __future__ import annotations

from models import Workspace, statements
from services import audit
from services.actors import SYSTEM, Actor
from services.errors import InvalidInput
from services.transactions import unannounced
from services.values import public_id

DEFAULT_NAME = "default"


async def create(name: str, by: Actor = SYSTEM) -> Workspace:
    """Raises `InvalidInput`."""
    if not name.strip() or len(name) > 200 or "\x00" in name:  # noqa: PLR2004
        raise InvalidInput.at("name", message="must have 1 to 200 characters")
    if await named(name) is not None:
        raise InvalidInput.at("name", message=f"a workspace “{name}” exists already")
    made = await Workspace.create(name=name)
    async with unannounced():  # a second transaction: its log needs the number from the first
        told = audit.between({}, {"name": name})
        await audit.append(by, made.id, "workspace.made", public_id("workspace", made.id), told)
    return made


async def oldest() -> list[Workspace]:
    return await Workspace.all().order_by("id")


async def named(name: str) -> Workspace | None:
    return await statements.fetch(Workspace, name=name)


async def name_of(workspace_id: int) -> str:
    found = await statements.fetch(Workspace, id=workspace_id)
    return found.name if found else ""
