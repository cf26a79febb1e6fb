from __future__ import annotations
from tests.support.graphql import *
from tortoise.backends.base.executor import EXECUTOR_CACHE
async def test_ok(client, database_url):
    k = await make_key(database_url, "Bob", Role.MEMBER)
    print({k[2]: v[1][-20:] for k,v in EXECUTOR_CACHE.items()})
    print(await answer(client, "{viewer{id}}", k))
