from __future__ import annotations

from uuid import UUID

from models import ApiKey
from resolvers.context import Info
from services import keys
from services.errors import NotFound
from services.keys import CreateApiKey, Made
from services.paging import Page, Window
from services.values import parse_id


def key(id: str) -> UUID:
    """The primary key of an API key; raises `NotFound` for what cannot be one."""
    try:
        return parse_id("key", id)
    except ValueError:
        raise NotFound(id) from None


async def page(info: Info, window: Window) -> Page[ApiKey]:
    return await keys.page(info.context.viewer, window)


async def create(info: Info, command: CreateApiKey) -> Made:
    return await keys.issue(info.context.rt, info.context.viewer, command)


async def revoke(info: Info, id: str) -> ApiKey:
    return await keys.withdraw(info.context.rt, info.context.viewer, key(id))
