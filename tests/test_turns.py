"""Many who write to one log at once: none of a process is ever behind another one of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from models import AuditEntry, Job, JobLogType, statements
from models.statements import GuardMissed, Statement, Unavailable
from services import agents, audit, jobs, log, transactions, verification
from services.agents import SaveAgent
from services.errors import DatabaseUnavailable
from services.runtime import Runtime
from services.transactions import atomic
from services.verification import Verification
from tests.support import postgres
from tests.support.graphql import SDL_FILE
from tests.support.making import ADMIN, MEMBER, NOWHERE, holds, logs_of, make_job

NOTES = 20


class Writes:
    """What this process asks its database to write, and what of it missed a guard."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked = self.missed = 0
        database = statements.database()
        self._write = database.execute_batch
        patch.setattr(database, "execute_batch", self.execute_batch)

    async def execute_batch(self, batch: Sequence[Statement]) -> list[Any]:
        self.asked += 1
        try:
            return await self._write(batch)
        except GuardMissed:
            self.missed += 1
            raise


async def notes_of(job: Job) -> list[str | None]:
    return [each.message for each in await logs_of(job) if each.type is JobLogType.NOTE]


async def is_whole(job: Job, entries: int) -> None:
    head = (await Job.get(id=job.id)).log_head
    assert await verification.of_log(job) == Verification(entries, head)


