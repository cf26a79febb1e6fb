from __future__ import annotations
import json, time
from tests.support.graphql import *

async def test_probe(client, database_url):
    t=time.perf_counter()
    async with agent(client) as (agent_id, endpoint):
        print(await problems(client, "createJob", input={"name": "", "acceptanceCriteria": {"items":[{"text":"a","kind":"REGEX","config":{"pattern":"("}}]}}))
        print(await problems(client, "createJob", input={"name": "x"*201, "acceptanceCriteria": {}, "tags": ["", "x"*101, "a\0"], "description":"x"*20001, "assign":{"agentId":"zzz"}, "idempotencyKey": ""}))
        print(await problems(client, "createJob", input={"name": "x", "acceptanceCriteria": {"text":"a"}, "tags": [str(i) for i in range(51)]}))
        print(await problems(client, "createJob", input={"name": "a\0b", "acceptanceCriteria": {"text":"a"}, "assign":{"agentId":"zzz"}}))
        print(await answer(client, mutation("createJob"), input={"name": "a", "acceptanceCriteria": {"text":"a"}, "assign":{}}))
        print(await answer(client, mutation("createJob"), input={"name": "a", "acceptanceCriteria": {"text":"a"}, "assign":{"agentId":None}}))
        print(await answer(client, mutation("createJob"), input={"name": "a", "acceptanceCriteria": {"text":"a"}, "assign":{"agentId":"agent_"+"0"*32}}))
        for big in [2**64-1, 2**64, 2**70, -2**63, -2**65]:
            print(big, str(await answer(client, mutation("createJob"), input={"name": "x", "acceptanceCriteria": {"text":"a"}, "input": {"n": big}}))[:300])
        for depth in [200, 201, 500, 2000, 200000]:
            text = json.dumps({"query": mutation("createJob"), "variables": {"input": {"name": "x", "acceptanceCriteria": {"text":"a"}, "input": "DEEP"}}}).replace('"DEEP"', "["*depth+"]"*depth)
            r = await client.post("/graphql", data=text, headers={"content-type": "application/json"})
            print(depth, r.status, (await r.text())[:200])
            r = await client.post("/graphql", json={"query": 'mutation { createJob(input: {name: "x", acceptanceCriteria: {text: "a"}, input: DEEP}) { __typename } }'.replace("DEEP", "["*depth+"]"*depth)})
            print("literal", depth, r.status, (await r.text())[:300])
        r = await client.post("/graphql", json={"query": "{viewer"*20000})
        print("literal", depth, r.status, (await r.text())[:300])
        print(await answer(client, mutation("saveAgent"), input={"name":"Echo", "endpointUrl":"ftp://x", "inputSchema": {"type":"x"}, "outputSchema": {"$ref":"http://example.com/x"}, "secret":"abc", "authHeader":"x"}))
        print(await answer(client, mutation("saveAgent"), input={"name":"Echo", "endpointUrl":"http://127.0.0.1:1/"}))
        print(await answer(client, mutation("saveAgent"), input={"name":"Echo2", "endpointUrl":"http://169.254.169.254/", "timeoutSeconds": 0, "maxConcurrency": 0}))
        print(await answer(client, mutation("saveAgent"), input={"name":"Echo2", "endpointUrl":"http://169.254.169.254/"}))
        deep = 1
        for _ in range(199): deep=[deep]
        job = await new_job(client, input=deep, assign={"agentId": agent_id}, idempotencyKey="k1", acceptanceCriteria={"items":[{"text":"t","kind":"EXPRESSION","config":{"cel":"output != 1"}}, {"text":"t","kind":"JSON_PATH","config":{"path":"$[0]"}}]})
        r = await answer(client, mutation("executeJob"), input={"id": job["id"], "waitSeconds": 20})
        print(r["data"]["executeJob"]["status"], r["data"]["executeJob"]["statusMessage"])
