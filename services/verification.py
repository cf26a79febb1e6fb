"""Whether the logs are as they were written: every hash made again, from first to last.

Read in slices, so that neither memory nor the event loop is taken for long. A log may grow
meanwhile; what is added counts as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from uuid import UUID

from models import AuditEntry, Job, JobLog, PrunedLog, hashes, jsontext, statements
from models.statements import Row
from services import audit, jobs, queue, workspaces
from services.actors import Viewer
from services.errors import LimitExceeded
from services.values import public_id

SLICE = 200
MAX_ENTRIES = 200_000
"""Entries and logs that one request goes through; for more there is the command."""


@dataclass(frozen=True, slots=True)
class Verification:
    """`first_broken` is the position of the first entry of a job that is not as it was written.

    None if what is wrong is of another kind: `problem` says it in words. `head` is the hash
    that the log ends with; of all logs together, a hash over those of each. `pruned` counts the
    logs whose beginning retention removed, of which the audit log tells.
    """

    checked: int
    head: str
    problem: str | None = None
    first_broken: int | None = None
    pruned: int = 0

    @property
    def ok(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Log:
    """One log of the server's: whose it is, and what became of it."""

    name: str
    found: Verification


async def of_job(viewer: Viewer, job_id: UUID) -> Verification:
    """Of a job that the viewer sees; raises `NotFound`."""
    job = await jobs.get(viewer, job_id)
    return await of_log(job)


async def of_log(job: Job) -> Verification:
    """The same for who may see all."""
    return await _job(job.id, job.workspace_id)


async def of_workspace(viewer: Viewer, counted: Callable[[int], object]) -> Verification:
    """Of all its jobs and of its audit log, for admins; raises `Forbidden` or `LimitExceeded`.

    Tells `counted` of the entries and logs that it goes through, as it goes.
    """
    audit.demand_whole(viewer)
    total = Total()
    async with aclosing(logs(viewer.workspace_id)) as found:
        async for log in found:
            total.add(log)
            counted(1 + log.found.checked)
            if total.size > MAX_ENTRIES:
                message = "The logs are too long for one request; run: signoff verify-audit"
                raise LimitExceeded(message, MAX_ENTRIES)
    return total.verification


