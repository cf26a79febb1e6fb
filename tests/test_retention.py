"""Removing the log of jobs that were archived long ago."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from models import AuditEntry, Job, JobLog, PrunedLog, jsontext
from models.base import now
from services import audit, decisions, jobs, reading, retention, verification
from services.decisions import CancelJob
from services.paging import Window
from services.retention import Pruned
from services.runtime import Runtime
from services.verification import Verification
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


async def pruned_job(rt: Runtime) -> tuple[Job, str]:
    """A job without its log, and the hash that it ended with."""
    job = await archived_job(rt)
    await retention.prune(now())
    return job, job.log_head


async def test_what_was_pruned_is_told_as_that_and_not_as_broken(rt: Runtime) -> None:
    job, head = await pruned_job(rt)
    assert await verification.of_log(job) == Verification(0, head, pruned=1)
    await decisions.unarchive(rt, ADMIN, job.id)
    await jobs.add_note(rt, MEMBER, job.id, "It goes on.")
    found = await verification.of_log(job)
    assert (found.problem, found.checked, found.pruned) == (None, 2, 1)
    await decisions.archive(rt, ADMIN, job.id)
    await retention.prune(now())
    found = await verification.of_log(job)
    assert (found.problem, found.checked, found.pruned) == (None, 0, 1)
    everything = await verification.of_workspace(ADMIN, int)
    assert (everything.problem, everything.checked, everything.pruned) == (None, 2, 1)
    (last, first) = (await audit.entries(ADMIN, Window())).rows
    assert {last.action, first.action} == {"log.pruned"}
    assert {last.subject, first.subject} == {f"job_{job.id.hex}"}
    assert jsontext.loads(first.changes_json)["entries"] == {"from": 3, "to": 0}
    assert jsontext.loads(last.changes_json)["entries"] == {"from": 3, "to": 0}


UNTOLD = "the audit log tells nothing of what was removed from it"


async def test_entries_that_somebody_else_removed_are_not_taken_for_pruned(rt: Runtime) -> None:
    await pruned_job(rt)
    job = await archived_job(rt)
    entries = await JobLog.filter(job_id=job.id).order_by("seq")
    await JobLog.filter(job_id=job.id, seq__lt=entries[-1].seq).delete()
    assert (await verification.of_log(job)).first_broken == entries[-1].seq
    forged = {"job_id": job.id, "head": entries[1].hash}
    forged |= {"from_seq": entries[0].seq, "until_seq": entries[1].seq}
    await PrunedLog(**forged).save(force_create=True)
    assert (await verification.of_log(job)).problem == UNTOLD
    told = await AuditEntry.get()
    subject = f"job_{job.id.hex}"
    await AuditEntry.filter(seq=told.seq).update(subject=subject)
    assert (await verification.of_log(job)).problem == UNTOLD
    said = {"untilSeq": {"to": entries[1].seq}, "headHash": {"to": entries[1].hash}}
    await AuditEntry.filter(seq=told.seq).update(changes_json=jsontext.dumps(said))
    assert (await verification.of_log(job)).problem == UNTOLD
    assert (await verification.of_workspace(ADMIN, int)).problem == (
        f"workspace_1: entry {told.seq} is not the one written"
    )


async def test_more_than_was_pruned_is_missed(rt: Runtime) -> None:
    job, _ = await pruned_job(rt)
    await decisions.unarchive(rt, ADMIN, job.id)
    await jobs.add_note(rt, MEMBER, job.id, "It goes on.")
    first, second = await JobLog.filter(job_id=job.id).order_by("seq")
    await JobLog.filter(seq=first.seq).delete()
    assert (await verification.of_log(job)).first_broken == second.seq
    await JobLog.filter(seq=second.seq).delete()
    assert (await verification.of_log(job)).problem == "the log does not end where it should"


async def test_a_kept_hash_of_what_was_pruned_since_is_no_break(rt: Runtime) -> None:
    job = await archived_job(rt)
    kept = {f"job_{job.id.hex}": job.log_head}
    await decisions.unarchive(rt, ADMIN, job.id)
    await decisions.archive(rt, ADMIN, job.id)
    await retention.prune(now())
    found = {log.name: log.found async for log in verification.everywhere(kept)}
    assert found[f"job_{job.id.hex}"].problem is None


async def test_a_broken_log_is_not_pruned(rt: Runtime) -> None:
    broken, whole = await archived_job(rt), await archived_job(rt)
    (first, *_) = await JobLog.filter(job_id=broken.id).order_by("seq")
    await JobLog.filter(seq=first.seq).update(actor_name="Eve")
    pruned = await retention.prune(now())
    assert (pruned.jobs, pruned.entries, pruned.broken) == (1, 3, 1)
    assert await JobLog.filter(job_id=broken.id).count() == 3
    assert await PrunedLog.all().values_list("job_id", flat=True) == [whole.id]
    assert (await verification.of_log(broken)).first_broken == first.seq


async def test_notes_go_on_while_it_is_pruned_and_verified(rt: Runtime) -> None:
    job = await archived_job(rt)

    async def annotate() -> None:
        for number in range(20):
            await jobs.add_note(rt, ADMIN, job.id, f"Note {number}.")

    async def prune() -> int:
        removed = 0
        while not writing.done():
            removed += (await retention.prune(now())).entries
            assert (await verification.of_log(job)).problem is None
        return removed

    writing = asyncio.create_task(annotate())
    removed = await prune()
    await writing
    assert removed + await JobLog.filter(job_id=job.id).count() == 23
    assert (await verification.of_workspace(ADMIN, int)).problem is None


async def test_many_jobs_are_pruned_in_portions(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHUNK", 2)
    for _ in range(5):
        await archived_job(rt)
    pruned = await retention.prune(now())
    assert (pruned.jobs, pruned.entries) == (5, 15)
    assert await JobLog.all().count() == 0


async def told() -> int:
    """How often the audit log tells of what was pruned."""
    return await AuditEntry.filter(action=audit.PRUNED).count()


async def test_who_prune_at_once_remove_and_tell_each_entry_once(rt: Runtime) -> None:
    made = [await archived_job(rt) for _ in range(5)]
    pruned = await asyncio.gather(*[retention.prune(now()) for _ in range(4)])
    assert sum(each.jobs for each in pruned) == await told() == len(made)
    assert sum(each.entries for each in pruned) == 3 * len(made)
    assert (await verification.of_workspace(ADMIN, int)).problem is None


async def test_who_read_before_another_pruned_moves_nothing_back(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await archived_job(rt)
    has_read, goes_on = asyncio.Event(), asyncio.Event()
    of_log = verification.of_log

    async def waits(job: Job) -> Verification:
        found = await of_log(job)
        has_read.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(verification, "of_log", waits)
    first = asyncio.create_task(retention.prune(now()))
    await has_read.wait()
    monkeypatch.undo()
    await jobs.add_note(rt, MEMBER, job.id, "One more.")
    assert await retention.prune(now()) == Pruned(jobs=1, entries=4)
    before = await PrunedLog.all().values()
    goes_on.set()
    assert await first == Pruned()
    assert await PrunedLog.all().values() == before
    assert await told() == 1
    assert await verification.of_log(job) == Verification(0, before[0]["head"], pruned=1)


async def test_two_processes_that_prune_remove_each_entry_once(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    for _ in range(20):
        await archived_job(rt)
    settings = commands.environment(SIGNOFF_DATABASE_URL=database_url)
    prune = ("prune", "--older-than", "0")
    ended = await asyncio.gather(*[commands.run(tmp_path, settings, *prune) for _ in range(2)])
    assert [(code, error) for code, _, error in ended] == [(0, ""), (0, "")]
    removed = [int(out.split()[1]) for _, out, _ in ended]
    assert sum(removed) == 3 * 20
    assert await told() == 20
    assert await JobLog.all().count() == 0
    assert (await verification.of_workspace(ADMIN, int)).problem is None


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
