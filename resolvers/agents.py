from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from models import Agent, AgentAvailability
from resolvers.context import Info
from services import agents, circuits, reading
from services.agents import SaveAgent, Saved, Trial
from services.errors import NotFound
from services.filters import AgentFilter
from services.paging import Page, Window
from services.values import parse_id


def key(id: str) -> UUID:
    """The primary key of an agent; raises `NotFound` for what cannot be one."""
    try:
        return parse_id("agent", id)
    except ValueError:
        raise NotFound(id) from None


async def by_key(info: Info, id: UUID | None) -> Agent | None:
    return None if id is None else await info.context.loaders.agents.load(id)


async def by_keys(info: Info, ids: Sequence[UUID]) -> list[Agent]:
    """Those that there are, in the order asked for."""
    found = await info.context.loaders.agents.load_many(ids)
    return [agent for agent in found if agent is not None]


async def by_id(info: Info, id: str) -> Agent | None:
    try:
        return await agents.get(info.context.viewer, key(id))
    except NotFound:
        return None


async def page(info: Info, where: AgentFilter | None, window: Window) -> Page[Agent]:
    return await reading.agents(info.context.viewer, where, window)


async def save(info: Info, command: SaveAgent) -> Saved:
    return await agents.save(info.context.rt, info.context.viewer, command)


async def set_availability(info: Info, id: str, availability: AgentAvailability) -> Agent:
    return await agents.set_availability(
        info.context.rt, info.context.viewer, key(id), availability
    )


async def reset_circuit(info: Info, id: str) -> Agent:
    return await circuits.reset(info.context.rt, info.context.viewer, key(id))


async def test(info: Info, id: str, input: object) -> Trial:
    return await agents.test(info.context.rt, info.context.viewer, key(id), input)
