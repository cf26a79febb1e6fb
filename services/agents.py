"""Agents: making, reading and trying them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field
from tortoise.exceptions import IntegrityError

from models import Agent, AgentAvailability, jsontext, statements
from models.base import uuid7
from services import agent_changes, agent_http, json_schemas, timers
from services.actors import Viewer
from services.agent_http import Accepted, AgentCallFailed, AgentRequest
from services.agent_http.usage import micros
from services.errors import (
    AgentUnavailable,
    Forbidden,
    InvalidInput,
    NotFound,
    Problem,
    SchemaMismatch,
)
from services.judges.languages import NotEvaluated
from services.retries import LADDER, RetryPolicyDraft
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import (
    STORABLE,
    AgentId,
    Command,
    Json,
    LongText,
    Name,
    RawJson,
    Version,
    public_id,
)


def _url(text: str) -> str:
    agent_http.check_endpoint_url(text, allow_private=True)
    return text


def _secret(text: str) -> str:
    agent_http.check_secret(text)
    return text


def _header(line: str) -> str:
    if line:
        agent_http.check_auth_header(line)
    return line


def _schema(schema: RawJson) -> RawJson:
    json_schemas.compile(jsontext.dumps(schema))
    return schema


Schema = Annotated[Json, AfterValidator(_schema)]


def _of_an_agent(policy: RetryPolicyDraft) -> RetryPolicyDraft:
    if policy.model_dump(include=set(LADDER), exclude_none=True):
        raise ValueError("reassignAfter and fallbackAgentIds belong to a job")
    return policy


class SaveAgent(Command):
    """An agent to be made, or with `id` to be changed; what is not given stays as it is."""

    id: AgentId | None = Field(default=None, description="Change this one; absent: make a new one.")
    expected_version: Version | None = Field(
        default=None, description="Refuse if the agent was changed since."
    )
    name: Name = Field(description="Unique, shown in lists.")
    description: LongText | None = Field(default=None, description="What it can do.")
    endpoint_url: Annotated[str, Field(max_length=2000), STORABLE, AfterValidator(_url)] = Field(
        description="Where requests are POSTed: http or https."
    )
    input_schema: Schema | None = Field(
        default=None, description="JSON Schema that a job's input must fit."
    )
    output_schema: Schema | None = Field(
        default=None, description="JSON Schema that its responses must fit."
    )
    auth_header: (
        Annotated[str, Field(max_length=8000), STORABLE, AfterValidator(_header)] | None
    ) = Field(
        default=None,
        description="Write-only. A header line sent with every request, such as "
        "`Authorization: Bearer …`; an empty string removes it.",
    )
    secret: Annotated[str, Field(max_length=200), STORABLE, AfterValidator(_secret)] | None = Field(
        default=None,
        description="Write-only. The Standard Webhooks secret requests are signed with, "
        "`whsec_…`; absent: one is made and told once, in `signingSecret`.",
    )
    timeout_seconds: int | None = Field(
        default=None, ge=1, le=3600, description="For one attempt, retries included. Default 60."
    )
    max_wait_seconds: int | None = Field(
        default=None,
        ge=1,
        le=1_209_600,
        description="For the answer of an attempt, from the moment at which the agent accepted it "
        "with 202. Default a day.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Executions under way at once, those it accepted with 202 included. "
        "Default 10.",
    )
    rate_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Executions begun a minute, over all workers; a second's worth may begin at "
        "once. Null removes the limit.",
    )
    max_call_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="What one call takes at most, in and out: set aside of a job's budget before "
        "it. Null: unknown.",
    )
    max_call_cost_usd: float | None = Field(
        default=None,
        ge=0.000_001,
        le=1_000_000,
        description="What one call costs at most, in the same way. Null: unknown.",
    )
    idempotent: bool | None = Field(
        default=None,
        description="It does the work once per `idempotency-key`, however often it is asked: "
        "a call that was cut off may be repeated. Default false.",
    )
    accepts_feedback: bool | None = Field(
        default=None,
        description="Send the judge's reasons of the attempt before in the header "
        "`signoff-feedback`. Default false.",
    )
    retry_policy: Annotated[RetryPolicyDraft, AfterValidator(_of_an_agent)] | None = Field(
        default=None, description="For its jobs that say nothing else; replaced as a whole."
    )


@dataclass(frozen=True, slots=True)
class Saved:
    agent: Agent
    new_secret: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a test call."""

    ok: bool
    latency_ms: int | None
    output_valid: bool
    response: Any
    problem: str | None


LATER = (
    "The agent answered 202 Accepted: it answers later, and a test does not wait for that. "
    "Execute a job to see its answer."
)


