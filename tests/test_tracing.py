"""One trace from the mutation to the agent and the judge, as a real collector receives it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services import tracing
from services.runtime import Runtime
from signoff import otel
from signoff.app import create_app
from signoff.otel import BadTraceSettings
from signoff.wiring import runtime
from tests.fakes import openai_server
from tests.fakes.agents import fake_agent
from tests.fakes.otlp_collector import Collector, collecting
from tests.support.commands import environment, process, until_line
from tests.support.graphql import agent, gql, mutate, mutation, new_job
from tests.support.making import (
    IS_POLITE,
    answers,
    attempts_of,
    execute,
    in_turn,
    make_agent,
    make_job,
    says_no,
    says_ok,
)
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import connected

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = f"00-{TRACE}-00f067aa0ba902b7-01"
KEY = "sk-very-secret"
NO_TRACES = {
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_TRACES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector that everything started from now on sends its spans to, at once."""
    async with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield running


@pytest.fixture
async def traced(
    collector: Collector, database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> AsyncIterator[Client]:
    """A server with a judge, that sends its spans to the collector."""
    async with openai_server.running() as judge:
        settings = settings_for(
            database_url, tmp_path, openai_api_key=KEY, openai_base_url=judge.base_url
        )
        yield await aiohttp_client(create_app(settings))


async def execute_over_http(client: Client, job_id: str, traceparent: str | None) -> None:
    body = {
        "query": mutation("executeJob").replace("mutation", "mutation Run", 1),
        "variables": {"input": {"id": job_id, "waitSeconds": 30}},
    }
    headers = {"traceparent": traceparent} if traceparent else {}
    async with client.post("/graphql", json=body, headers=headers) as response:
        assert (await response.json())["data"]["executeJob"]["status"] == "COMPLETED"


async def test_one_trace_from_the_mutation_to_agent_and_judge(
    traced: Client, collector: Collector
) -> None:
    async with agent(traced, authHeader="Authorization: Bearer agents-secret") as (id, endpoint):
        given = {"acceptanceCriteria": IS_POLITE, "input": {"text": "a payload"}}
        job = await new_job(traced, assign={"agentId": id}, **given)
        before = len(await collector.count(2))
        await execute_over_http(traced, job["id"], SENT)
    spans = (await collector.count(before + 4))[before:]
    by_name = {span.name: span for span in spans}
    asked, attempt = by_name["mutation"], by_name["attempt"]
    agent_call, judge_call = by_name["agent call"], by_name["judge call"]

    assert {span.trace_id for span in spans} == {TRACE}
    assert [(each.kind, each.parent) for each in (asked, attempt, agent_call, judge_call)] == [
        ("SERVER", SENT.split("-")[2]),
        ("INTERNAL", asked.span_id),
        ("CLIENT", attempt.span_id),
        ("CLIENT", attempt.span_id),
    ]
    (received,) = endpoint.received
    assert agent_call.is_parent_in(received.headers["traceparent"])
    # This is all that is told: no payload, no secret, no address.
    assert asked.attributes == {
        "graphql.operation.type": "mutation",
        "graphql.operation.name": "Run",
    }
    assert attempt.attributes == {"signoff.job.id": job["id"], "signoff.attempt": "1"}
    assert agent_call.attributes == {"signoff.agent.id": id, "http.response.status_code": "200"}
    assert judge_call.attributes == {
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.usage.input_tokens": "11",
        "gen_ai.usage.output_tokens": "5",
    }
    assert not any(span.failed for span in spans)


async def test_without_a_parent_each_mutation_begins_a_trace_of_its_own(
    traced: Client, collector: Collector
) -> None:
    async with agent(traced) as (id, endpoint):
        job = await new_job(traced, assign={"agentId": id})
        await execute_over_http(traced, job["id"], None)
    spans = await collector.count(5)
    roots = [span for span in spans if span.parent == ""]
    assert [span.name for span in roots] == ["mutation"] * 3
    assert len({span.trace_id for span in roots}) == 3
    agent_call = next(span for span in spans if span.name == "agent call")
    assert agent_call.is_parent_in(endpoint.received[0].headers["traceparent"])
    assert agent_call.trace_id in {span.trace_id for span in roots}


async def test_operations_of_a_websocket_are_traced_and_subscriptions_are_not(
    traced: Client, collector: Collector
) -> None:
    async with connected(traced, headers={"traceparent": SENT}) as socket:
        await socket.subscribe("subscription { jobStatusChanged { job { id } } }")
        await socket.ping()
        query = await socket.subscribe("query Who { viewer { name } }")
        assert (await socket.next(query))["data"] == {"viewer": {"name": "Local admin"}}
        (span,) = await collector.named("query")
    assert (span.trace_id, span.attributes["graphql.operation.name"]) == (TRACE, "Who")
    assert len(collector.spans) == 1


async def test_every_try_is_a_span_and_failures_are_marked(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    busy = answers({}, "503 Busy", "Retry-After: 0")
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True) as rt:
        async with fake_agent(in_turn(busy, says_ok)) as endpoint:
            job = await make_job(rt, await make_agent(rt, endpoint.url))
            await execute(rt, job)
        spans = await collector.count(3)
    first, second = (span for span in spans if span.name == "agent call")
    (attempt,) = (span for span in spans if span.name == "attempt")
    sent = [each.headers["traceparent"] for each in endpoint.received]
    assert [first.is_parent_in(sent[0]), second.is_parent_in(sent[1])] == [True, True]
    assert first.parent == second.parent == attempt.span_id
    assert (first.failed, first.attributes["error.type"]) == (True, "BUSY")
    assert (second.failed, attempt.failed, attempt.parent) == (False, False, "")


async def test_attempts_that_follow_are_in_the_trace_too(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    again = {"max_attempts": 2, "retry_on_verdict_fail": True, "initial_seconds": 0}
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True) as rt:
        async with fake_agent(in_turn(says_no, says_ok)) as endpoint:
            job = await make_job(rt, await make_agent(rt, endpoint.url), retry_policy=again)
            with tracing.under(SENT):
                await execute(rt, job)
        spans = await collector.count(4)
    assert {span.trace_id for span in spans} == {TRACE}
    attempts = [span for span in spans if span.name == "attempt"]
    first, second = sorted(attempts, key=lambda span: span.attributes["signoff.attempt"])
    assert (first.parent, second.parent) == (SENT.split("-")[2], first.span_id)


async def test_a_failed_operation_is_marked(traced: Client, collector: Collector) -> None:
    async with traced.post("/graphql", json={"query": "{ jobs(first: -1) { totalCount } }"}) as got:
        assert "errors" in await got.json()
    (span,) = await collector.named("query")
    assert (span.failed, span.attributes["error.type"]) == (True, "graphql")


async def test_a_span_that_is_under_way_at_the_end_is_sent_before_the_process_stops(
    collector: Collector, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "signoff-eu")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with runtime(settings_for(database_url, tmp_path), allow_private_agents=True) as rt:
        async with fake_agent(says_ok) as endpoint:
            await execute(rt, await make_job(rt, await make_agent(rt, endpoint.url)))
        assert collector.spans == []
    assert sorted(span.name for span in collector.spans) == ["agent call", "attempt"]
    (resource,) = collector.resources
    assert resource["service.name"] == "signoff-eu"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_trace_goes_on_in_the_process_that_runs_the_attempt(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    given = {
        "SIGNOFF_DATABASE_URL": database_url,
        "SIGNOFF_KEY_FILE": str(tmp_path / "signoff.key"),
        "SIGNOFF_ALLOW_PRIVATE_AGENTS": "1",
    }
    settings = settings_for(database_url, tmp_path)
    async with (
        fake_agent(says_ok) as endpoint,
        runtime(settings, allow_private_agents=True, work=False) as rt,
        process(tmp_path, environment(**given), "worker") as worker,
    ):
        await until_line(worker, "Signoff worker is ready.")
        job = await make_job(rt, await make_agent(rt, endpoint.url))
        with tracing.under(SENT):
            await execute(rt, job)
        attempt, agent_call = await collector.named("attempt", "agent call")
    assert (attempt.trace_id, attempt.parent) == (TRACE, SENT.split("-")[2])
    assert (agent_call.trace_id, agent_call.parent) == (TRACE, attempt.span_id)
    assert agent_call.is_parent_in(endpoint.received[0].headers["traceparent"])


# Without OpenTelemetry


async def test_a_clients_traceparent_reaches_the_agent_unchanged(client: Client) -> None:
    async with agent(client) as (id, endpoint):
        for given in (SENT, SENT.upper(), f"{SENT}-more", f"00-{'0' * 32}-00f067aa0ba902b7-01", ""):
            job = await new_job(client, assign={"agentId": id})
            await execute_over_http(client, job["id"], given)
    assert [each.headers.get("traceparent") for each in endpoint.received] == [
        SENT,
        None,
        None,
        None,
        None,
    ]


async def test_an_attempt_keeps_the_traceparent_of_its_request(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        job = await make_job(rt, await make_agent(rt, endpoint.url))
        with tracing.under(SENT):
            await execute(rt, job)
    (attempt,) = await attempts_of(job)
    assert attempt.traceparent == SENT
    assert endpoint.received[0].headers["traceparent"] == SENT


async def test_an_agent_that_is_tested_gets_the_traceparent(client: Client) -> None:
    async with agent(client) as (id, endpoint):
        body = {
            "query": mutation("testAgent"),
            "variables": {"id": id, "input": {"ok": True}},
        }
        async with client.post("/graphql", json=body, headers={"traceparent": SENT}) as got:
            assert (await got.json())["data"]["testAgent"]["ok"] is True
    assert endpoint.received[0].headers["traceparent"] == SENT


async def test_an_agent_cannot_be_saved_with_a_traceparent_of_its_own(client: Client) -> None:
    given = {"name": "A", "endpointUrl": "http://127.0.0.1:9/"}
    header = {"authHeader": f"traceparent: {SENT}"}
    refused = await mutate(client, "saveAgent", input=given | header)
    assert refused["__typename"] == "InvalidInput"
    assert await gql(client, "{ agents { nodes { id } } }") == {"agents": {"nodes": []}}


def run(code: str) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_where_no_traces_are_asked_for_nothing_is_imported() -> None:
    code = """
import sys, signoff.cli
from signoff import otel
assert otel.tracer({}) is None
assert otel.tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "true"}) is None
assert otel.tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_TRACES_EXPORTER": "none"}) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    assert run(code) == "[]"


def test_without_the_extra_the_log_says_how_to_get_it() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
import signoff
from signoff import otel
assert otel.tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) is None
"""
    assert "pip install 'signoff[otel]'" in run(code)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(BadTraceSettings) as refused:
        otel.tracer(environment)
    assert str(refused.value) == message
