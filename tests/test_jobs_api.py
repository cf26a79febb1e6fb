"""Every mutation over real HTTP, on both databases: what it makes, and what it refuses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.fakes.agents import Received, fake_agent
from tests.support.graphql import (
    SAYS_OK,
    Json,
    agent,
    answer,
    finished_job,
    gql,
    mutate,
    mutation,
    new_job,
    problems,
    read_job,
)
from tests.support.running import Client

NO_JOB = "job_" + "0" * 32
NO_AGENT = "agent_" + "0" * 32
NO_ATTEMPT = "attempt_" + "0" * 32
FAILING: Json = {
    "items": [{"text": "It is not", "kind": "EXACT", "config": {"value": False, "pointer": "/ok"}}]
}
LLM: Json = {"text": "It is polite"}
ATTEMPT = "query($id: ID!) { job(id: $id) { currentAttempt { id state } } }"
COUNT = "{ jobs { totalCount } agents { totalCount } }"


def allowed(job: Json) -> list[str]:
    return [each["action"] for each in job["availableActions"] if each["allowed"]]


async def counts(client: Client) -> tuple[int, int]:
    found = await gql(client, COUNT)
    return found["jobs"]["totalCount"], found["agents"]["totalCount"]


async def waiting_job(client: Client, agent_id: str) -> tuple[str, str]:
    """A job that waits for a review since nobody can judge it, and its attempt."""
    job = await finished_job(client, agent_id, acceptanceCriteria=LLM)
    assert (job["status"], job["phase"]) == ("IN_EXECUTION", "AWAITING_REVIEW")
    found = await gql(client, ATTEMPT, id=job["id"])
    return job["id"], found["job"]["currentAttempt"]["id"]


# createJob


async def test_a_job_is_created_with_everything_it_was_given(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        made = await mutate(
            client,
            "createJob",
            input={
                "name": "Summarise",
                "description": "In one sentence.",
                "input": {"z": 1, "a": [1.0, None, True, "ü"]},
                "assign": {"agentId": agent_id},
                "priority": "URGENT",
                "tags": ["beta", "alpha", "beta"],
                "acceptanceCriteria": {
                    "text": "as I said",
                    "passThreshold": 0.5,
                    "items": [
                        {
                            "key": "hello",
                            "text": "Says hello",
                            "kind": "CONTAINS",
                            "config": {"value": "hello"},
                            "weight": 2,
                            "required": False,
                        }
                    ],
                },
            },
        )
    actions = made.pop("availableActions")
    assert made == {
        "__typename": "Job",
        "id": made["id"],
        "version": 1,
        "name": "Summarise",
        "description": "In one sentence.",
        "status": "ASSIGNED",
        "phase": None,
        "statusReason": "CREATED",
        "statusMessage": None,
        "completionMode": None,
        "priority": "URGENT",
        "acceptanceCriteria": "as I said",
        "attemptCount": 0,
        "archivedAt": None,
        "input": {"z": 1, "a": [1.0, None, True, "ü"]},
        "result": None,
        "tags": ["beta", "alpha"],
        "createdBy": {"kind": "USER", "id": "local", "name": "Local admin"},
        "agent": {"id": agent_id, "name": "Echo"},
        "criteria": {
            "version": 1,
            "text": "as I said",
            "passThreshold": 0.5,
            "items": [
                {
                    "key": "hello",
                    "text": "Says hello",
                    "kind": "CONTAINS",
                    "config": {"value": "hello"},
                    "weight": 2.0,
                    "required": False,
                }
            ],
        },
    }
    assert [each["action"] for each in actions if each["allowed"]] == [
        "UPDATE",
        "UNASSIGN",
        "REASSIGN",
        "EXECUTE",
        "CANCEL",
        "FORCE_COMPLETE",
    ]


async def test_free_text_is_split_and_kept_as_it_was_written(client: Client) -> None:
    text = "The summary must:\n- be short\n- say *hello*\n"
    job = await new_job(client, acceptanceCriteria={"text": text})
    assert job["criteria"]["text"] == job["acceptanceCriteria"] == text
    assert [(i["key"], i["text"], i["kind"]) for i in job["criteria"]["items"]] == [
        ("c1", "The summary must: be short", "LLM"),
        ("c2", "The summary must: say *hello*", "LLM"),
    ]
    assert job["statusMessage"].startswith("No LLM judge is configured, which c1 and c2 must have:")


async def test_a_job_of_the_least_is_pending_with_defaults(client: Client) -> None:
    job = await mutate(client, "createJob", input={"name": "x", "acceptanceCriteria": SAYS_OK})
    assert (job["status"], job["priority"], job["description"]) == ("PENDING", "NORMAL", "")
    assert (job["tags"], job["input"], job["agent"]) == ([], None, None)


INVALID: list[tuple[Json, dict[str, str]]] = [
    ({"name": ""}, {"input.name": "String should have at least 1 character"}),
    ({"name": "x" * 201}, {"input.name": "String should have at most 200 characters"}),
    ({"name": "a\0b"}, {"input.name": "must not contain the character U+0000"}),
    (
        {"description": "x" * 20_001},
        {"input.description": "String should have at most 20000 characters"},
    ),
    (
        {"tags": ["", "x" * 101, "a\0"]},
        {
            "input.tags.0": "String should have at least 1 character",
            "input.tags.1": "String should have at most 100 characters",
            "input.tags.2": "must not contain the character U+0000",
        },
    ),
    (
        {"tags": [str(n) for n in range(51)]},
        {"input.tags": "List should have at most 50 items after validation, not 51"},
    ),
    ({"idempotencyKey": ""}, {"input.idempotencyKey": "String should have at least 1 character"}),
    (
        {"acceptanceCriteria": {}},
        {
            "input.acceptanceCriteria": (
                "Say what the result must be: give `text`, or at least one item"
            )
        },
    ),
    (
        {
            "acceptanceCriteria": {
                "items": [{"text": "a", "kind": "REGEX", "config": {"pattern": "("}}]
            }
        },
        {"input.acceptanceCriteria.items.0.config": "config.pattern: missing ): ("},
    ),
    ({"assign": {"agentId": "nobody"}}, {"input.assign.agentId": "is not the id of an agent"}),
    ({"assign": {"agentId": NO_JOB}}, {"input.assign.agentId": "is not the id of an agent"}),
    (
        {"name": "", "assign": {"agentId": "x"}},
        {
            "input.name": "String should have at least 1 character",
            "input.assign.agentId": "is not the id of an agent",
        },
    ),
]


async def test_values_that_cannot_be_taken_are_named_by_their_path(client: Client) -> None:
    for changes, expected in INVALID:
        given = {"name": "A job", "acceptanceCriteria": SAYS_OK} | changes
        assert await problems(client, "createJob", input=given) == expected
    assert await counts(client) == (0, 0)


async def test_a_literal_that_is_no_member_of_an_enum_is_a_graphql_error(client: Client) -> None:
    given = {"name": "x", "acceptanceCriteria": SAYS_OK, "priority": "SOON"}
    body = await answer(client, mutation("createJob"), input=given)
    (error,) = body["errors"]
    assert error["message"] == (
        "Variable '$input' has invalid value at .priority: "
        "Value 'SOON' does not exist in 'JobPriority' enum."
    )
    assert error["extensions"] == {"code": "GRAPHQL_ERROR"}
    assert await counts(client) == (0, 0)


async def test_an_agent_that_is_not_there_or_takes_no_work_gets_no_job(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        given = {"name": "x", "acceptanceCriteria": SAYS_OK}
        missing = await mutate(client, "createJob", input=given | {"assign": {"agentId": NO_AGENT}})
        assert missing == {
            "__typename": "NotFound",
            "code": "NOT_FOUND",
            "message": f"There is no {NO_AGENT} that you can see.",
            "id": NO_AGENT,
        }
        await mutate(client, "setAgentAvailability", id=agent_id, availability="PAUSED")
        paused = await mutate(client, "createJob", input=given | {"assign": {"agentId": agent_id}})
        assert paused == {
            "__typename": "AgentUnavailable",
            "code": "AGENT_UNAVAILABLE",
            "message": (
                "The agent “Echo” is PAUSED; choose an ACTIVE one or set its availability."
            ),
            "unavailable": {"id": agent_id, "availability": "PAUSED"},
        }
    assert await counts(client) == (0, 1)


async def test_an_input_that_does_not_fit_the_agent_is_refused_with_its_place(
    client: Client,
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    async with agent(client, inputSchema=schema) as (agent_id, _):
        refused = await mutate(
            client,
            "createJob",
            input={
                "name": "x",
                "acceptanceCriteria": SAYS_OK,
                "input": {"n": "one"},
                "assign": {"agentId": agent_id},
            },
        )
    assert (refused["__typename"], refused["code"]) == ("SchemaMismatch", "INPUT_SCHEMA")
    assert (refused["pointer"], refused["keyword"]) == ("/n", "type")
    assert await counts(client) == (0, 1)


async def test_the_same_key_gets_the_first_answer_and_another_request_a_conflict(
    client: Client,
) -> None:
    given = {"name": "x", "acceptanceCriteria": SAYS_OK, "idempotencyKey": "k"}
    first = await mutate(client, "createJob", input=given)
    again = await mutate(client, "createJob", input=given)
    other = await mutate(client, "createJob", input=given | {"name": "y"})
    assert again == first
    assert (other["__typename"], other["code"]) == ("IdempotencyConflict", "IDEMPOTENCY_MISMATCH")
    assert await counts(client) == (1, 0)


# JSON as it was given


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


EXACTLY: list[Any] = [
    None,
    0,
    -0.5,
    1.0,
    1e300,
    2**64 - 1,
    -(2**63),
    "",
    "\0",
    {"\0": ["a\0b", "\u2028", "😀", "\ufeff", "\x7f"]},
    {"z": 1, "a": 2, "": 3, "Z": {"y": 1, "x": 2}},
    [[], {}, [None]],
    nested(200),
]


async def test_json_comes_back_exactly_as_it_was_given(client: Client) -> None:
    async with agent(client) as (agent_id, endpoint):
        for value in EXACTLY:
            always = {"items": [{"text": "any", "kind": "EXPRESSION", "config": {"cel": "true"}}]}
            job = await finished_job(client, agent_id, input=value, acceptanceCriteria=always)
            assert job["status"] == "COMPLETED", job["statusMessage"]
            text = orjson.dumps(value)
            assert endpoint.received[-1].body == text
            found = await read_job(client, job["id"])
            assert orjson.dumps(found["input"]) == text
            assert orjson.dumps(found["result"]) == text


async def test_json_that_cannot_be_kept_exactly_is_refused(client: Client) -> None:
    for value, message in (
        (2**64, "cannot be kept as JSON: Integer exceeds 64-bit range"),
        ({"n": [-(2**70)]}, "cannot be kept as JSON: Integer exceeds 64-bit range"),
        (nested(201), "cannot be kept as JSON: Recursion limit reached"),
        ("x" * 1_048_575, "is 1048577 bytes of JSON; at most 1048576 are taken"),
    ):
        given = {"name": "x", "acceptanceCriteria": SAYS_OK, "input": value}
        assert await problems(client, "createJob", input=given) == {"input.input": message}
    assert await counts(client) == (0, 0)


async def test_a_mebibyte_of_json_is_taken(client: Client) -> None:
    job = await new_job(client, input="x" * 1_048_574)
    assert len((await read_job(client, job["id"]))["input"]) == 1_048_574


async def test_a_body_that_python_reads_as_json_but_json_is_not_is_refused(client: Client) -> None:
    for value in ("NaN", "Infinity", "[" * 2_000 + "]" * 2_000, "12345678901234567890, NaN"):
        body = '{"query": "{ viewer { id } }", "variables": {"input": [VALUE]}}'
        response = await client.post(
            "/graphql",
            data=body.replace("VALUE", value),
            headers={"Content-Type": "application/json"},
        )
        assert response.status == 400
        (error,) = (await response.json())["errors"]
        assert error["extensions"] == {"code": "VALIDATION"}


# updateJob


async def test_an_update_changes_what_is_given_and_nothing_else(client: Client) -> None:
    job = await new_job(client, tags=["a", "b"], description="old")
    updated = await mutate(
        client,
        "updateJob",
        input={"id": job["id"], "name": "New", "tags": ["b", "c"], "input": {"ok": False}},
    )
    unchanged = {"availableActions", "name", "tags", "input", "version"}
    assert {k: v for k, v in updated.items() if k not in unchanged} == {
        k: v for k, v in job.items() if k not in unchanged
    }
    assert (updated["name"], updated["tags"], updated["input"], updated["version"]) == (
        "New",
        ["b", "c"],
        {"ok": False},
        2,
    )


async def test_new_criteria_are_a_new_version(client: Client) -> None:
    job = await new_job(client)
    updated = await mutate(
        client, "updateJob", input={"id": job["id"], "acceptanceCriteria": FAILING}
    )
    assert updated["criteria"]["version"] == 2
    assert [item["text"] for item in updated["criteria"]["items"]] == ["It is not"]


async def test_an_input_is_set_to_null_when_null_is_given(client: Client) -> None:
    job = await new_job(client, input={"ok": True})
    updated = await mutate(client, "updateJob", input={"id": job["id"], "input": None})
    assert updated["input"] is None


async def test_an_old_version_is_refused_with_the_current_job(client: Client) -> None:
    job = await new_job(client)
    await mutate(client, "updateJob", input={"id": job["id"], "name": "Second"})
    before = await read_job(client, job["id"])
    late: Json = {"id": job["id"], "expectedVersion": 1}
    expected = {
        "__typename": "VersionConflict",
        "code": "VERSION_CONFLICT",
        "expected": 1,
        "actual": 2,
        "current": {"id": job["id"], "version": 2},
    }
    for name, given in (
        ("updateJob", {"input": late | {"name": "Third"}}),
        ("assignJob", {"input": late | {"assign": {"agentId": NO_AGENT}}}),
        ("reassignJob", {"input": late | {"assign": {"agentId": NO_AGENT}}}),
        ("unassignJob", late),
        ("executeJob", {"input": late}),
        ("resubmitJob", {"input": late | {"reason": "r"}}),
        ("forceComplete", {"input": late | {"reason": "r", "result": 1}}),
        ("cancelJob", {"input": late}),
        ("reopenJob", late | {"reason": "r"}),
    ):
        refused = await mutate(client, name, **given)
        assert refused == expected | {"message": refused["message"]}, name
    assert await read_job(client, job["id"]) == before
    done = await mutate(client, "cancelJob", input={"id": job["id"], "expectedVersion": 2})
    assert (done["status"], done["version"]) == ("CANCELLED", 3)


async def test_a_version_that_cannot_be_is_a_problem(client: Client) -> None:
    job = await new_job(client)
    update = {"id": job["id"], "expectedVersion": 0}
    assert await problems(client, "updateJob", input=update) == {
        "input.expectedVersion": "Input should be greater than or equal to 1"
    }
    assert await problems(client, "unassignJob", id=job["id"], expectedVersion=-1) == {
        "expectedVersion": "must be a positive version number"
    }


# Assignment


async def test_a_job_is_assigned_reassigned_and_unassigned(client: Client) -> None:
    async with agent(client) as (first, _), agent(client, name="Other") as (second, _):
        job = await new_job(client)
        assigned = await mutate(
            client,
            "assignJob",
            input={"id": job["id"], "assign": {"agentId": first}, "input": {"ok": 2}},
        )
        assert (assigned["status"], assigned["agent"]["id"]) == ("ASSIGNED", first)
        assert (assigned["input"], assigned["statusReason"]) == ({"ok": 2}, "ASSIGNED_MANUALLY")
        moved = await mutate(
            client,
            "reassignJob",
            input={"id": job["id"], "assign": {"agentId": second}, "reason": "better"},
        )
        assert (moved["status"], moved["agent"]["id"]) == ("ASSIGNED", second)
        assert moved["statusMessage"] == "better"
        freed = await mutate(client, "unassignJob", id=job["id"], reason="nobody has time")
        assert (freed["status"], freed["agent"]) == ("PENDING", None)
        assert (freed["statusReason"], freed["statusMessage"]) == ("UNASSIGNED", "nobody has time")


async def test_assigning_what_is_assigned_or_to_nobody_is_refused(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        job = await new_job(client, assign={"agentId": agent_id})
        given = {"id": job["id"], "assign": {"agentId": agent_id}}
        before = await read_job(client, job["id"])
        refused = await mutate(client, "assignJob", input=given)
        assert (refused["__typename"], refused["code"]) == (
            "IllegalTransition",
            "INVALID_TRANSITION",
        )
        assert (refused["status"], refused["action"]) == ("ASSIGNED", "ASSIGN")
        assert refused["message"] == "A job that is ASSIGNED does not allow ASSIGN."
        assert refused["allowedActions"] == allowed(job)
        nobody = await answer(
            client,
            mutation("reassignJob"),
            input={"id": job["id"], "assign": {"agentId": None}},
        )
        assert nobody["errors"][0]["extensions"] == {"code": "GRAPHQL_ERROR"}
        assert await read_job(client, job["id"]) == before


# Execution and decisions


async def test_an_execution_is_accepted_at_once_or_waited_for(client: Client) -> None:
    async with agent(client) as (agent_id, endpoint):
        job = await new_job(client, assign={"agentId": agent_id})
        accepted = await mutate(client, "executeJob", input={"id": job["id"]})
        assert (accepted["status"], accepted["attemptCount"]) == ("IN_EXECUTION", 1)
        done = await finished_job(client, agent_id)
        assert (done["status"], done["statusReason"]) == ("COMPLETED", "VERDICT_PASSED")
        assert (done["completionMode"], done["result"]) == ("VALIDATED", {"ok": True})
        assert allowed(done) == ["RESUBMIT", "ARCHIVE"]
        failed = await finished_job(client, agent_id, acceptanceCriteria=FAILING)
        assert (failed["status"], failed["statusReason"]) == (
            "RESUBMISSION_REQUIRED",
            "VERDICT_FAILED",
        )
        assert failed["result"] is None
        assert endpoint.received[-1].headers["signoff-job-id"] == failed["id"]


async def test_waiting_too_long_is_refused(client: Client) -> None:
    job = await new_job(client)
    before = await read_job(client, job["id"])
    assert await problems(client, "executeJob", input={"id": job["id"], "waitSeconds": 61}) == {
        "input.waitSeconds": "Input should be less than or equal to 60"
    }
    assert await read_job(client, job["id"]) == before


async def test_a_pending_job_cannot_be_executed_and_says_what_can_be_done(client: Client) -> None:
    job = await new_job(client)
    refused = await mutate(client, "executeJob", input={"id": job["id"]})
    assert (refused["__typename"], refused["status"], refused["action"]) == (
        "IllegalTransition",
        "PENDING",
        "EXECUTE",
    )
    assert refused["allowedActions"] == ["UPDATE", "ASSIGN", "CANCEL", "FORCE_COMPLETE"]
    assert {a["action"]: a["reason"] for a in job["availableActions"] if not a["allowed"]} == {
        "UNASSIGN": "A job that is PENDING does not allow UNASSIGN.",
        "REASSIGN": "A job that is PENDING does not allow REASSIGN.",
        "EXECUTE": "A job that is PENDING does not allow EXECUTE.",
        "RESUBMIT": "A job that is PENDING does not allow RESUBMIT.",
        "REVIEW": "A job that is PENDING does not allow REVIEW.",
        "REOPEN": "A job that is PENDING does not allow REOPEN.",
        "ARCHIVE": "A job that is PENDING does not allow ARCHIVE.",
        "UNARCHIVE": "A job that is PENDING does not allow UNARCHIVE.",
    }


async def test_a_completed_job_is_sent_back_and_done_again(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        done = await finished_job(client, agent_id)
        given = {"id": done["id"], "reason": "too long"}
        back = await mutate(client, "resubmitJob", input=given)
        assert (back["status"], back["statusReason"]) == (
            "RESUBMISSION_REQUIRED",
            "RESUBMISSION_REQUESTED",
        )
        assert (back["statusMessage"], back["result"], back["completionMode"]) == (
            "too long",
            None,
            None,
        )
        again = await mutate(client, "executeJob", input={"id": done["id"], "waitSeconds": 30})
        assert (again["status"], again["attemptCount"]) == ("COMPLETED", 2)
        at_once = await mutate(client, "resubmitJob", input=given | {"execute": True})
        assert (at_once["status"], at_once["attemptCount"]) == ("IN_EXECUTION", 3)


async def test_a_job_is_completed_by_force_once(client: Client) -> None:
    job = await new_job(client)
    given = {"id": job["id"], "result": {"by": "hand"}, "reason": "trust me", "idempotencyKey": "f"}
    done = await mutate(client, "forceComplete", input=given)
    assert (done["status"], done["statusReason"], done["completionMode"]) == (
        "COMPLETED",
        "FORCED",
        "FORCED",
    )
    assert (done["result"], done["statusMessage"]) == ({"by": "hand"}, "trust me")
    assert await mutate(client, "forceComplete", input=given) == done
    refused = await mutate(client, "forceComplete", input=given | {"idempotencyKey": "g"})
    assert refused["__typename"] == "IllegalTransition"
    other = await mutate(client, "forceComplete", input=given | {"reason": "no"})
    assert other["__typename"] == "IdempotencyConflict"
    assert (await read_job(client, job["id"]))["version"] == done["version"]


async def test_a_job_is_cancelled_reopened_archived_and_unarchived(client: Client) -> None:
    job = await new_job(client)
    job_id = job["id"]
    cancelled = await mutate(client, "cancelJob", input={"id": job_id, "reason": "no need"})
    assert (cancelled["status"], cancelled["statusReason"], cancelled["statusMessage"]) == (
        "CANCELLED",
        "CANCELLED_BY_USER",
        "no need",
    )
    assert allowed(cancelled) == ["REOPEN", "ARCHIVE"]
    archived = await mutate(client, "archiveJob", id=job_id)
    assert archived["archivedAt"] is not None
    assert allowed(archived) == ["REOPEN", "UNARCHIVE"]
    twice = await mutate(client, "archiveJob", id=job_id)
    assert (twice["__typename"], twice["message"]) == (
        "IllegalTransition",
        "It is archived already.",
    )
    shown = await mutate(client, "unarchiveJob", id=job_id)
    assert shown["archivedAt"] is None
    back = await mutate(client, "reopenJob", id=job_id, reason="needed after all")
    assert (back["status"], back["statusReason"], back["statusMessage"]) == (
        "PENDING",
        "REOPENED",
        "needed after all",
    )
    entries = (await read_job(client, job_id))["logs"]["nodes"]
    assert [entry["type"] for entry in entries] == [
        "STATUS_CHANGE",
        "STATUS_CHANGE",
        "CONFIG_CHANGE",
        "CONFIG_CHANGE",
        "STATUS_CHANGE",
    ]


async def test_a_note_is_written_into_the_log_and_changes_nothing_else(client: Client) -> None:
    job = await new_job(client)
    note = await mutate(client, "addJobNote", id=job["id"], message="Hallo 😀")
    assert note == {
        "__typename": "JobLog",
        "id": note["id"],
        "type": "NOTE",
        "status": "PENDING",
        "note": "Hallo 😀",
        "actor": {"kind": "USER", "id": "local", "name": "Local admin"},
        "job": {"id": job["id"]},
    }
    found = await read_job(client, job["id"])
    assert found["version"] == 1
    assert [entry["message"] for entry in found["logs"]["nodes"]] == [None, "Hallo 😀"]


async def test_texts_out_of_bounds_are_refused(client: Client) -> None:
    job = await new_job(client)
    before = await read_job(client, job["id"])
    for text in ("", "x" * 2_001, "a\0b"):
        message = "must have 1 to 2000 characters, none U+0000"
        assert await problems(client, "addJobNote", id=job["id"], message=text) == {
            "message": message
        }
        assert await problems(client, "unassignJob", id=job["id"], reason=text) == {
            "reason": message
        }
        assert await problems(client, "reopenJob", id=job["id"], reason=text) == {"reason": message}
        cancel = await problems(client, "cancelJob", input={"id": job["id"], "reason": text})
        assert list(cancel) == ["input.reason"]
    assert await read_job(client, job["id"]) == before


async def test_a_review_settles_an_attempt_that_waits(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        job_id, attempt_id = await waiting_job(client, agent_id)
        before = await read_job(client, job_id)
        undecided = {"attemptId": attempt_id, "outcome": "INCONCLUSIVE", "reason": "hm"}
        assert await problems(client, "reviewAttempt", input=undecided) == {
            "input.outcome": "must be PASS or FAIL"
        }
        assert await read_job(client, job_id) == before
        given = {"attemptId": attempt_id, "outcome": "PASS", "reason": "polite"}
        passed = await mutate(client, "reviewAttempt", input=given)
        assert (passed["status"], passed["statusReason"], passed["completionMode"]) == (
            "COMPLETED",
            "REVIEW_APPROVED",
            "REVIEWED",
        )
        assert passed["result"] == {"ok": True}
        again = await mutate(client, "reviewAttempt", input=given)
        assert (again["__typename"], again["action"]) == ("IllegalTransition", "REVIEW")
        job_id, attempt_id = await waiting_job(client, agent_id)
        failed = await mutate(
            client,
            "reviewAttempt",
            input={"attemptId": attempt_id, "outcome": "FAIL", "reason": "rude"},
        )
        assert (failed["status"], failed["statusReason"], failed["statusMessage"]) == (
            "RESUBMISSION_REQUIRED",
            "REVIEW_REJECTED",
            "rude",
        )


async def test_an_attempt_gone_by_cannot_be_reviewed(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        job_id, old = await waiting_job(client, agent_id)
        await mutate(
            client, "resubmitJob", input={"id": job_id, "reason": "again", "execute": False}
        )
        await mutate(client, "executeJob", input={"id": job_id, "waitSeconds": 30})
        before = await read_job(client, job_id)
        given = {"attemptId": old, "outcome": "PASS", "reason": "fine"}
        assert await problems(client, "reviewAttempt", input=given) == {
            "input.attemptId": "is not the job's current attempt"
        }
        assert await read_job(client, job_id) == before


MISSING: list[tuple[str, Json]] = [
    ("updateJob", {"input": {"id": NO_JOB}}),
    ("assignJob", {"input": {"id": NO_JOB, "assign": {"agentId": NO_AGENT}}}),
    ("reassignJob", {"input": {"id": NO_JOB, "assign": {"agentId": NO_AGENT}}}),
    ("unassignJob", {"id": NO_JOB}),
    ("executeJob", {"input": {"id": NO_JOB}}),
    ("resubmitJob", {"input": {"id": NO_JOB, "reason": "r"}}),
    ("forceComplete", {"input": {"id": NO_JOB, "reason": "r", "result": 1}}),
    ("cancelJob", {"input": {"id": NO_JOB}}),
    ("reopenJob", {"id": NO_JOB, "reason": "r"}),
    ("addJobNote", {"id": NO_JOB, "message": "m"}),
    ("archiveJob", {"id": NO_JOB}),
    ("unarchiveJob", {"id": NO_JOB}),
    ("reviewAttempt", {"input": {"attemptId": NO_ATTEMPT, "outcome": "PASS", "reason": "r"}}),
    ("saveAgent", {"input": {"id": NO_AGENT, "name": "n", "endpointUrl": "http://127.0.0.1:9/"}}),
    ("setAgentAvailability", {"id": NO_AGENT, "availability": "PAUSED"}),
    ("testAgent", {"id": NO_AGENT, "input": {}}),
]


async def test_what_is_not_there_is_named(client: Client) -> None:
    for name, given in MISSING:
        refused = await mutate(client, name, **given)
        assert (refused["__typename"], refused["code"]) == ("NotFound", "NOT_FOUND"), name
        assert refused["id"] in str(given)
        assert refused["message"] == f"There is no {refused['id']} that you can see."


async def test_an_id_of_another_kind_is_not_found_or_a_problem(client: Client) -> None:
    for text in ("", "1", NO_AGENT, "job_" + "g" * 32, NO_JOB + "\0", "😀"):
        archive = await mutate(client, "archiveJob", id=text)
        assert (archive["__typename"], archive["id"]) == ("NotFound", text)
        assert list(await problems(client, "updateJob", input={"id": text})) == ["input.id"]


# Agents


async def test_an_agent_is_made_and_changed_and_keeps_what_is_not_given(client: Client) -> None:
    made = await mutate(
        client,
        "saveAgent",
        input={
            "name": "A",
            "description": "d",
            "endpointUrl": "http://127.0.0.1:9/run",
            "inputSchema": {"type": "object"},
            "outputSchema": True,
            "timeoutSeconds": 5,
            "maxConcurrency": 2,
            "idempotent": True,
            "acceptsFeedback": True,
            "authHeader": "Authorization: Bearer top-secret",
        },
    )
    assert made["signingSecret"].startswith("whsec_")
    expected = {
        "__typename": "Agent",
        "id": made["id"],
        "version": 1,
        "name": "A",
        "description": "d",
        "endpointUrl": "http://127.0.0.1:9/run",
        "inputSchema": {"type": "object"},
        "outputSchema": True,
        "timeoutSeconds": 5,
        "maxConcurrency": 2,
        "idempotent": True,
        "acceptsFeedback": True,
        "availability": "ACTIVE",
        "signingSecret": made["signingSecret"],
    }
    assert made == expected
    changed = await mutate(
        client,
        "saveAgent",
        input={
            "id": made["id"],
            "name": "B",
            "endpointUrl": "http://127.0.0.1:9/b",
            "expectedVersion": 1,
        },
    )
    assert changed == expected | {
        "version": 2,
        "name": "B",
        "endpointUrl": "http://127.0.0.1:9/b",
        "signingSecret": None,
    }
    late = {
        "id": made["id"],
        "name": "C",
        "endpointUrl": "http://127.0.0.1:9/",
        "expectedVersion": 1,
    }
    assert await problems(client, "saveAgent", input=late) == {
        "input.expectedVersion": "the agent has changed: it is at version 2"
    }
    found = await gql(client, "{ agents { nodes { name version signingSecret } } }")
    assert found["agents"]["nodes"] == [{"name": "B", "version": 2, "signingSecret": None}]


SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BAD_AGENTS: list[tuple[Json, dict[str, str]]] = [
    ({"name": ""}, {"input.name": "String should have at least 1 character"}),
    (
        {"endpointUrl": "ftp://x"},
        {
            "input.endpointUrl": (
                "An endpoint URL is complete, such as https://agent.example.com/run."
            )
        },
    ),
    (
        {"endpointUrl": "http://me:secret@example.com/"},
        {
            "input.endpointUrl": (
                "An endpoint URL has no user or password: use the agent's auth header."
            )
        },
    ),
    (
        {"endpointUrl": "http://169.254.169.254/latest"},
        {
            "input.endpointUrl": (
                "This is the address of a group or of a cloud's metadata service, "
                "never of an agent."
            )
        },
    ),
    (
        {"outputSchema": {"$ref": "http://127.0.0.1:1/x"}},
        {
            "input.outputSchema": (
                "Resource 'http://127.0.0.1:1/x' is not present in a registry and retrieving it "
                "failed: ValueError: only references inside the schema are followed"
            )
        },
    ),
    (
        {"secret": "abc"},
        {"input.secret": "A signing secret is “whsec_” and the base64 of 24 to 64 random bytes."},
    ),
    (
        {"authHeader": "Bearer x"},
        {
            "input.authHeader": (
                "An auth header is “Name: value”, such as “Authorization: Bearer …”."
            )
        },
    ),
    ({"timeoutSeconds": 0}, {"input.timeoutSeconds": "Input should be greater than or equal to 1"}),
    (
        {"maxConcurrency": 1001},
        {"input.maxConcurrency": "Input should be less than or equal to 1000"},
    ),
]


async def test_an_agent_that_cannot_work_is_refused_by_field(client: Client) -> None:
    good = {"name": "A", "endpointUrl": "http://127.0.0.1:9/"}
    for changes, expected in BAD_AGENTS:
        assert await problems(client, "saveAgent", input=good | changes) == expected
    schema = good | {"inputSchema": {"type": "no such type"}}
    assert list(await problems(client, "saveAgent", input=schema)) == ["input.inputSchema"]
    assert await counts(client) == (0, 0)


async def test_two_agents_cannot_share_a_name(client: Client) -> None:
    good = {"name": "A", "endpointUrl": "http://127.0.0.1:9/"}
    taken = {"input.name": "an agent “A” exists already"}
    await mutate(client, "saveAgent", input=good)
    assert await problems(client, "saveAgent", input=good) == taken
    other = await mutate(client, "saveAgent", input=good | {"name": "B"})
    assert await problems(client, "saveAgent", input=good | {"id": other["id"]}) == taken
    assert await counts(client) == (0, 2)


async def test_a_given_secret_is_not_told_again(client: Client) -> None:
    made = await mutate(
        client,
        "saveAgent",
        input={"name": "A", "endpointUrl": "http://127.0.0.1:9/", "secret": SECRET},
    )
    assert made["signingSecret"] is None


async def test_an_agent_is_paused_and_takes_no_work(client: Client) -> None:
    async with agent(client) as (agent_id, endpoint):
        job = await new_job(client, assign={"agentId": agent_id})
        for availability in ("PAUSED", "DISABLED"):
            await mutate(client, "setAgentAvailability", id=agent_id, availability=availability)
            before = await read_job(client, job["id"])
            refused = await mutate(client, "executeJob", input={"id": job["id"]})
            assert refused["__typename"] == "AgentUnavailable"
            assert refused["unavailable"] == {"id": agent_id, "availability": availability}
            assert await read_job(client, job["id"]) == before
        back = await mutate(client, "setAgentAvailability", id=agent_id, availability="ACTIVE")
        assert (back["availability"], back["version"]) == ("ACTIVE", 4)
        assert endpoint.received == []


async def test_an_agent_is_tried_outside_of_any_job(client: Client) -> None:
    output = {"type": "object", "required": ["ok"]}
    async with agent(client, outputSchema=output) as (agent_id, endpoint):
        tried = await mutate(client, "testAgent", id=agent_id, input={"ok": 1})
        assert tried == {
            "__typename": "AgentTest",
            "ok": True,
            "outputValid": True,
            "problem": None,
            "response": {"ok": 1},
        }
        wrong = await mutate(client, "testAgent", id=agent_id, input={"no": 1})
        assert (wrong["ok"], wrong["outputValid"], wrong["response"]) == (False, False, {"no": 1})
        assert wrong["problem"].endswith("(at the top)")
        assert len(endpoint.received) == 2
    gone = await mutate(client, "testAgent", id=agent_id, input={"ok": 1})
    assert (gone["ok"], gone["outputValid"], gone["response"]) == (False, False, None)
    assert gone["problem"] == (
        "No connection to the agent. Is its server running at its endpoint URL?"
    )
    assert await counts(client) == (0, 1)


async def test_the_auth_header_is_sent_and_can_be_removed(client: Client) -> None:
    async with agent(client, authHeader="X-Key: s3cret") as (agent_id, endpoint):
        await mutate(client, "testAgent", id=agent_id, input=1)
        given = {"id": agent_id, "name": "Echo", "endpointUrl": endpoint.url, "authHeader": ""}
        await mutate(client, "saveAgent", input=given)
        await mutate(client, "testAgent", id=agent_id, input=1)
        assert [r.headers.get("x-key") for r in endpoint.received] == ["s3cret", None]


@pytest.mark.parametrize("depth", [220, 254])
async def test_a_deep_response_is_shown_wherever_it_is_kept(client: Client, depth: int) -> None:
    body = b"[" * depth + b"]" * depth

    async def behave(received: Received) -> None:
        await received.answer(body)

    async with fake_agent(behave) as endpoint:
        given = {"name": "Deep", "endpointUrl": endpoint.url}
        saved = await mutate(client, "saveAgent", input=given)
        always = {"items": [{"text": "quick", "kind": "LATENCY", "config": {"maxMs": 60000}}]}
        job = await finished_job(client, saved["id"], acceptanceCriteria=always)
        found = await gql(
            client,
            """query($id: ID!) { job(id: $id) {
                 result attempts { nodes { response } } logs(types: AGENT_RESPONSE) {
                 nodes { payload } } } }""",
            id=job["id"],
        )
    (attempt,) = found["job"]["attempts"]["nodes"]
    (entry,) = found["job"]["logs"]["nodes"]
    assert orjson.dumps(found["job"]["result"]) == body
    assert orjson.dumps(attempt["response"]) == body
    assert orjson.dumps(entry["payload"]["body"]) == body