async def save(rt: Runtime, viewer: Viewer, command: SaveAgent) -> Saved:
    """Raises `InvalidInput`, `NotFound` or `Forbidden`; other processes follow within a second."""
    try:
        return await _save(rt, viewer, command)
    except IntegrityError:
        if not await Agent.exists(workspace_id=viewer.workspace_id, name=command.name):
            raise
        message = f"an agent “{command.name}” exists already"
        raise InvalidInput.at("input", "name", message=message) from None


@atomic
async def _save(rt: Runtime, viewer: Viewer, command: SaveAgent) -> Saved:
    columns = _columns(rt, command)
    if command.id is None:
        if viewer.is_scoped:
            raise Forbidden("Your key is limited to some agents or owners: it cannot make agents.")
        secret = command.secret or agent_http.new_secret()
        columns.setdefault("description", "")
        columns.setdefault("signing_secret_sealed", rt.vault.seal(secret))
        made = Agent(workspace_id=viewer.workspace_id, **columns)
        current().insert(made)
        await agent_changes.tell(viewer, "agent.made", made, columns, new=True)
        return Saved(made, None if command.secret else secret)
    agent = await changeable(viewer, command.id)
    if command.expected_version not in (None, agent.version):
        raise InvalidInput.at(
            "input",
            "expectedVersion",
            message=f"the agent has changed: it is at version {agent.version}",
        )
    await agent_changes.tell(viewer, "agent.changed", agent, columns)
    _change(agent, columns)
    return Saved(agent, None)


def _change(agent: Agent, changes: dict[str, Any]) -> None:
    """Write changes to `agent` as it was read."""

    async def refuse() -> None:
        raise InvalidInput.at("id", message="the agent was changed at the same time; try again")

    seen = {"id": agent.id, "version": agent.version}
    changes |= {"version": agent.version + 1, "updated_at": datetime.now(UTC)}
    current().swap(Agent, seen, changes, refuse)
    current().wake()  # it may take more work now
    timers.wake_for_agent(agent.id)
    for name, value in changes.items():
        setattr(agent, name, value)


def _columns(rt: Runtime, command: SaveAgent) -> dict[str, Any]:
    """The columns that the command gives; secrets sealed."""
    _check_reachable(rt, command.endpoint_url)
    columns: dict[str, Any] = command.model_dump(
        include={"name", "description", "endpoint_url", "timeout_seconds", "max_concurrency"}
        | {"max_wait_seconds"}
        | {"idempotent", "accepts_feedback"},
        exclude_none=True,
    )
    for name in ("rate_per_minute", "max_call_tokens"):
        if name in command.model_fields_set:
            columns[name] = getattr(command, name)
    if "max_call_cost_usd" in command.model_fields_set:
        usd = command.max_call_cost_usd
        columns["max_call_micros"] = None if usd is None else micros(Decimal(str(usd)))
    if command.input_schema is not None:
        columns["input_schema_json"] = jsontext.dumps(command.input_schema)
    if command.output_schema is not None:
        columns["output_schema_json"] = jsontext.dumps(command.output_schema)
    if command.retry_policy is not None:
        columns["retry_json"] = command.retry_policy.stored()
    if command.auth_header is not None:
        sealed = rt.vault.seal(command.auth_header) if command.auth_header else None
        columns["auth_header_sealed"] = sealed
    if command.secret is not None:
        columns["signing_secret_sealed"] = rt.vault.seal(command.secret)
    return columns


def _check_reachable(rt: Runtime, url: str) -> None:
    """A first word on private addresses; the guard that holds is at the dial."""
    try:
        agent_http.check_endpoint_url(url, allow_private=rt.options.allow_private_agents)
    except ValueError as error:
        raise InvalidInput.at("input", "endpointUrl", message=str(error)) from None


@atomic
async def set_availability(
    rt: Runtime, viewer: Viewer, agent_id: UUID, availability: AgentAvailability
) -> Agent:
    """Raises `NotFound` or `Forbidden`."""
    agent = await changeable(viewer, agent_id)
    changes = {"availability": availability}
    await agent_changes.tell(viewer, "agent.availability_set", agent, changes)
    _change(agent, changes)
    return agent


async def get(viewer: Viewer, agent_id: UUID) -> Agent:
    """Raises `NotFound` for a missing agent, and for one of another workspace."""
    agent = await statements.fetch(Agent, id=agent_id)
    if agent is None or not viewer.sees_agent(agent):
        raise NotFound(public_id("agent", agent_id))
    return agent


async def usable(viewer: Viewer, agent_id: UUID) -> Agent:
    """The same; raises `Forbidden` for one that the viewer's key is not for."""
    agent = await get(viewer, agent_id)
    if not viewer.may_use(agent_id):
        raise Forbidden(f"Your key is not for the agent “{agent.name}”.")
    return agent


