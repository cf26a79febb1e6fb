"""Two jobs through a running server's API, each step told in the terminal.

The first passes. The second fails its criteria, and passes when it is executed again
with the judge's reasons. Queries and mutations go over HTTP, the status changes come
by a subscription.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, cast

import aiohttp
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from yarl import URL

from signoff import sample

SETTLED_SECONDS = 60
TEXT = (
    "Bees collect nectar. On the way they carry pollen between plants. "
    "Without them many crops would fail."
)
NECTAR = {
    "key": "nectar",
    "text": "It names what bees collect",
    "kind": "CONTAINS",
    "config": {"value": "nectar", "pointer": "/summary"},
}
COUNTED = {
    "key": "counted",
    "text": "The words are counted",
    "kind": "EXPRESSION",
    "config": {"cel": "output.words > 0"},
}
SHORT = {
    "key": "short",
    "text": "It has at most 60 characters",
    "kind": "EXPRESSION",
    "config": {"cel": "size(output.summary) <= 60"},
}

START = """query Start($agent: String!) {
  viewer { name role }
  agents(first: 1, where: { name: { eq: $agent, ignoreCase: false } }) {
    nodes { id name availability acceptsFeedback }
  }
}"""
CREATE_JOB = """mutation CreateJob($input: CreateJobInput!) {
  createJob(input: $input) {
    __typename
    ... on Job { id name status cursor criteria { items { key text kind } } }
    ... on Error { message }
  }
}"""
EXECUTE_JOB = """mutation ExecuteJob($input: ExecuteJobInput!) {
  executeJob(input: $input) {
    __typename
    ... on Job { currentAttempt { id number feedback } }
    ... on Error { message }
  }
}"""
STATUS_CHANGES = """subscription StatusChanges($jobId: ID!, $after: EventCursor!) {
  jobStatusChanged(jobId: $jobId, after: $after) { from to reason }
}"""
OUTCOME = """query Outcome($id: ID!) {
  job(id: $id) {
    status phase statusMessage completionMode
    currentAttempt { response }
    latestVerdict { outcome results { outcome reason criterion { key } } }
  }
}"""

Changes = AsyncGenerator[dict[str, Any], None]


DEFAULT_URL = "http://127.0.0.1:8080"


class DemoFailed(Exception):
    """The demo cannot go on; the message is one line that says what to do."""


class Api:
    """A running server, as any client sees it."""

    def __init__(self, session: aiohttp.ClientSession, base: URL) -> None:
        self._session = session
        self.base = base
        self._endpoint = base / "graphql"

    async def ask(self, operation: str, **variables: object) -> dict[str, Any]:
        """The operation's data; raises `DemoFailed` with what the server says is wrong."""
        body = {"query": operation, "variables": variables}
        async with self._session.post(self._endpoint, json=body) as response:
            try:
                answer = await response.json()
            except (aiohttp.ContentTypeError, ValueError):
                answer = None
        if response.status == HTTPStatus.NOT_FOUND or not isinstance(answer, dict):
            raise DemoFailed(f"what answers at {self.base} is not Signoff; say where it is: --url")
        return _data(cast("dict[str, Any]", answer))

    async def do(self, mutation: str, field: str, **input: object) -> dict[str, Any]:
        """What the mutation gives, if that is a job."""
        done = (await self.ask(mutation, input=input))[field]
        if done["__typename"] != "Job":
            raise DemoFailed(f"{field} was refused: {done['message']}")
        return done

    async def status_changes(self, job: dict[str, Any]) -> Changes:
        """Those after the job was read, however late they are asked for."""
        variables = {"jobId": job["id"], "after": job["cursor"]}
        payload = {"query": STATUS_CHANGES, "variables": variables}
        protocols = (GRAPHQL_TRANSPORT_WS_PROTOCOL,)
        async with self._session.ws_connect(self._endpoint, protocols=protocols) as socket:
            await socket.send_json({"type": "connection_init"})
            async for message in socket:
                frame = message.json()
                if frame["type"] == "connection_ack":
                    await socket.send_json({"id": "1", "type": "subscribe", "payload": payload})
                elif frame["type"] == "next":
                    yield _data(frame["payload"])["jobStatusChanged"]
                elif frame["type"] == "error":
                    raise DemoFailed(f"the subscription failed: {frame['payload'][0]['message']}")
            raise DemoFailed(f"the server closed the subscription (code {socket.close_code})")


def _data(answer: dict[str, Any]) -> dict[str, Any]:
    errors = answer.get("errors")
    if not errors:
        return answer["data"]
    message = errors[0]["message"]
    if errors[0].get("extensions", {}).get("code") == "UNAUTHENTICATED":
        raise DemoFailed(
            f"the server wants an API key: {message} Pass it with --key; "
            "make one with: signoff keys create --role member --name you"
        )
    raise DemoFailed(f"the server answered: {message}")


