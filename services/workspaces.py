"""Workspaces: made by whoever runs the installation, never deleted or renamed."""

from __future__ import annotations

from contextlib import suppress

from tortoise.exceptions import IntegrityError

from models import Workspace, statements
from services import audit
from services.actors import SYSTEM, Actor
from services.errors import InvalidInput
from services.transactions import current, unannounced
from services.values import public_id

DEFAULT_NAME = "default"


async def create(name: str, by: Actor = SYSTEM) -> Workspace:
    """Raises `InvalidInput`."""
    if not name.strip() or len(name) > 200 or "\x00" in name:  # noqa: PLR2004
        raise InvalidInput.at("name", message="must have 1 to 200 characters")
    while await named(name) is None:
        with suppress(IntegrityError):  # another was made just now: of the name, or the number
            return await _make(name, by)
    raise InvalidInput.at("name", message=f"a workspace “{name}” exists already")


async def _make(name: str, by: Actor) -> Workspace:
    """Its log begins in the same transaction, and is of its number, which so is found before."""
    made = Workspace(id=await _next_number(), name=name)
    columns = {each: vars(made)[each] for each in ("id", "name", "log_head", "created_at")}
    async with unannounced():
        current().writes.append(statements.insert(Workspace, columns))
        told = audit.between({}, {"name": name})
        audit.tell(made, by, "workspace.made", public_id("workspace", made.id), told)
    return made


NEXT_NUMBER = {
    True: 'SELECT max("id") + 1 FROM "workspaces"',
    False: "SELECT nextval(pg_get_serial_sequence('workspaces', 'id'))",
}


async def _next_number() -> int:
    (row,) = await statements.database().fetch(NEXT_NUMBER[statements.is_sqlite()])
    return row[0]


async def oldest() -> list[Workspace]:
    return await Workspace.all().order_by("id")


async def named(name: str) -> Workspace | None:
    return await statements.fetch(Workspace, name=name)


async def name_of(workspace_id: int) -> str:
    found = await statements.fetch(Workspace, id=workspace_id)
    return found.name if found else ""