async def changeable(viewer: Viewer, agent_id: UUID) -> Agent:
    """The same; `Forbidden` too where others' jobs are not the viewer's business."""
    agent = await usable(viewer, agent_id)
    if viewer.owners is not None:  # who moves an agent elsewhere reads all that it is sent
        raise Forbidden("Your key is limited to some owners' jobs: it cannot change agents.")
    return agent


async def get_many(agent_ids: Sequence[UUID]) -> list[Agent | None]:
    """The agents in the order asked for, `None` where there is none."""
    found = {agent.id: agent async for agent in Agent.filter(id__in=agent_ids)}
    return [found.get(agent_id) for agent_id in agent_ids]


async def seen_by(viewer: Viewer, agent_ids: Sequence[UUID]) -> list[Agent | None]:
    """The same of what the viewer may see."""
    found = await get_many(agent_ids)
    return [agent if agent and viewer.sees_agent(agent) else None for agent in found]


async def active(viewer: Viewer, agent_id: UUID) -> Agent:
    """One to give work to.

    Raises `NotFound`, `Forbidden`, or `AgentUnavailable` for one that takes no work.
    """
    agent = await usable(viewer, agent_id)
    if agent.availability is not AgentAvailability.ACTIVE:
        raise AgentUnavailable(agent)
    return agent


async def check_fallbacks(
    viewer: Viewer, policy: RetryPolicyDraft | None, own: UUID | None
) -> None:
    """Raises `InvalidInput` unless those who shall take a job over are others that there are."""
    wanted = (policy and policy.fallback_agent_ids) or []
    found = await seen_by(viewer, wanted) if wanted else []
    problems = [
        Problem(("input", "retryPolicy", "fallbackAgentIds", str(index)), why)
        for index, agent in enumerate(found)
        if (why := _unfit(viewer, agent, own))
    ]
    if problems:
        raise InvalidInput(problems)


def _unfit(viewer: Viewer, agent: Agent | None, own: UUID | None) -> str | None:
    """Why an agent cannot take over from `own`."""
    if agent is None:
        return "there is no such agent"
    if agent.id == own:
        return "is the job's own agent"
    return None if viewer.may_use(agent.id) else "is an agent that your key is not for"


async def check_input(rt: Runtime, agent: Agent, input: object) -> None:
    """Raises `SchemaMismatch` where a job's input does not fit the agent's schema.

    Not in a transaction: a costly schema is checked in another process.
    """
    try:
        mismatch = await json_schemas.check_within(rt.sandbox, agent.input_schema_json, input)
    except NotEvaluated as error:
        message = f"cannot be held against the agent's inputSchema: {error}"
        raise InvalidInput.at("input", "input", message=message) from None
    if mismatch:
        raise SchemaMismatch(
            f"The input does not fit what “{agent.name}” takes: {mismatch.message}",
            pointer=mismatch.pointer,
            keyword=mismatch.keyword,
        )


def request_for(
    rt: Runtime,
    agent: Agent,
    *,
    body: str,
    job_id: str,
    attempt_number: int,
    idempotency_key: str,
    feedback: Sequence[str] = (),
    callback_url: str | None = None,
) -> AgentRequest:
    sealed = agent.auth_header_sealed
    return AgentRequest(
        url=agent.endpoint_url,
        body=body.encode(),
        job_id=job_id,
        attempt_number=attempt_number,
        idempotency_key=idempotency_key,
        signing_secret=rt.vault.open(agent.signing_secret_sealed),
        auth_header=rt.vault.open(sealed) if sealed else None,
        feedback=tuple(feedback),
        callback_url=callback_url,
    )


async def test(rt: Runtime, viewer: Viewer, agent_id: UUID, input: object) -> Trial:
    """Call an agent outside of any job; raises `NotFound`, `Forbidden` or `SchemaMismatch`."""
    agent = await usable(viewer, agent_id)
    await check_input(rt, agent, input)
    body = jsontext.dumps(input)
    key = public_id("test", uuid7())
    request = request_for(rt, agent, body=body, job_id=key, attempt_number=1, idempotency_key=key)
    try:
        reply = await rt.agents.call(request, deadline=agent.timeout_seconds)
    except AgentCallFailed as failure:
        return _failed(str(failure))
    if isinstance(reply, Accepted):
        return _failed(LATER)
    mismatch = await json_schemas.check_within(rt.sandbox, agent.output_schema_json, reply.value)
    return Trial(
        ok=mismatch is None,
        latency_ms=reply.latency_ms,
        output_valid=mismatch is None,
        response=reply.value,
        problem=f"{mismatch.message} (at {mismatch.pointer or 'the top'})" if mismatch else None,
    )


def _failed(why: str) -> Trial:
    return Trial(ok=False, latency_ms=None, output_valid=False, response=None, problem=why)
