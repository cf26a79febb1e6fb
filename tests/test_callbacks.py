"""Answers by one-time callback URLs, whatever the attempt does at the moment."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from models import (
    AgentGate,
    Attempt,
    AttemptState,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    QueueEntry,
    QueueState,
    Role,
    StatusReason,
    jsontext,
)
from models.base import uuid7
from services import callback_urls, decisions, execution, queue
from services.decisions import CancelJob
from services.errors import IllegalTransition
from services.runtime import Runtime
from services.secrets import Vault
from signoff import callbacks
from signoff.app import RUNTIME, create_app
from signoff.asked import PATIENCE
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support import consistency
from tests.support.graphql import make_key
from tests.support.making import (
    ADMIN,
    IS_POLITE,
    answers,
    attempts_of,
    error_of,
    execute,
    holds,
    in_turn,
    key_of,
    log_types,
    make_agent,
    make_job,
    says_ok,
    snapshot,
    stalls,
)
from tests.support.running import AiohttpClient, Client, settings_for
from tests.test_long_work import OK, ended, in_phase, later, methods, patient, payloads

PUBLIC = "https://signoff.test/base"
NOBODY = {
    "errors": [
        {"message": "No answer is expected here.", "extensions": {"code": "NOT_FOUND"}},
    ]
}
JSON = {"content-type": "application/json"}
PROBLEM = {"content-type": "application/problem+json"}


@pytest.fixture
async def client(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """A server that knows its own address."""
    settings = settings_for(database_url, tmp_path, public_url=PUBLIC + "/")
    return await aiohttp_client(create_app(settings))


@pytest.fixture
def rt(client: Client) -> Runtime:
    return client.app[RUNTIME]


def path_in(received: Received) -> str:
    url = received.headers["signoff-callback-url"]
    assert url.startswith(PUBLIC + "/callbacks/")
    return url.removeprefix(PUBLIC)


async def posted(client: Client, path: str, value: Any = OK, headers: dict[str, str] = JSON) -> int:
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    async with client.post(path, data=body, headers=headers) as response:
        told = await response.read()
        assert (response.status == 204) == (told == b"")
        if response.status == 404:
            assert orjson.loads(told) == NOBODY
        return response.status


async def awaiting(rt: Runtime, fake: FakeAgent, **given: Any) -> tuple[Job, str]:
    """A job that its agent has accepted, and where its answer may be sent."""
    job = await make_job(rt, await make_agent(rt, fake.url, **given))
    await execute(rt, job, wait_seconds=0)
    await in_phase(job, JobPhase.AWAITING_AGENT)
    await holds(lambda: rt.engine.running == 0)
    return job, path_in(fake.received[-1])


# The URL


async def test_each_attempt_has_one_url_for_all_its_tries(client: Client, rt: Runtime) -> None:
    busy = answers({}, "429 Too Many Requests", "retry-after: 0")
    async with fake_agent(in_turn(busy, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, auth_header="X-Key: 0123456789")
        for _ in range(2):
            assert (await execute(rt, await make_job(rt, agent))).status is JobStatus.COMPLETED
    first, again, other = map(path_in, fake.received)
    assert first == again != other
    token = first.rpartition("/")[2]
    assert len(token) == callback_urls.TOKEN_LENGTH == 64
    (attempt,) = await Attempt.filter(job_id=(await Job.all().order_by("id"))[0].id)
    assert callback_urls.attempt_id_of(rt.vault, token) == attempt.id
    assert token not in repr(await snapshot(await Job.get(id=attempt.job_id)))
    assert await posted(client, first) == 404


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_without_a_public_url_there_is_none(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    app = await aiohttp_client(create_app(settings_for(database_url, tmp_path)))
    rt = app.app[RUNTIME]
    async with fake_agent(says_ok) as fake:
        await execute(rt, await make_job(rt, await make_agent(rt, fake.url)))
    assert "signoff-callback-url" not in fake.received[0].headers


async def test_forged_and_unknown_tokens_are_answered_alike(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        before = await snapshot(job)
        token = path.rpartition("/")[2]
        flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
        swapped = callback_urls.token(rt.vault, uuid7())
        of_other = token[:22] + swapped[22:]
        for wrong in (
            flipped,
            swapped,
            of_other,
            token[:-4],
            token + "AAAA",
            "x",
            "é" * 64,
            "%" * 8,
        ):
            assert await posted(client, f"/callbacks/{wrong.replace('%', '%25')}") == 404
        assert await snapshot(job) == before
        assert await posted(client, path) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED


# What is sent there


async def test_answer_by_callback_is_judged_as_a_response_is(client: Client, rt: Runtime) -> None:
    used = {"signoff-input-tokens": "3", "signoff-output-tokens": "4", "signoff-cost-usd": "0.5"}
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake, max_call_tokens=90, max_call_cost_usd=2)
        assert await posted(client, path, OK, JSON | used) == 204
        done = await ended(job)
    assert (done.status, done.status_reason) == (JobStatus.COMPLETED, StatusReason.VERDICT_PASSED)
    assert jsontext.loads(done.result_json or "") == OK
    assert (done.input_tokens, done.output_tokens, done.cost_micros) == (3, 4, 500_000)
    (attempt,) = await attempts_of(job)
    assert (attempt.state, attempt.http_status) == (AttemptState.SUCCEEDED, None)
    (told,) = await payloads(job, JobLogType.AGENT_RESPONSE)
    assert (told["httpStatus"], told["body"]) == (None, OK)
    assert await log_types(job) == [
        *("STATUS_CHANGE", "STATUS_CHANGE", "AGENT_REQUEST", "AGENT_PROGRESS", "AGENT_RESPONSE"),
        *("VALIDATOR_REQUEST", "VALIDATOR_RESPONSE", "VERDICT", "STATUS_CHANGE"),
    ]
    assert methods(fake.received) == ["POST"]


async def test_the_same_answer_again_does_nothing(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        assert set(await asyncio.gather(*(posted(client, path) for _ in range(8)))) == {204}
        assert (await ended(job)).status is JobStatus.COMPLETED
        before = await snapshot(job)
        assert await posted(client, path, {"answer": "no"}) == 204
        assert await snapshot(job) == before
    assert len(await payloads(job, JobLogType.AGENT_RESPONSE)) == 1


async def test_bad_answer_by_callback_fails_the_verdict(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        assert await posted(client, path, {"answer": "no"}) == 204
        done = await ended(job)
    assert (done.status, done.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.VERDICT_FAILED,
    )


@pytest.mark.parametrize(
    ("problem", "code", "reason", "message"),
    [
        (
            {"status": 422, "detail": "No such\0 word."},
            "REJECTED",
            StatusReason.AGENT_REJECTED,
            "The agent reports 422 Unprocessable Entity. No such\ufffd word.",
        ),
        (
            {"title": "Out of luck"},
            "SERVER_ERROR",
            StatusReason.AGENT_ERROR,
            "The agent reports 500 Internal Server Error. Out of luck",
        ),
        (
            {"status": 200, "detail": 7},
            "SERVER_ERROR",
            StatusReason.AGENT_ERROR,
            "The agent reports 500 Internal Server Error. 7",
        ),
        (
            [],
            "SERVER_ERROR",
            StatusReason.AGENT_ERROR,
            "The agent reports 500 Internal Server Error. It does not say why.",
        ),
    ],
)
async def test_agent_may_report_a_failure(
    client: Client, rt: Runtime, problem: Any, code: str, reason: StatusReason, message: str
) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        assert await posted(client, path, problem, PROBLEM) == 204
        done = await ended(job)
        assert (done.status, done.status_reason) == (JobStatus.RESUBMISSION_REQUIRED, reason)
        error = await error_of(job)
        assert (error["code"], error["message"], error["mayHaveExecuted"]) == (code, message, True)
        assert await posted(client, path, problem, PROBLEM) == 204
        assert await posted(client, path, OK) == 204
    assert (await Job.get(id=job.id)).version == done.version


async def test_a_reported_failure_leads_to_the_next_attempt(client: Client, rt: Runtime) -> None:
    async with fake_agent(in_turn(later(None), says_ok)) as fake:
        policy = {"max_attempts": 2, "initial_seconds": 0}
        job, path = await awaiting(rt, fake, idempotent=True, retry_policy=policy)
        assert await posted(client, path, {"status": 503}, PROBLEM) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED
    first, second = fake.received
    assert key_of(first) == key_of(second)
    assert path_in(second) != path
    assert await AgentGate.filter(failures__gt=0).count() == 0


async def test_what_is_no_answer_is_refused_and_changes_nothing(
    client: Client, rt: Runtime
) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        before = await snapshot(job)
        refused = {
            b"": 400,
            b"{": 400,
            b"NaN": 400,
            b"\xff": 400,
            b"[" * 300 + b"]" * 300: 400,
        }
        for body, status in refused.items():
            async with client.post(path, data=body, headers=JSON) as response:
                assert response.status == status, body
        for headers in (
            {"content-type": "text/plain"},
            {"content-type": "application/json+x"},
            {"content-type": "application/x-www-form-urlencoded"},
            JSON | {"content-encoding": "gzip"},
        ):
            body = gzip.compress(b"{}") if "content-encoding" in headers else b"{}"
            async with client.post(path, data=body, headers=headers) as response:
                assert response.status == 415, headers
        async with client.get(path) as response:
            assert response.status == 405
        large = BytesIO(b'"' + b"x" * 1_048_576)
        async with client.post(path, data=large, headers=JSON) as response:
            assert response.status == 413
        assert await snapshot(job) == before
        assert await posted(client, path) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED


async def test_an_agent_that_echoes_secrets_does_not_put_them_on_record(
    client: Client, rt: Runtime
) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake, auth_header="Authorization: Bearer of-the-agent")
        echo = {"answer": "ok", "a": "of-the-agent", "b": path.rpartition("/")[2]}
        assert await posted(client, path, echo) == 204
        done = await ended(job)
    assert jsontext.loads(done.result_json or "") == {
        "answer": "ok",
        "a": "[secret]",
        "b": "[secret]",
    }


async def test_nor_does_one_that_tells_of_a_failure(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake, auth_header="Authorization: Bearer of/the/agent")
        echo = b'{"status": 401, "detail": "of\\/the%2Fagent", "token": "of\\u002fthe&#47;agent"}'
        async with client.post(path, data=echo, headers=PROBLEM) as answer:
            assert answer.status == 204
        done = await ended(job)
    assert done.status_message == "The agent reports 401 Unauthorized. [secret]"
    [told] = await payloads(job, JobLogType.AGENT_RESPONSE)
    assert told["excerpt"] == '{"status": 401, "detail": "[secret]", "token": "[secret]"}'


async def test_tokens_are_not_logged(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        with capture_logs() as lines:
            async with client.get(path) as refused:
                assert refused.status == 405
            assert await posted(client, path) == 204
            await ended(job)
    assert {"/callbacks/{token}"} == {line["path"] for line in lines if line["event"] == "request"}
    assert path.rpartition("/")[2] not in repr(lines)


# When it is sent


async def test_callback_ends_a_request_that_is_still_open(
    client: Client, rt: Runtime, database_url: str
) -> None:
    async with fake_agent(stalls) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        assert await posted(client, path_in(fake.received[0])) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED
        async with asyncio.timeout(5):
            await fake.all_closed()
        await holds(lambda: rt.engine.running == 0)
    assert len(await payloads(job, JobLogType.AGENT_RESPONSE)) == 1
    await consistency.check(database_url)


async def test_callback_comes_before_the_202(
    client: Client, rt: Runtime, database_url: str
) -> None:
    """The agent sends its answer first, from within the request, and accepts it then."""
    statuses: list[int] = []

    async def behave(received: Received) -> None:
        statuses.append(await posted(client, path_in(received)))
        await later("/never-asked")(received)

    async with fake_agent(behave) as fake:
        jobs = [await make_job(rt, await make_agent(rt, fake.url)) for _ in range(10)]
        done = await asyncio.gather(*(execute(rt, job) for job in jobs))
        await holds(lambda: rt.engine.running == 0)
    assert {job.status for job in done} == {JobStatus.COMPLETED}
    assert statuses == [204] * 10
    assert methods(fake.received) == ["POST"] * 10
    await consistency.check(database_url)


async def test_callback_and_202_and_answer_at_the_same_time(
    client: Client, rt: Runtime, database_url: str
) -> None:
    """Whoever is first counts, once."""
    sending: list[asyncio.Task[int]] = []
    rounds = 30

    async def behave(received: Received) -> None:
        if received.start_line.startswith("GET"):
            await says_ok(received)
            return
        sending.append(asyncio.ensure_future(posted(client, path_in(received))))
        await (later("/w") if len(sending) % 2 else says_ok)(received)

    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url)
        jobs = [await make_job(rt, agent) for _ in range(rounds)]
        done = await asyncio.gather(*(execute(rt, job) for job in jobs))
        assert set(await asyncio.gather(*sending)) <= {204, 404}
        await holds(lambda: rt.engine.running == 0)
    assert {job.status for job in done} == {JobStatus.COMPLETED}
    assert methods(fake.received).count("POST") == rounds
    for job in jobs:
        assert (await log_types(job)).count("VERDICT") == 1
    assert await QueueEntry.all().count() == 0
    await consistency.check(database_url)


async def test_callback_while_it_is_being_asked(client: Client, rt: Runtime) -> None:
    async with fake_agent(in_turn(later(), stalls)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 2)
        assert await posted(client, path_in(fake.received[0])) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED
        async with asyncio.timeout(5):
            await fake.all_closed()
    assert len(await payloads(job, JobLogType.AGENT_RESPONSE)) == 1


async def test_a_look_that_ends_after_the_callback_puts_nothing_off(
    client: Client, rt: Runtime
) -> None:
    """Not even if its own worker has the entry again, to judge the answer."""
    worker, now = uuid7(), datetime.now(UTC)

    async def is_answered_meanwhile(received: Received) -> None:
        assert await posted(client, path) == 204
        assert len((await queue.resume(worker, 1, datetime.now(UTC))).taken) == 1
        await patient(received)

    async with fake_agent(patient) as fake:
        job, path = await awaiting(rt, fake)
        await rt.engine.stop(0)
        await QueueEntry.all().update(ready_at=now)
        assert len((await queue.resume(worker, 1, now)).taken) == 1
        fake.behave = is_answered_meanwhile
        await execution.run(rt, job.id, 1, worker)
    entry = await QueueEntry.get(job_id=job.id)
    assert (entry.state, entry.worker_id) == (QueueState.RUNNING, worker)
    await execution.run(rt, job.id, 1, worker)
    assert (await Job.get(id=job.id)).status is JobStatus.COMPLETED


async def test_answers_are_judged_before_anything_is_looked_at(client: Client, rt: Runtime) -> None:
    async with fake_agent(patient) as fake:
        await awaiting(rt, fake)
        job, path = await awaiting(rt, fake)
        await rt.engine.stop(0)
        now = datetime.now(UTC)
        await QueueEntry.all().update(ready_at=now)
        assert await posted(client, path) == 204
        (first,) = (await queue.resume(uuid7(), 1, datetime.now(UTC))).taken
    assert first.key == (job.id, 1)


async def test_callback_between_two_tries(client: Client, rt: Runtime) -> None:
    busy = answers({}, "429 Too Many Requests", "retry-after: 50")
    async with fake_agent(busy) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job, wait_seconds=0)
        await in_phase(job, JobPhase.RETRY_WAIT)
        assert await posted(client, path_in(fake.received[0])) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED
        assert methods(fake.received) == ["POST"]


async def test_callback_with_a_cancel(client: Client, rt: Runtime, database_url: str) -> None:
    """One of the two is first; a job is never both."""
    outcomes: set[tuple[int, JobStatus]] = set()
    async with fake_agent(later(None)) as fake:
        for _ in range(10):
            job, path = await awaiting(rt, fake)

            async def end(job: Job = job) -> None:
                with suppress(IllegalTransition):  # the answer was first
                    await decisions.cancel(rt, ADMIN, CancelJob(id=job.id))

            status, _ = await asyncio.gather(posted(client, path), end())
            done = await ended(job)
            outcomes.add((status, done.status))
            assert done.status in (JobStatus.CANCELLED, JobStatus.COMPLETED)
    assert outcomes <= {
        (204, JobStatus.COMPLETED),
        (204, JobStatus.CANCELLED),
        (404, JobStatus.CANCELLED),
    }
    await consistency.check(database_url)


async def test_late_callback_is_refused_and_logged_once(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        cancelled = await decisions.cancel(rt, ADMIN, CancelJob(id=job.id))
        for value, headers in ((OK, JSON), ({"status": 500}, PROBLEM), (OK, JSON)):
            assert await posted(client, path, value, headers) == 404
    (late,) = await payloads(job, JobLogType.AGENT_RESPONSE)
    assert (late["late"], late["body"]) == (True, OK)
    now = await Job.get(id=job.id)
    assert (now.status, now.version, now.result_json) == (
        JobStatus.CANCELLED,
        cancelled.version,
        None,
    )


async def test_callback_after_the_answer_came_otherwise_is_late(
    client: Client, rt: Runtime
) -> None:
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url), acceptance_criteria=IS_POLITE)
        await execute(rt, job, wait_seconds=0)
        reviewed = await in_phase(job, JobPhase.AWAITING_REVIEW)
        assert await posted(client, path_in(fake.received[0]), {"answer": "no"}) == 404
    first, late = await payloads(job, JobLogType.AGENT_RESPONSE)
    assert ("late" in first, late["late"]) == (False, True)
    (attempt,) = await attempts_of(job)
    assert attempt.response_json == '{"answer":"ok"}'
    assert (await Job.get(id=job.id)).version == reviewed.version


async def test_late_callbacks_at_the_same_moment_are_logged_once(
    client: Client, rt: Runtime
) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        await decisions.cancel(rt, ADMIN, CancelJob(id=job.id))
        assert await asyncio.gather(*(posted(client, path) for _ in range(8))) == [404] * 8
    assert len(await payloads(job, JobLogType.AGENT_RESPONSE)) == 1


async def test_callback_after_the_deadline_is_late(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake, max_wait_seconds=1)
        given_up = await ended(job)
        assert given_up.status_reason is StatusReason.AGENT_TIMEOUT
        assert await posted(client, path) == 404
    assert (await Job.get(id=job.id)).version == given_up.version


async def test_url_of_an_attempt_says_nothing_of_the_next_one(client: Client, rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        policy = {"max_attempts": 2, "initial_seconds": 0}
        job, path = await awaiting(rt, fake, idempotent=True, retry_policy=policy)
        assert await posted(client, path, {"status": 503}, PROBLEM) == 204
        await holds(lambda: len(fake.received) == 2)
        second = await in_phase(job, JobPhase.AWAITING_AGENT)
        assert await posted(client, path, OK) == 204  # it was answered before, by a failure
        assert (await Job.get(id=job.id)).version == second.version
        assert await posted(client, path_in(fake.received[1]), {"answer": "no"}) == 204
        assert (await ended(job)).status_reason is StatusReason.VERDICT_FAILED


async def test_url_of_an_attempt_that_timed_out_is_not_taken_for_the_next_one(
    client: Client, rt: Runtime
) -> None:
    async with fake_agent(later(None)) as fake:
        policy = {"max_attempts": 2, "initial_seconds": 0}
        job, path = await awaiting(
            rt, fake, idempotent=True, retry_policy=policy, max_wait_seconds=1
        )
        await holds(lambda: len(fake.received) == 2)
        assert await posted(client, path) == 404
        assert (await ended(job)).status_reason is StatusReason.AGENT_TIMEOUT
    assert [attempt.response_json for attempt in await attempts_of(job)] == [None, None]


# Who sends it


@pytest.fixture
async def strict(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """A server on which an address may fail three times, and a body has little time."""
    given: dict[str, Any] = {"public_url": PUBLIC, "auth_failures_per_minute": 3}
    app = create_app(settings_for(database_url, tmp_path, **given))
    app[PATIENCE] = 0.2
    return await aiohttp_client(app)


async def test_an_address_that_guesses_is_told_to_wait_and_genuine_urls_are_good(
    strict: Client, database_url: str
) -> None:
    rt = strict.app[RUNTIME]
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        wrong = f"/callbacks/{callback_urls.token(Vault(Vault.new_key()), uuid7())}"
        assert [await posted(strict, wrong) for _ in range(4)] == [404, 404, 404, 429]
        async with strict.post(wrong, data=b"{}", headers=JSON) as response:
            told = await response.json()
            assert told["errors"][0]["extensions"] == {"code": "RATE_LIMITED"}
            assert 1 <= int(response.headers["retry-after"]) <= 20
        # It is the same for keys.
        await make_key(database_url, "ada", Role.ADMIN)
        bad = {"authorization": "Bearer signoff_no"}
        async with strict.post("/graphql", json={"query": "{ __typename }"}, headers=bad) as asked:
            assert asked.status == 429
        assert await posted(strict, path) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED


async def test_a_forged_url_gets_its_answer_before_its_body_is_there(strict: Client) -> None:
    wrong = f"/callbacks/{callback_urls.token(Vault(Vault.new_key()), uuid7())}"
    head = [f"POST {wrong} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    reader, writer = await asyncio.open_connection(strict.host, strict.port)
    writer.write("\r\n".join([*head, "Content-Length: 900000", "", ""]).encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).split()[1] == b"404"
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_does_not_come_is_not_waited_for(strict: Client) -> None:
    rt = strict.app[RUNTIME]
    async with fake_agent(later(None)) as fake:
        job, path = await awaiting(rt, fake)
        before = await snapshot(job)
        head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        reader, writer = await asyncio.open_connection(strict.host, strict.port)
        writer.write("\r\n".join([*head, "Content-Length: 9", "", '{"a']).encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).split()[1] == b"408"
        writer.close()
        await writer.wait_closed()
        assert await snapshot(job) == before
        assert await posted(strict, path) == 204
        assert (await ended(job)).status is JobStatus.COMPLETED


def test_a_secret_is_masked_wherever_a_proxy_has_put_it() -> None:
    assert callbacks.masked("/graphql") == "/graphql"
    assert callbacks.masked("/callbacks/secret") == "/callbacks/{token}"
    assert callbacks.masked("/base/callbacks/secret/more") == "/base/callbacks/{token}"