async def test_notes_that_come_at_once_are_written_once_each_as_they_came(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await make_job(rt)
    writes = Writes(monkeypatch)
    messages = [f"Note {number}." for number in range(NOTES)]
    told = await asyncio.gather(*[jobs.add_note(rt, MEMBER, job.id, each) for each in messages])
    assert (writes.asked, writes.missed) == (NOTES, 0)
    assert [entry.message for entry in told] == messages
    assert await notes_of(job) == messages
    await is_whole(job, 1 + NOTES)
    assert rt.turns == {}


async def test_changes_of_one_workspace_at_once_are_told_once_each(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    names = [f"Agent {number}" for number in range(NOTES)]
    commands = [SaveAgent(name=each, endpoint_url=NOWHERE) for each in names]
    await asyncio.gather(*[agents.save(rt, ADMIN, each) for each in commands])
    assert (writes.asked, writes.missed) == (NOTES, 0)
    entries = await AuditEntry.all().order_by("seq")
    assert [json.loads(entry.changes_json)["name"]["to"] for entry in entries] == names
    assert (await verification.of_workspace(ADMIN, int)).problem is None
    assert rt.turns == {}


async def test_who_writes_to_several_logs_waits_for_nobody_who_waits_for_them(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await make_job(rt), await make_job(rt)
    writes = Writes(monkeypatch)

    @atomic
    async def to_all(rt: Runtime, ordered: Sequence[Job], message: str) -> None:
        first, second = map(copy, ordered)  # as they were read before all the others wrote
        log.append(first, JobLogType.NOTE, MEMBER, message=message)
        await audit.record(MEMBER, "jobs.noted", message, {})
        log.append(second, JobLogType.NOTE, MEMBER, message=message)

    orders = [(one, two), (two, one)] * NOTES
    await asyncio.gather(*[to_all(rt, each, str(n)) for n, each in enumerate(orders)])
    assert (writes.asked, writes.missed) == (2 * NOTES, 0)
    told = [entry.subject for entry in await AuditEntry.all().order_by("seq")]
    assert sorted(told, key=int) == [str(n) for n in range(2 * NOTES)]
    assert await notes_of(one) == await notes_of(two) == told
    assert (await verification.of_workspace(ADMIN, int)).problem is None
    assert rt.turns == {}


@asynccontextmanager
async def row_held(database_url: str, job: Job) -> AsyncGenerator[None]:
    """Somebody else holds the job's row, or on SQLite the whole database."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite://"))) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
        return
    connection = await postgres.connect(database_url.replace("postgres:", "postgresql:"))
    try:
        await connection.execute("BEGIN")
        await connection.execute(f"UPDATE jobs SET name = name WHERE id = '{job.id}'")  # noqa: S608
        yield
    finally:
        await connection.close()


async def note(rt: Runtime, job: Job, message: str) -> asyncio.Task[Any]:
    """One that is being written, or waits for its turn, when this returns."""
    before = len(rt.transactions)
    task = asyncio.create_task(jobs.add_note(rt, MEMBER, job.id, message))
    await holds(lambda: len(rt.transactions) > before)
    return task


async def test_who_waits_for_a_turn_is_told_in_time_that_it_does_not_come(
    rt: Runtime, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await make_job(rt)
    async with row_held(database_url, job):
        first = await note(rt, job, "First.")
        monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0.1)
        second = await note(rt, job, "Second.")
        with pytest.raises(DatabaseUnavailable):
            await second
        assert not first.done()
    await first
    await jobs.add_note(rt, MEMBER, job.id, "Third.")
    assert await notes_of(job) == ["First.", "Third."]
    await is_whole(job, 3)
    assert rt.turns == {}


async def test_who_is_cut_off_while_waiting_holds_nobody_up(rt: Runtime, database_url: str) -> None:
    job = await make_job(rt)
    async with row_held(database_url, job):
        first = await note(rt, job, "First.")
        before = set(rt.transactions)
        second = await note(rt, job, "Second.")
        (waiting,) = rt.transactions - before
        third = await note(rt, job, "Third.")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
    await asyncio.gather(first, third)
    assert await notes_of(job) == ["First.", "Third."]
    await is_whole(job, 3)
    assert rt.turns == {}


async def test_note_whose_answer_was_lost_is_there_once_though_others_wrote_behind_it(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await make_job(rt)
    lost: list[Sequence[Statement]] = []
    database = statements.database()
    write = database.execute_batch

    async def loses_one(batch: Sequence[Statement]) -> list[Any]:
        written = await write(batch)
        if not lost:
            lost.append(batch)
            raise Unavailable("its answer was lost")
        return written

    monkeypatch.setattr(database, "execute_batch", loses_one)
    monkeypatch.setattr(transactions, "PAUSE_SECONDS", 0)
    messages = [f"Note {number}." for number in range(NOTES)]
    await asyncio.gather(*[jobs.add_note(rt, MEMBER, job.id, each) for each in messages])
    assert len(lost) == 1
    assert await notes_of(job) == messages
    await is_whole(job, 1 + NOTES)


WRITE = """
import asyncio, sys
import signoff
from pathlib import Path
from uuid import UUID
from pytest import MonkeyPatch
from signoff.wiring import runtime
from services import jobs
from tests.support.making import MEMBER
from tests.support.running import settings_for
from tests.test_turns import NOTES, Writes
async def main(url, folder, job_id, name):
    settings = settings_for(url, Path(folder))
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        with MonkeyPatch.context() as patch:
            writes = Writes(patch)
            print("ready", flush=True)
            sys.stdin.readline()
            for _ in range(5):
                notes = [jobs.add_note(rt, MEMBER, UUID(job_id), name) for _ in range(NOTES)]
                await asyncio.gather(*notes)
        print(writes.asked, writes.missed)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_of_two_processes_each_misses_only_what_the_other_wrote(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    job = await make_job(rt)
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", WRITE, database_url, str(tmp_path), str(job.id), name),
            cwd=SDL_FILE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    for process in started:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*[process.communicate(b"go\n") for process in started])
    assert [problems for _, problems in told] == [b"", b""]
    for out, _ in told:
        asked, missed = map(int, out.split())
        assert asked == 5 * NOTES + missed
        assert missed <= 5 * NOTES
    notes = await notes_of(job)
    assert sorted(map(str, notes)) == ["one"] * 5 * NOTES + ["two"] * 5 * NOTES
    await is_whole(job, 1 + 10 * NOTES)