class Total:
    """What many logs come to, in their order. The first problem counts."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = sha256()
        self._so_far = Verification(0, "")

    def add(self, log: Log) -> None:
        before, found = self._so_far, log.found
        self.size += 1 + found.checked
        self._digest.update(f"{log.name} {found.head}\n".encode())
        problem, broken = before.problem, before.first_broken
        if problem is None and found.problem is not None:
            problem, broken = f"{log.name}: {found.problem}", found.first_broken
        checked, pruned = before.checked + found.checked, before.pruned + found.pruned
        self._so_far = Verification(checked, "", problem, broken, pruned)

    @property
    def verification(self) -> Verification:
        return replace(self._so_far, head=self._digest.hexdigest())


JOBS = """SELECT "id" FROM "jobs" WHERE "workspace_id" = $1 AND "id" > $2
    ORDER BY "id" LIMIT $3"""
BEFORE_ALL = -(2**63)
"""A position that no entry has, whoever put it there."""
NOTHING = str(UUID(int=0))


async def everywhere(kept: Mapping[str, str]) -> AsyncGenerator[Log]:
    """The logs of all workspaces.

    `kept` are hashes by the names of logs, of which each must have been in its log.
    """
    expected = dict(kept)
    for workspace in await workspaces.oldest():
        async with aclosing(logs(workspace.id, expected)) as found:
            async for log in found:
                yield log
    for name in expected:
        yield Log(name, Verification(0, "", "is gone"))


async def logs(workspace_id: int, expected: dict[str, str] | None = None) -> AsyncGenerator[Log]:
    """A workspace's audit log, then those of its jobs by their ids.

    What was `expected` of each is taken out of there.
    """
    kept = {} if expected is None else expected
    name = public_id("workspace", workspace_id)
    yield Log(name, await _audit(workspace_id, kept.pop(name, None)))
    last = NOTHING
    while rows := await statements.database().fetch(JOBS, workspace_id, last, SLICE):
        for row in rows:
            last = str(row[0])
            id = queue.uuid(row[0])
            name = public_id("job", id)
            yield Log(name, await _job(id, workspace_id, kept.pop(name, None)))


async def _job(id: UUID, workspace_id: int, kept: str | None = None) -> Verification:
    """Again from its beginning if retention removed that meanwhile."""
    where = '"job_logs" t0 WHERE t0."job_id" = $1 AND t0."seq" > $2 ORDER BY t0."seq" LIMIT $3'

    async def after(seq: int) -> Sequence[JobLog]:
        rows = await statements.fetch_all((JobLog,), where, str(id), seq, SLICE)
        return [row for (row,) in rows]

    heads = 'SELECT "log_head" FROM "jobs" WHERE "id" = $1 LIMIT 1'
    while True:
        pruned = await statements.fetch(PrunedLog, job_id=id)
        beginning = pruned.head if pruned else hashes.BEGINNING
        log = _Log(hashes.of_job, heads, str(id), after, workspace_id, beginning)
        if pruned is None:
            found = await _walk(log, kept)
        elif await _is_told(pruned, workspace_id):
            found = replace(await _walk(log, None), pruned=1)  # what was kept may have gone
        else:
            problem = "the audit log tells nothing of what was removed from it"
            found = Verification(0, "", problem)
        now = await statements.fetch(PrunedLog, job_id=id)
        if found.ok or (now and now.until_seq) == (pruned and pruned.until_seq):
            return found


async def _is_told(pruned: PrunedLog, workspace_id: int) -> bool:
    """Whether an entry of the audit log, tied to the one before it, tells of this."""
    wanted = {"untilSeq": pruned.until_seq, "headHash": pruned.head}
    subject = public_id("job", pruned.job_id)
    mine = AuditEntry.filter(workspace_id=workspace_id)
    for entry in await mine.filter(subject=subject, action=audit.PRUNED).order_by("-seq"):
        before = await mine.filter(seq__lt=entry.seq).order_by("-seq").first()
        head = before.hash if before else hashes.BEGINNING
        told = jsontext.loads(entry.changes_json)
        if {name: told[name]["to"] for name in wanted} == wanted:
            return hashes.of_workspace(head, vars(entry)) == entry.hash
    return False


async def _audit(workspace_id: int, kept: str | None) -> Verification:
    where = (
        '"audit_entries" t0 WHERE t0."workspace_id" = $1 AND t0."seq" > $2 '
        'ORDER BY t0."seq" LIMIT $3'
    )

    async def after(seq: int) -> Sequence[AuditEntry]:
        rows = await statements.fetch_all((AuditEntry,), where, workspace_id, seq, SLICE)
        return [row for (row,) in rows]

    heads = 'SELECT "log_head" FROM "workspaces" WHERE "id" = $1 LIMIT 1'
    source = _Log(hashes.of_workspace, heads, workspace_id, after, workspace_id)
    return await _walk(source, kept)


@dataclass(frozen=True, slots=True)
class _Log:
    """How the entries of a log are read, and what says where it ends."""

    digest: Callable[[str, Mapping[str, Any]], str]
    heads: str
    owner: Any
    after: Callable[[int], Awaitable[Sequence[JobLog | AuditEntry]]]
    workspace_id: int
    beginning: str = hashes.BEGINNING


async def _walk(log: _Log, kept: str | None) -> Verification:
    """Follow a log to its end, on the way past `kept`.

    The end is asked for before each slice: when nothing comes after what was read then, the
    log ended there at that moment, however busily it is written to.
    """
    head, seq, checked = log.beginning, BEFORE_ALL, 0
    passed = kept in (None, head)
    while True:
        row: Row | None = await statements.database().fetch_row(log.heads, log.owner)
        entries = await log.after(seq)
        if not entries:
            break
        for entry in entries:
            head = log.digest(head, vars(entry))
            seq = entry.seq
            if entry.hash != head or entry.workspace_id != log.workspace_id:
                return Verification(checked, head, f"entry {seq} is not the one written", seq)
            checked += 1
            passed = passed or head == kept
        await asyncio.sleep(0)
    if row is None:
        return Verification(checked, head, "nothing says where the log ends")
    if row[0] != head:
        return Verification(checked, head, "the log does not end where it should")
    if not passed:
        return Verification(checked, head, "the hash that was kept is not in the log")
    return Verification(checked, head)