async def run(url: str, key: str | None) -> None:
    """Tell the story on stdout; raises `DemoFailed`."""
    base = _address(url)
    headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=SETTLED_SECONDS)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            await _tell(Api(session, base))
        except aiohttp.ClientConnectorError:
            raise DemoFailed(
                f"no server answers at {base}; start one in another terminal with: "
                "signoff serve (or say where it is with --url)"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise DemoFailed(f"the connection to {base} failed: {why}") from None


def _address(text: str) -> URL:
    """The server's, also from the address of its API or its GraphiQL."""
    try:
        url = URL(text.strip())
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        raise DemoFailed(f"--url takes an address such as http://127.0.0.1:8080, not {text}")
    path = url.path.rstrip("/").removesuffix("/graphql").removesuffix("/graphiql")
    return url.origin().with_path(path)


async def _tell(api: Api) -> None:
    start = await api.ask(START, agent=sample.NAME)
    agent = _usable(start["agents"]["nodes"])
    print(f"Signoff at {api.base}")
    _say("viewer", f"{start['viewer']['name']} ({start['viewer']['role']})")
    _say("agent", f"{agent['name']}, {agent['id']}")
    await _passes(api, agent["id"])
    await _is_fixed(api, agent["id"])
    _say_what_next(api)


def _usable(agents: list[dict[str, Any]]) -> dict[str, Any]:
    if not agents:
        raise DemoFailed(
            f"the server has no agent “{sample.NAME}”: it is registered when `signoff serve` "
            "finds SQLite, a loopback address and no agent; "
            "start a server in an empty folder, and point --url at it"
        )
    agent = agents[0]
    if agent["availability"] != "ACTIVE":
        raise DemoFailed(
            f"the agent “{sample.NAME}” is {agent['availability']}; make it ACTIVE with: "
            f'setAgentAvailability(id: "{agent["id"]}", availability: ACTIVE)'
        )
    if not agent["acceptsFeedback"]:
        raise DemoFailed(
            f"the agent “{sample.NAME}” takes no feedback any more, so nothing would be fixed; "
            "save it with acceptsFeedback: true"
        )
    return agent


async def _passes(api: Api, agent_id: str) -> None:
    _head("1. A job that passes")
    job = await _create(api, agent_id, "Summarise a text", NECTAR, COUNTED)
    async with aclosing(api.status_changes(job)) as changes:
        await _execute(api, changes, job["id"], expected="COMPLETED")


async def _is_fixed(api: Api, agent_id: str) -> None:
    _head("2. A job that fails, and is fixed on resubmission")
    job = await _create(api, agent_id, "Summarise a text, briefly", NECTAR, SHORT)
    async with aclosing(api.status_changes(job)) as changes:
        await _execute(api, changes, job["id"], expected="RESUBMISSION_REQUIRED")
        print()
        await _execute(api, changes, job["id"], expected="COMPLETED")


async def _create(api: Api, agent_id: str, name: str, *criteria: dict[str, Any]) -> dict[str, Any]:
    job = await api.do(
        CREATE_JOB,
        "createJob",
        name=name,
        description="Summarise the text.",
        input={"text": TEXT},
        acceptanceCriteria={"items": criteria},
        assign={"agentId": agent_id},
        tags=["demo"],
    )
    items = job["criteria"]["items"]
    _say(
        "createJob",
        f"“{job['name']}” is {job['status']}: {job['id']}",
        *[f"{item['key']}: {item['text']} ({item['kind']})" for item in items],
    )
    return job


async def _execute(api: Api, changes: Changes, job_id: str, *, expected: str) -> None:
    """Ask for an execution, follow it to its end, and tell the verdict."""
    done = await api.do(EXECUTE_JOB, "executeJob", id=job_id)
    attempt = done["currentAttempt"]
    _say("executeJob", f"accepted as attempt {attempt['number']}: {attempt['id']}")
    if attempt["feedback"]:
        _say("feedback", *attempt["feedback"])
    try:
        async with asyncio.timeout(SETTLED_SECONDS):
            await _follow(changes)
    except TimeoutError:
        raise DemoFailed(await _unsettled(api, job_id)) from None
    job = (await api.ask(OUTCOME, id=job_id))["job"]
    if job["status"] != expected:
        raise DemoFailed(
            f"{job_id} should be {expected}, it is {job['status']}: {job['statusMessage']}"
        )
    _say_outcome(job)


async def _follow(changes: Changes) -> None:
    async for change in changes:
        _say("status", f"{change['from']} → {change['to']}  ({change['reason']})")
        if change["to"] != "IN_EXECUTION":
            return


async def _unsettled(api: Api, job_id: str) -> str:
    job = (await api.ask(OUTCOME, id=job_id))["job"]
    where = " ".join(filter(None, (job["status"], job["phase"])))
    return (
        f"{job_id} has not settled in {SETTLED_SECONDS} s, it is {where}; "
        f"its log tells why: {api.base / 'graphiql'}, tab JobWithLogs"
    )


def _say_outcome(job: dict[str, Any]) -> None:
    verdict = job["latestVerdict"]
    _say("response", json.dumps(job["currentAttempt"]["response"], ensure_ascii=False))
    _say("verdict", verdict["outcome"], *[_line(result) for result in verdict["results"]])
    if job["completionMode"]:
        _say("signed off", f"{job['completionMode']}: this response is the job's result")


def _line(result: dict[str, Any]) -> str:
    passed = result["outcome"] == "PASS"
    return f"{_mark(passed)} {result['criterion']['key']}: {result['reason']}"


def _mark(passed: bool) -> str:  # noqa: FBT001
    mark, colour = ("✓", 32) if passed else ("✗", 31)
    return f"\033[{colour}m{mark}\033[0m" if sys.stdout.isatty() else mark


def _say_what_next(api: Api) -> None:
    _head("What to do next")
    _say("look", f"{api.base / 'graphiql'} (the tab JobWithLogs shows this job)")
    _say("try", "the tabs from left to right; their comments say what to paste")
    _say("build", "an agent of your own: README.md, “Write an agent”")


def _head(text: str) -> None:
    print(f"\n{text}")


def _say(label: str, *lines: str) -> None:
    for line in lines:
        print(f"  {label:<12}{line}", flush=True)
        label = ""
