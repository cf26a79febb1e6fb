"""Removing the log of jobs that were archived long ago."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from models import Job, JobLog, PrunedLog
from models.base import now
from services import decisions, reading, retention
from services.decisions import CancelJob
from services.runtime import Runtime
from tests.support import commands
from tests.support.making import ADMIN, MEMBER, make_job, snapshot


async def archived_job(rt: Runtime) -> Job:
    job = await make_job(rt)
    await decisions.cancel(rt, MEMBER, CancelJob(id=job.id))
    return await decisions.archive(rt, MEMBER, job.id)


async def test_only_jobs_archived_before_then_lose_their_log(rt: Runtime) -> None:
    kept = [await make_job(rt), await archived_job(rt)]
    old = await archived_job(rt)
    await Job.filter(id=old.id).update(archived_at=now() - timedelta(days=10))
    before = [await snapshot(job) for job in kept]
    stood = [entry.seq for entry in await JobLog.filter(job_id=old.id).order_by("seq")]
    pruned = await retention.prune(now() - timedelta(days=9))
    assert (pruned.jobs, pruned.entries) == (1, len(stood))
    assert [await snapshot(job) for job in kept] == before
    assert (await snapshot(old))["logs"] == []
    (note,) = await PrunedLog.all()
    assert (note.job_id, note.from_seq, note.until_seq) == (old.id, stood[0], stood[-1])
    assert await reading.positions([old.id]) == [stood[-1]]


async def test_a_job_may_go_on_and_be_pruned_again(rt: Runtime) -> None:
    job = await archived_job(rt)
    await retention.prune(now())
    (first,) = await PrunedLog.all()
    await decisions.unarchive(rt, ADMIN, job.id)
    assert (await retention.prune(now())).entries == 0
    await decisions.archive(rt, ADMIN, job.id)
    entries = await JobLog.filter(job_id=job.id).order_by("seq")
    assert [entry.seq > first.until_seq for entry in entries] == [True, True]
    assert (await retention.prune(now())).entries == 2
    (note,) = await PrunedLog.all()
    assert (note.from_seq, note.until_seq) == (first.from_seq, entries[-1].seq)


async def test_many_jobs_are_pruned_in_portions(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHUNK", 2)
    for _ in range(5):
        await archived_job(rt)
    pruned = await retention.prune(now())
    assert (pruned.jobs, pruned.entries) == (5, 15)
    assert await JobLog.all().count() == 0


async def test_the_command_says_what_it_removed_and_refuses_what_is_no_number_of_days(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    await archived_job(rt)
    settings = commands.environment(SIGNOFF_DATABASE_URL=database_url)
    for days, removed in (("1", "0 log entries of 0"), ("0", "3 log entries of 1")):
        code, out, _ = await commands.run(tmp_path, settings, "prune", "--older-than", days)
        assert (code, out) == (0, f"Removed {removed} archived jobs.\n")
    for wrong in ("-1", "x", "nan", "99999"):
        code, out, error = await commands.run(tmp_path, settings, "prune", "--older-than", wrong)
        assert (code, out) == (2, "")
        assert "invalid _days value" not in error
        assert "--older-than" in error
