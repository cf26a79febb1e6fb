"""The chains of the logs: that nothing breaks them, and what breaks is named."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic.alias_generators import to_camel
from tortoise import connections

from models import ApiKey, AuditEntry, Job, JobLog, JobLogType, JobStatus, Role, hashes, statements
from models.base import uuid7
from models.job import ActorKind
from services import agents, audit, circuits, decisions, jobs, keys, verification, workspaces
from services.actors import Viewer
from services.agent_changes import TOLD
from services.agents import SaveAgent
from services.decisions import ForceComplete
from services.errors import Forbidden, LimitExceeded, NotFound
from services.key_uses import KeyUses
from services.keys import CreateApiKey
from services.paging import Window
from services.runtime import Runtime
from services.transactions import atomic
from services.verification import Verification
from services.webhooks import hooks
from services.webhooks.hooks import SaveWebhook
from tests.fakes.agents import fake_agent
from tests.support.commands import environment
from tests.support.graphql import SDL_FILE, gql, make_key, new_job, refusal
from tests.support.hooks import make_hook
from tests.support.making import (
    ADMIN,
    MEMBER,
    OTHER,
    READER,
    execute,
    logs_of,
    make_agent,
    make_job,
    says_ok,
    until,
)
from tests.support.running import Client

ENTRY: dict[str, Any] = {
    "workspace_id": 7,
    "job_id": UUID("01900000-0000-7000-8000-000000000001"),
    "type": JobLogType.NOTE,
    "status": JobStatus.PENDING,
    "message": 'Grüße "\\\n\x7f',
    "payload_json": '{"a":1.0}',
    "payload_truncated": False,
    "attempt_id": None,
    "agent_id": UUID("01900000-0000-7000-8000-000000000002"),
    "actor_kind": ActorKind.SYSTEM,
    "actor_id": None,
    "actor_name": "Signoff",
    "created_at": datetime(2026, 1, 2, 3, 4, 5, 600, UTC),
}


def test_a_hash_can_be_made_by_anybody() -> None:
    told = [
        "signoff.log.1",
        "abc",
        7,
        "01900000-0000-7000-8000-000000000001",
        "NOTE",
        "PENDING",
        'Grüße "\\\n\x7f',
        '{"a":1.0}',
        False,
        None,
        "01900000-0000-7000-8000-000000000002",
        "SYSTEM",
        None,
        "Signoff",
        "2026-01-02T03:04:05.000600+00:00",
    ]
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    assert hashes.of_job("abc", ENTRY) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", hashes.OF_JOB)
def test_a_hash_covers_every_column_but_the_place(name: str) -> None:
    other: dict[str, Any] = {
        "workspace_id": 8,
        "payload_truncated": True,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 601, UTC),
        "agent_id": None,
    }
    changed = ENTRY | {name: other.get(name, "X")}
    assert hashes.of_job("", changed) != hashes.of_job("", ENTRY)
    assert hashes.of_job("x", ENTRY) != hashes.of_job("", ENTRY)


async def worked_on(rt: Runtime) -> Job:
    """A job with a log of some length."""
    async with fake_agent(says_ok) as agent:
        return await execute(rt, await make_job(rt, await make_agent(rt, agent.url)))


async def verified(job: Job) -> Verification:
    return await verification.of_job(ADMIN, job.id)


async def test_a_log_is_as_it_was_written(rt: Runtime) -> None:
    for model, told in ((JobLog, hashes.OF_JOB), (AuditEntry, hashes.OF_WORKSPACE)):
        assert set(told) == set(statements.attributes(model)) - {"hash"}
    job = await worked_on(rt)
    entries = await logs_of(job)
    now = await Job.get(id=job.id)
    assert now.log_head == entries[-1].hash == job.log_head
    assert await verified(job) == Verification(len(entries), now.log_head)
    before = ""
    for entry in entries:
        assert entry.hash == hashes.of_job(before, vars(entry))
        before = entry.hash


CHANGES = [
    "message = 'It was fine.'",
    "actor_name = 'Eve'",
    "status = 'PENDING'",
    "created_at = '2020-01-01 00:00:00+00:00'",
    "payload_json = NULL",
]


@pytest.mark.parametrize("what", CHANGES)
async def test_a_changed_entry_is_named(rt: Runtime, what: str) -> None:
    job = await worked_on(rt)
    third = (await logs_of(job))[2]
    await change(f"SET {what} WHERE seq = {third.seq}")
    assert await broken(job) == (third.seq, 2)


async def test_a_removed_entry_is_missed_by_the_one_after_it(rt: Runtime) -> None:
    job = await worked_on(rt)
    entries = await logs_of(job)
    await remove(entries[2])
    assert await broken(job) == (entries[3].seq, 2)


async def test_an_inserted_entry_is_named(rt: Runtime) -> None:
    job = await worked_on(rt)
    entries = await logs_of(job)
    other = await make_job(rt)
    (mine,) = await logs_of(other)
    await change(f"SET job_id = '{job.id}' WHERE seq = {mine.seq}")
    assert await broken(job) == (mine.seq, len(entries))
    assert (await verified(other)).problem == "the log does not end where it should"


async def test_reordered_entries_are_named(rt: Runtime) -> None:
    job = await worked_on(rt)
    first, second = (await logs_of(job))[1:3]
    for old, new in ((first.seq, -1), (second.seq, first.seq), (-1, second.seq)):
        await change(f"SET seq = {new} WHERE seq = {old}")
    assert await broken(job) == (first.seq, 1)


async def test_a_truncated_log_does_not_end_where_it_should(rt: Runtime) -> None:
    job = await worked_on(rt)
    entries = await logs_of(job)
    await remove(entries[-1])
    problem = "the log does not end where it should"
    assert await verified(job) == Verification(len(entries) - 1, entries[-2].hash, problem)
    await jobs.add_note(rt, MEMBER, job.id, "It goes on.")
    assert (await verified(job)).first_broken == (await logs_of(job))[-1].seq


async def test_a_head_that_was_kept_shows_what_was_cut_off_with_the_head(rt: Runtime) -> None:
    job = await worked_on(rt)
    entries = await logs_of(job)
    kept = {f"job_{job.id.hex}": entries[-1].hash}
    await remove(entries[-1])
    await Job.filter(id=job.id).update(log_head=entries[-2].hash)
    assert (await verified(job)).ok
    found = {log.name: log.found async for log in verification.everywhere(kept)}
    assert found[f"job_{job.id.hex}"].problem == "the hash that was kept is not in the log"
    found = {log.name: log.found async for log in verification.everywhere({"job_gone": ""})}
    assert found["job_gone"].problem == "is gone"


async def change(what: str) -> None:
    await connections.get("default").execute_script(f"UPDATE job_logs {what}")


async def remove(entry: JobLog) -> None:
    assert await JobLog.filter(seq=entry.seq).delete() == 1


async def broken(job: Job) -> tuple[int | None, int]:
    """The first broken entry, and how many before it are well; all of them together say so too."""
    found = await verified(job)
    everything = await verification.of_workspace(ADMIN, int)
    assert (found.ok, everything.first_broken) == (False, found.first_broken)
    assert found.problem == f"entry {found.first_broken} is not the one written"
    return found.first_broken, found.checked


# Many at once


async def test_notes_at_the_same_time_all_get_into_the_chain(rt: Runtime) -> None:
    job = await make_job(rt)
    notes = (jobs.add_note(rt, MEMBER, job.id, f"Note {number}.") for number in range(30))
    told = await asyncio.gather(*notes)
    assert len({entry.seq for entry in told}) == 30
    assert (await verified(job)).checked == 31
    assert (await verified(job)).ok


async def test_notes_invalidate_no_run(rt: Runtime) -> None:
    ended = asyncio.Event()

    async def annotate(job: Job) -> int:
        written = 0
        while not ended.is_set():
            await jobs.add_note(rt, MEMBER, job.id, "Still there?")
            written += 1
        return written

    async with fake_agent(says_ok) as agent:
        works = await make_agent(rt, agent.url)
        made = [await make_job(rt, works) for _ in range(5)]
        writers = [asyncio.create_task(annotate(job)) for job in made for _ in range(3)]
        done = await asyncio.gather(*(execute(rt, job) for job in made))
        ended.set()
        written = await asyncio.gather(*writers)
        assert len(agent.received) == 5
    assert [job.status for job in done] == [JobStatus.COMPLETED] * 5
    for number, job in enumerate(made):
        found = await verified(job)
        assert found.problem is None
        notes = [entry for entry in await logs_of(job) if entry.type is JobLogType.NOTE]
        assert len(notes) == sum(written[number * 3 : number * 3 + 3])


WRITE = """
import asyncio, sys
import signoff
from pathlib import Path
from uuid import UUID
from signoff.wiring import runtime
from services import jobs
from tests.support.making import MEMBER
from tests.support.running import settings_for
async def main(url, folder, job_id, name):
    settings = settings_for(url, Path(folder))
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        for number in range(10):
            notes = [jobs.add_note(rt, MEMBER, UUID(job_id), f"{name} {number} {n}") for n in "ab"]
            await asyncio.gather(*notes)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_write_one_chain(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    job = await make_job(rt)
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", WRITE, database_url, str(tmp_path), str(job.id), name),
            cwd=SDL_FILE.parent,
            stderr=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    for process in started:
        _, problems = await process.communicate()
        assert (process.returncode, problems) == (0, b"")
    assert (await verified(job)) == Verification(41, (await logs_of(job))[-1].hash)


# What belongs to no job


async def told() -> list[tuple[str, str, str, Any]]:
    rows = await AuditEntry.all().order_by("seq")
    return [(r.actor_name, r.action, r.subject, json.loads(r.changes_json)) for r in rows]


def test_all_that_can_be_set_of_an_agent_is_told() -> None:
    given = {to_camel(name) for name in SaveAgent.model_fields}
    given -= {"id", "expectedVersion", "maxCallCostUsd"}
    assert set(TOLD.values()) == given | {"maxCallMicros", "availability"}


async def test_what_is_done_to_agents_is_told_without_secrets(rt: Runtime) -> None:
    made = SaveAgent.model_validate(
        {
            "name": "Ada",
            "endpoint_url": "http://127.0.0.1:9/run?token=hush",
            "auth_header": "Authorization: Bearer hush",
        }
    )
    agent = (await agents.save(rt, ADMIN, made)).agent
    change = {"id": agent.id, "name": "Ada", "endpoint_url": "http://127.0.0.1:9/b?token=hush2"}
    change |= {"max_concurrency": 3, "auth_header": "", "description": "x" * 3000}
    await agents.save(rt, ADMIN, SaveAgent.model_validate(change))
    await agents.set_availability(rt, ADMIN, agent.id, type(agent.availability).PAUSED)
    await circuits.reset(rt, ADMIN, agent.id)
    subject = f"agent_{agent.id.hex}"
    entries = await told()
    assert entries[0] == (
        "Local admin",
        "agent.made",
        subject,
        {
            "name": {"from": None, "to": "Ada"},
            "description": {"from": None, "to": ""},
            "endpointUrl": {"from": None, "to": "http://127.0.0.1:9/run?…"},
            "authHeader": {"from": None, "to": "[secret]"},
            "secret": {"from": None, "to": "[secret]"},
        },
    )
    digest = hashlib.sha256(b'"' + b"x" * 3000 + b'"').hexdigest()
    assert entries[1] == (
        "Local admin",
        "agent.changed",
        subject,
        {
            "description": {"from": "", "to": {"bytes": 3002, "sha256": digest}},
            "endpointUrl": {"from": "http://127.0.0.1:9/run?…", "to": "http://127.0.0.1:9/b?…"},
            "maxConcurrency": {"from": 10, "to": 3},
            "authHeader": {"from": "[secret]", "to": None},
        },
    )
    paused = {"availability": {"from": "ACTIVE", "to": "PAUSED"}}
    assert entries[2:] == [
        ("Local admin", "agent.availability_set", subject, paused),
        ("Local admin", "agent.circuit_reset", subject, {}),
    ]
    assert "hush" not in str([await AuditEntry.all().values()])


async def test_a_change_that_is_refused_is_not_told(rt: Runtime) -> None:
    await make_agent(rt, name="Ada")
    before = await told()
    with pytest.raises(Exception, match="exists already"):
        await make_agent(rt, name="Ada")
    assert await told() == before


async def test_keys_made_used_and_revoked_are_told(rt: Runtime) -> None:
    key, text = await keys.create("Ada", Role.ADMIN)
    member, _ = await keys.create("Mia", Role.MEMBER)
    for _ in range(2):  # as two processes would
        uses = KeyUses()
        async with uses.written():
            for _ in range(3):
                uses.note(key)
                uses.note(member)
    await keys.revoke(key.prefix)
    entries = await told()
    actions = [(actor, action) for actor, action, _, _ in entries]
    assert actions == [
        ("Signoff", "key.made"),
        ("Signoff", "key.made"),
        ("Ada", "key.used"),
        ("Signoff", "key.revoked"),
    ]
    subject = f"key_{key.id.hex}"
    assert [entry[2] == subject for entry in entries] == [True, False, True, True]
    assert text not in str(entries)
    assert keys._hash(text) not in str(entries)  # pyright: ignore[reportPrivateUsage]


async def test_admins_with_a_token_are_told_of_once_an_hour(rt: Runtime) -> None:
    boss, clerk = [
        Viewer(ActorKind.USER, f"oidc:{name}", name, role)
        for name, role in (("Bo", Role.ADMIN), ("Cy", Role.MEMBER))
    ]
    uses = KeyUses()
    async with uses.written():
        for viewer in (boss, clerk, boss):
            uses.note_token(viewer)
    role = {"role": {"from": None, "to": "ADMIN"}}
    assert await told() == [("Bo", "token.used", "oidc:Bo", role)]


async def test_the_first_use_in_an_hour_is_told_however_short_the_one_before_was_ago(
    rt: Runtime,
) -> None:
    key, _ = await keys.create("Ada", Role.ADMIN)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    await ApiKey.filter(id=key.id).update(last_used_at=hour - timedelta(seconds=1))
    uses = KeyUses()
    async with uses.written():
        uses.note(await ApiKey.get(id=key.id))
    assert [action for _, action, _, _ in await told()] == ["key.made", "key.used"]
    async with uses.written():
        uses.note(await ApiKey.get(id=key.id))
        uses.note(key)  # as it was read before
    assert len(await told()) == 2


async def test_what_is_done_by_mutations_to_keys_is_told(rt: Runtime) -> None:
    agent = await make_agent(rt)
    begun = len(await told())
    ends = datetime(2100, 1, 2, tzinfo=UTC)
    given: dict[str, Any] = {"name": "Mia", "role": "MEMBER", "expires_at": ends}
    given |= {"agent_ids": [agent.id], "owners": ["Olaf"]}
    made = await keys.issue(rt, ADMIN, CreateApiKey.model_validate(given))
    for _ in range(2):
        await keys.withdraw(rt, ADMIN, made.key.id)
    subject, revoked = f"key_{made.key.id.hex}", await ApiKey.get(id=made.key.id)
    assert revoked.revoked_at
    entries = (await told())[begun:]
    assert [entry[:3] for entry in entries] == [
        ("Local admin", "key.made", subject),
        ("Local admin", "key.revoked", subject),
    ]
    assert {name: change["to"] for name, change in entries[0][3].items()} == {
        "name": "Mia",
        "role": "MEMBER",
        "prefix": made.key.prefix,
        "expiresAt": "2100-01-02T00:00:00+00:00",
        "agentIds": [f"agent_{agent.id.hex}"],
        "owners": ["Olaf"],
    }
    assert entries[1][3]["prefix"] == {"from": None, "to": made.key.prefix}
    assert made.text not in str(entries)


async def test_what_is_done_to_webhooks_is_told_without_secrets(rt: Runtime) -> None:
    url = "http://127.0.0.1:9/hush?token=hush"
    hook = await make_hook(rt, url, types=["NOTE"])
    change: dict[str, Any] = {"id": hook.id, "url": url + "2", "types": ["VERDICT"]}
    change |= {"where": {"name": {"eq": "A job"}}, "enabled": False}
    await hooks.save(rt, ADMIN, SaveWebhook.model_validate(change))
    await hooks.rotate_secret(rt, ADMIN, hook.id, 60)
    await hooks.delete(rt, ADMIN, hook.id)
    entries, server = await told(), "http://127.0.0.1:9/…"
    assert {(actor, subject) for actor, _, subject, _ in entries} == {
        ("Local admin", f"webhook_{hook.id.hex}")
    }
    assert [(action, changes) for _, action, _, changes in entries] == [
        (
            "webhook.made",
            {
                "types": {"from": None, "to": ["NOTE"]},
                "enabled": {"from": None, "to": True},
                "owner": {"from": None, "to": "local"},
                "ownerRole": {"from": None, "to": "ADMIN"},
                "url": {"from": None, "to": server},
                "secret": {"from": None, "to": "[secret]"},
            },
        ),
        (
            "webhook.changed",
            {
                "types": {"from": ["NOTE"], "to": ["VERDICT"]},
                "where": {"from": None, "to": {"name": {"eq": "A job", "ignore_case": True}}},
                "enabled": {"from": True, "to": False},
                "url": {"from": server, "to": server},
            },
        ),
        (
            "webhook.secret_rotated",
            {
                "secret": {"from": "[secret]", "to": "[secret]"},
                "overlapSeconds": {"from": None, "to": 60},
            },
        ),
        ("webhook.deleted", {}),
    ]
    assert "hush" not in str([await AuditEntry.all().values()])


async def test_a_workspace_has_an_audit_log_of_its_own(rt: Runtime) -> None:
    other = await workspaces.create("acme")
    theirs = replace(ADMIN, workspace_id=other.id)
    await make_job(rt, viewer=theirs)
    await make_agent(rt)
    for viewer, actions, checked in (
        (ADMIN, ["agent.made"], 1),
        (theirs, ["workspace.made"], 2),
    ):
        page = await audit.entries(viewer, Window())
        assert [row.action for row in page.rows] == actions
        found = await verification.of_workspace(viewer, int)
        assert (found.ok, found.checked) == (True, checked)
    await Job.filter(workspace_id=other.id).update(log_head="")
    assert (await verification.of_workspace(ADMIN, int)).ok
    assert not (await verification.of_workspace(theirs, int)).ok


async def test_what_was_moved_to_another_workspace_is_named(rt: Runtime) -> None:
    job = await worked_on(rt)
    entries = await logs_of(job)
    other = (await workspaces.create("acme")).id
    await Job.filter(id=job.id).update(workspace_id=other)
    theirs = await verification.of_job(replace(ADMIN, workspace_id=other), job.id)
    assert theirs.first_broken == entries[0].seq
    await change(f"SET workspace_id = {other} WHERE job_id = '{job.id}'")
    theirs = await verification.of_job(replace(ADMIN, workspace_id=other), job.id)
    assert theirs.first_broken == entries[0].seq


async def test_a_forced_completion_is_told_with_who_and_why(rt: Runtime) -> None:
    job = await make_job(rt)
    force = {"id": job.id, "result": {"a": 1}, "reason": "The customer agreed."}
    await decisions.force_complete(rt, ADMIN, ForceComplete.model_validate(force))
    entry = (await logs_of(job))[-1]
    assert (entry.actor_id, entry.message) == (ADMIN.id, "The customer agreed.")
    assert json.loads(entry.payload_json or "")["event"] == "FORCE_COMPLETE"
    assert (await verified(job)).ok


async def test_the_audit_log_has_a_chain_of_its_own(rt: Runtime) -> None:
    @atomic
    async def do(rt: Runtime, number: int) -> None:
        await audit.record(ADMIN, "thing.done", f"thing_{number}", {})

    await asyncio.gather(*(do(rt, number) for number in range(20)))
    assert (await verification.of_workspace(ADMIN, int)).checked == 20
    third = (await AuditEntry.all().order_by("seq"))[2]
    await AuditEntry.filter(seq=third.seq).update(actor_name="Eve")
    found = await verification.of_workspace(ADMIN, int)
    assert found.problem == f"workspace_1: entry {third.seq} is not the one written"
    page = await audit.entries(ADMIN, Window(first=2))
    assert [row.subject for row in page.rows] == [
        row.subject for row in await AuditEntry.all().order_by("-seq").limit(2)
    ]


async def test_who_sees_a_job_may_verify_it_and_admins_all(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await make_job(rt)
    for viewer in (MEMBER, READER, ADMIN):
        assert (await verification.of_job(viewer, job.id)).ok
    with pytest.raises(NotFound):
        await verification.of_job(OTHER, job.id)
    with pytest.raises(NotFound):
        await verification.of_job(ADMIN, uuid7())
    narrow = replace(ADMIN, owners=frozenset({MEMBER.id})), replace(ADMIN, agents=frozenset())
    assert (await verification.of_job(narrow[0], job.id)).ok
    with pytest.raises(NotFound):
        await verification.of_job(replace(ADMIN, workspace_id=2), job.id)
    for viewer in (MEMBER, READER, *narrow):
        with pytest.raises(Forbidden):
            await verification.of_workspace(viewer, int)
        with pytest.raises(Forbidden):
            await audit.entries(viewer, Window())
    monkeypatch.setattr(verification, "MAX_ENTRIES", 0)
    with pytest.raises(LimitExceeded, match="signoff verify-audit"):
        await verification.of_workspace(ADMIN, int)


async def test_over_http(client: Client, database_url: str) -> None:
    job = await new_job(client)
    said = "ok checked firstBroken headHash pruned problem"
    ask = f"query ($id: ID) {{ verifyAudit(jobId: $id) {{ {said} }} }}"
    logs = "query ($id: ID!) { job(id: $id) { logs { nodes { hash cursor } } } }"
    (entry,) = (await gql(client, logs, id=job["id"]))["job"]["logs"]["nodes"]
    assert (await gql(client, ask, id=job["id"]))["verifyAudit"] == {
        "ok": True,
        "checked": 1,
        "firstBroken": None,
        "headHash": entry["hash"],
        "pruned": 0,
        "problem": None,
    }
    admin = await make_key(database_url, "ada", Role.ADMIN)
    member = await make_key(database_url, "mia", Role.MEMBER)
    entries = "{ auditEntries { nodes { actor { kind id name } action subject changes hash } } }"

    async def newest() -> dict[str, Any] | None:
        (entry, *_) = (await gql(client, entries, admin))["auditEntries"]["nodes"]
        return entry if entry["action"] == "key.used" else None

    used = await until(newest)
    assert used["actor"] == {"kind": "API_KEY", "id": "ada", "name": "ada"}
    assert used["changes"]["role"] == {"from": None, "to": "ADMIN"}
    assert (await gql(client, ask, admin))["verifyAudit"]["checked"] == 4
    foreign = await refusal(client, ask, member, id=job["id"])
    missing = await refusal(client, ask, member, id=f"job_{uuid7().hex}")
    for refused in (foreign, missing):
        assert refused["code"] == "NOT_FOUND"
    for query in (ask, entries):
        assert (await refusal(client, query, member))["code"] == "FORBIDDEN"


def test_the_command_names_a_break_and_what_was_cut_off(database_url: str, tmp_path: Path) -> None:
    def command(*arguments: str) -> tuple[int, list[str]]:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "signoff", *arguments],
            env=environment(SIGNOFF_DATABASE_URL=database_url),
            cwd=SDL_FILE.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    assert command("keys", "create", "--role", "admin", "--name", "ada")[0] == 0
    code, lines = command("verify-audit", "--heads")
    assert (code, len(lines)) == (0, 2)
    assert lines[0].startswith("workspace_1 ")
    assert lines[1].startswith("1 entries are as they were written; together ")
    kept = tmp_path / "heads.txt"
    kept.write_text("\n".join(lines))
    assert command("verify-audit", "--against", str(kept))[0] == 0
    kept.write_text(f"workspace_1 {'0' * 64}\n")
    problem = "workspace_1: the hash that was kept is not in the log"
    refused = f"signoff: the logs are not as they were written: {problem}"
    assert command("verify-audit", "--against", str(kept)) == (1, [refused])
    kept.write_text("nothing of that kind")
    assert command("verify-audit", "--against", str(kept))[0] == 1
