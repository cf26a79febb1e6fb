"""What must hold of all rows at any moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from models import (
    ActorKind,
    AttemptState,
    CompletionMode,
    DependencyPolicy,
    JobLogType,
    JobPhase,
    JobStatus,
    QueueState,
    Role,
    VerdictOutcome,
    jsontext,
)
from services.rules import RULES, Event, Party
from tests.simulation.actors import holds_criteria
from tests.simulation.fold import CREATE, UNKNOWN, Entry, Told, columns, finished, history, instant
from tests.simulation.snapshot import Row, Snapshot

LIVE = (AttemptState.QUEUED, AttemptState.RUNNING)


def problems(snapshot: Snapshot, roles: Mapping[str, Role]) -> list[str]:
    """Everything that is not as it must be, in words."""
    found = [*_limits(snapshot), *_circles(snapshot)]
    for id, job in snapshot.jobs.items():
        found += [f"job_{id}: {problem}" for problem in _of_job(snapshot, job, roles)]
    return found


def entries_of(snapshot: Snapshot) -> dict[str, list[Entry]]:
    """The log by public ids of jobs."""
    return {f"job_{id}": [Entry.of(row) for row in rows] for id, rows in snapshot.logs.items()}


def _of_job(snapshot: Snapshot, job: Row, roles: Mapping[str, Role]) -> Iterator[str]:
    rows = snapshot.logs.get(job["id"])
    if not rows:
        yield "there is no log"
        return
    attempts = snapshot.attempts.get(job["id"], [])
    told = Told()
    entries = [Entry.of(row) for row in rows]
    for before, entry, after in history(entries):
        yield from _step(before, entry, after, job, roles)
        told = after
    yield from _differences(finished(told), columns(job, attempts))
    yield from _one_live_attempt(job, attempts)
    yield from _queued(job, snapshot.queue.get(job["id"]))
    yield from _signed_off(snapshot, job, attempts, entries)
    yield from _counted(job, attempts)
    yield from _began_after(snapshot, job, attempts, entries)


def _differences(told: Told, there: Told) -> Iterator[str]:
    """The row against the fold of the log."""
    for name, value in vars(there).items():
        said = getattr(told, name)
        if name != "response" and said is not UNKNOWN and said != value:
            yield f"{name} is {value!r}, but the log says {said!r}"


def _step(
    before: Told, entry: Entry, after: Told, job: Row, roles: Mapping[str, Role]
) -> Iterator[str]:
    """One entry of the log: a legal move by who may, one version on."""
    where = f"entry {entry.seq} {entry.type} {entry.event or ''}"
    if entry.event is None:
        return
    if entry.status is not after.status:
        yield f"{where} says {entry.status}, after it the job is {after.status}"
    if entry.payload["version"] != before.version + 1:
        yield f"{where} makes version {entry.payload['version']} of {before.version}"
    if entry.payload["from"] != before.status:
        yield f"{where} is from {entry.payload['from']}, but the job was {before.status}"
    if entry.event != CREATE:
        yield from (f"{where}: {why}" for why in _illegal(before, entry, after, job, roles))


def _illegal(
    before: Told, entry: Entry, after: Told, job: Row, roles: Mapping[str, Role]
) -> Iterator[str]:
    rule = RULES[Event(entry.event or "")]
    if before.status not in rule.sources:
        yield f"not allowed from {before.status}"
    targets = {rule.target} if isinstance(rule.target, JobStatus) else _computed(before, entry)
    if after.status not in targets:
        yield f"leads to {after.status} instead of {targets}"
    if not _parties(entry, job, roles) & rule.by:
        yield f"not allowed to {entry.actor_kind} {entry.actor}"


def _computed(before: Told, entry: Entry) -> set[JobStatus | None]:
    if entry.event == Event.REOPEN:
        return {JobStatus.ASSIGNED if before.agent else JobStatus.PENDING}
    return {before.status}


def _parties(entry: Entry, job: Row, roles: Mapping[str, Role]) -> set[Party]:
    if entry.actor_kind == ActorKind.SYSTEM:
        return {Party.SYSTEM}
    role = roles.get(entry.actor or "")
    found: set[Party] = {Party.ADMIN} if role is Role.ADMIN else set()
    if role in (Role.ADMIN, Role.MEMBER) and job["created_by_id"] == entry.actor:
        found.add(Party.OWNER)
    return found


def _one_live_attempt(job: Row, attempts: Iterable[Row]) -> Iterator[str]:
    """The last one, and only while the job is in execution."""
    numbers = [each["number"] for each in attempts]
    if numbers != list(range(1, job["attempt_count"] + 1)):
        yield f"has {job['attempt_count']} attempts: {numbers}"
    live = [each["number"] for each in attempts if each["state"] in LIVE]
    due = [job["attempt_count"]] if job["status"] == JobStatus.IN_EXECUTION else []
    if live != due:
        yield f"is {job['status']} with live attempts {live}"


def _queued(job: Row, queued: Row | None) -> Iterator[str]:
    """In the queue exactly while there is something to run."""
    runs = job["status"] == JobStatus.IN_EXECUTION and job["phase"] != JobPhase.AWAITING_REVIEW
    if runs != (queued is not None):
        yield f"is {job['status']} {job['phase']}, and in the queue: {queued}"
    elif queued is not None:
        given = (queued["number"], queued["agent_id"], queued["owner_id"])
        wanted = (job["attempt_count"], job["agent_id"], job["created_by_id"])
        if given != wanted:
            yield f"is queued as {given} instead of {wanted}"


def _signed_off(
    snapshot: Snapshot, job: Row, attempts: list[Row], entries: list[Entry]
) -> Iterator[str]:
    """Completed only by a passing verdict, a review or force, and by the last of these."""
    mode = job["completion_mode"]
    if (job["status"] == JobStatus.COMPLETED) != (mode is not None):
        yield f"is {job['status']} with completion mode {mode}"
    if mode == CompletionMode.VALIDATED:
        yield from _validated(snapshot, job, attempts[-1])
    elif mode == CompletionMode.REVIEWED:
        reviews = [e for e in entries if e.type is JobLogType.REVIEW]
        of_attempt = [e.tells("outcome") for e in reviews if e.attempt == attempts[-1]["id"]]
        if of_attempt != [VerdictOutcome.PASS]:
            yield f"is reviewed with {of_attempt}"
    elif mode == CompletionMode.FORCED:
        last = [e.event for e in entries if e.event and e.type is JobLogType.STATUS_CHANGE][-1]
        if last != Event.FORCE_COMPLETE:
            yield f"is forced by {last}"


def _validated(snapshot: Snapshot, job: Row, attempt: Row) -> Iterator[str]:
    """By a verdict PASS on that very attempt, whose answer is good in truth."""
    verdicts = [v for v in snapshot.verdicts.values() if v["attempt_id"] == attempt["id"]]
    if [v["outcome"] for v in verdicts] != [VerdictOutcome.PASS]:
        yield f"is validated by {[v['outcome'] for v in verdicts]}"
    if job["result_json"] != attempt["response_json"]:
        yield "has a result that is not its attempt's response"
    criteria = snapshot.criteria[job["id"], attempt["criteria_version"]]
    if any(v["criteria_set_id"] != criteria["id"] for v in verdicts):
        yield "was judged by other criteria than the attempt's"
    items, result = jsontext.loads(criteria["items_json"]), jsontext.loads(job["result_json"])
    if not holds_criteria(items, result):
        yield f"is validated, but {result} does not meet {items}"


def _counted(job: Row, attempts: list[Row]) -> Iterator[str]:
    """A job took what its attempts took, and what is set aside for them."""
    for name, parts in SUMS.items():
        total = sum(attempt[part] for attempt in attempts for part in parts)
        if job[name] != total:
            yield f"counts {name} {job[name]}, its attempts {total}"


SUMS = {
    "input_tokens": ("input_tokens", "reserved_tokens"),
    "output_tokens": ("output_tokens",),
    "cost_micros": ("cost_micros", "reserved_micros"),
}


def _began_after(
    snapshot: Snapshot, job: Row, attempts: list[Row], entries: list[Entry]
) -> Iterator[str]:
    """No execution began before the jobs that it depends on had ended once."""
    enough = {JobStatus.COMPLETED}
    if job["dependency_policy"] == DependencyPolicy.IGNORE:
        enough.add(JobStatus.CANCELLED)
    began = {e.attempt: e.seq for e in entries if e.event == Event.EXECUTE}
    created = {attempt["id"]: attempt["created_at"] for attempt in attempts}
    for link in snapshot.dependencies.get(job["id"], []):
        ends = [
            row["seq"] for row in snapshot.logs[link["depends_on_id"]] if row["status"] in enough
        ]
        for attempt, seq in began.items():
            if created[attempt] > link["created_at"] and not (ends and ends[0] < seq):
                yield f"entry {seq} began before job_{link['depends_on_id']} had ended"


def _circles(snapshot: Snapshot) -> Iterator[str]:
    """No job waits for itself, in however many steps."""
    left = {id: {link["depends_on_id"] for link in links} for id, links in _links(snapshot)}
    while free := [id for id, wanted in left.items() if not wanted & left.keys()]:
        for id in free:
            del left[id]
    if left:
        yield f"wait for each other: {left}"


def _links(snapshot: Snapshot) -> Iterable[tuple[str, list[Row]]]:
    return snapshot.dependencies.items()


def waiting(snapshot: Snapshot, now: datetime) -> list[str]:
    """Jobs that something should have become of by now, if the servers had had the time."""
    return [f"job_{id}" for id, job in snapshot.jobs.items() if _is_due(snapshot, job, now)]


def _is_due(snapshot: Snapshot, job: Row, now: datetime) -> bool:
    if job["id"] in snapshot.queue:
        return True
    if job["status"] in (JobStatus.COMPLETED, JobStatus.CANCELLED):
        return False
    if (expires_at := instant(job["expires_at"])) and expires_at < now:
        return True
    run_at = instant(job["run_at"])
    return (
        bool(job["armed"])
        and job["status"] in (JobStatus.ASSIGNED, JobStatus.RESUBMISSION_REQUIRED)
        and not (run_at and run_at > now)
        and all(_is_met(snapshot, job, link) for link in snapshot.dependencies.get(job["id"], []))
    )


def _is_met(snapshot: Snapshot, job: Row, link: Row) -> bool:
    status = snapshot.jobs[link["depends_on_id"]]["status"]
    ignored = job["dependency_policy"] == DependencyPolicy.IGNORE
    return status == JobStatus.COMPLETED or (ignored and status == JobStatus.CANCELLED)


def _limits(snapshot: Snapshot) -> Iterator[str]:
    """An agent has no more under way than it takes."""
    at_work = (QueueState.RUNNING, QueueState.AWAITING)
    running = Counter(q["agent_id"] for q in snapshot.queue.values() if q["state"] in at_work)
    for agent, count in running.items():
        most = snapshot.agents[agent]["max_concurrency"]
        if count > most:
            yield f"agent_{agent} has {count} under way, of at most {most}"


def leaks(snapshot: Snapshot, secrets: Iterable[str]) -> list[str]:
    """Secrets where people and agents read."""
    tables = (
        snapshot.jobs.values(),
        (row for rows in snapshot.logs.values() for row in rows),
        (row for rows in snapshot.attempts.values() for row in rows),
        snapshot.verdicts.values(),
    )
    return [
        f"{secret} in {name} of {row['job_id'] if 'job_id' in row else row['id']}"
        for secret in secrets
        for rows in tables
        for row in rows
        for name, value in row.items()
        if isinstance(value, str) and secret in value
    ]
