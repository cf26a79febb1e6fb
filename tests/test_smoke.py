from models import Agent
from services.runtime import Runtime
from tests.support.running import Client


async def test_rt(rt: Runtime) -> None:
    assert await Agent.all().count() == 0


async def test_client(client: Client) -> None:
    r = await client.post("/graphql", json={"query": "{viewer{id}}"})
    assert await r.json() == {"data": {"viewer": {"id": "local"}}}
