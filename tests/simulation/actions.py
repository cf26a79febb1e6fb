"""What users do. `ACTIONS` says how often; each is one step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from models import JobStatus, Role
from services.rules import Event
from tests.simulation.actors import JUDGE_TROUBLE
from tests.simulation.choices import (
    ADMINS,
    MAKERS,
    agent,
    any_job,
    criteria_of,
    expected,
    input_of,
    key,
    needs,
    plan,
    policy,
    somebody,
)
from tests.simulation.ledger import Events, Request, either
from tests.simulation.world import USERS, Broken, Json, Known, Step, World

Action = Callable[[World, Step], Awaitable[None]]

PENDING, ASSIGNED = JobStatus.PENDING, JobStatus.ASSIGNED
IN_EXECUTION, RESUB = JobStatus.IN_EXECUTION, JobStatus.RESUBMISSION_REQUIRED
COMPLETED, CANCELLED = JobStatus.COMPLETED, JobStatus.CANCELLED
START = either(Event.EXECUTE, Event.ARM)


# Asking


async def change(
    world: World,
    step: Step,
    name: str,
    job: Known,
    variables: Json,
    *effects: Events,
    user: str | None = None,
    mark: str | None = None,
    marked: int = 1,
) -> None:
    """One mutation of a job; one with a key may be sent twice at once."""
    user = user or somebody(step, job)
    given = variables.get("input", {}).get("idempotencyKey")
    group = f"{user} {given} {variables}" if given else f"{step.mark} {name} {user}"
    request = Request(user, name, group, job.id, effects, mark, marked)
    await send(world, step, variables, request)


async def send(world: World, step: Step, variables: Json, request: Request) -> None:
    times = 1
    if variables.get("input", {}).get("idempotencyKey"):
        world.keyed.append((request.user, request.mutation, variables, request))
        times = step.dice.choice([1, 1, 2, 3])
    await asyncio.gather(*(_once(world, step, variables, request) for _ in range(times)))


async def _once(world: World, step: Step, variables: Json, request: Request) -> None:
    r = request
    mine = Request(r.user, r.mutation, r.group, r.job, r.effects, r.mark, r.marked)
    await world.mutate(step, mine.user, mine.mutation, variables, mine)


async def create(world: World, step: Step) -> None:
    user = step.one(MAKERS if step.chance(0.97) else list(USERS))
    input = input_of(step)
    given: Json = {
        "name": step.mark,
        "acceptanceCriteria": criteria_of(step, input),
        "input": input,
        "priority": step.one(["LOW", "NORMAL", "HIGH", "URGENT"]),
        "tags": ["a", "b"][: step.dice.randint(0, 2)],
    } | key(step)
    if step.chance(0.85):
        given["assign"] = {"agentId": agent(world, step)}
    if step.chance(0.4):
        given["retryPolicy"] = policy(world, step)
    if step.chance(0.15):
        given["budget"] = step.one([{"maxTokens": 40}, {"maxTokens": 5000}, {"maxWallSeconds": 1}])
    given |= plan(step) | needs(world, step, user)
    variables = {"input": given}
    request = Request(user, "createJob", f"{user} {given}", mark=step.mark)
    await send(world, step, variables, request)


async def execute(world: World, step: Step) -> None:
    if job := any_job(world, step, ASSIGNED, RESUB):
        given = {"id": job.id} | expected(step, job) | key(step)
        if step.chance(0.15):
            given["waitSeconds"] = 1
        if step.chance(0.2):
            given["whenReady"] = True
        elif step.chance(0.1):
            given["feedback"] = "Do better."
        await change(world, step, "executeJob", job, {"input": given}, START)


async def update(world: World, step: Step) -> None:
    if job := any_job(world, step, PENDING, ASSIGNED, RESUB):
        given: Json = {"id": job.id, "name": step.mark} | expected(step, job)
        input = input_of(step)
        if step.chance(0.5):
            given |= {"input": input, "acceptanceCriteria": criteria_of(step, input)}
        if step.chance(0.5):
            given["priority"] = step.one(["LOW", "URGENT"])
        given |= plan(step)
        if needed := needs(world, step, job.owner):
            given["dependsOn"] = needed["dependsOn"]
        effect = either(Event.UPDATE)
        await change(world, step, "updateJob", job, {"input": given}, effect, mark=step.mark)


async def assign(world: World, step: Step) -> None:
    if job := any_job(world, step, PENDING):
        given: Json = {"id": job.id, "assign": {"agentId": agent(world, step)}}
        given |= expected(step, job)
        await change(world, step, "assignJob", job, {"input": given}, either(Event.ASSIGN))


async def unassign(world: World, step: Step) -> None:
    if job := any_job(world, step, ASSIGNED, RESUB):
        given = {"id": job.id, "reason": step.mark} | expected(step, job)
        effect = either(Event.UNASSIGN)
        await change(world, step, "unassignJob", job, given, effect, mark=step.mark)


async def reassign(world: World, step: Step) -> None:
    if job := any_job(world, step, ASSIGNED, RESUB, IN_EXECUTION):
        given: Json = {
            "id": job.id,
            "assign": {"agentId": agent(world, step)},
            "reason": step.mark,
            "interruptRunning": step.chance(0.5),
        }
        given |= expected(step, job) | key(step)
        effect = either(Event.REASSIGN, Event.INTERRUPT)
        await change(world, step, "reassignJob", job, {"input": given}, effect, mark=step.mark)


async def force(world: World, step: Step) -> None:
    if job := any_job(world, step, IN_EXECUTION, RESUB):
        result = {"by": "hand", "of": "x" * (90_000 if step.chance(0.1) else 10)}
        given: Json = {"id": job.id, "reason": step.mark, "result": result}
        given |= expected(step, job) | key(step)
        effect, user = either(Event.FORCE_COMPLETE), step.one(ADMINS)
        await change(
            world, step, "forceComplete", job, {"input": given}, effect, user=user, mark=step.mark
        )


async def resubmit(world: World, step: Step) -> None:
    if job := any_job(world, step, COMPLETED, IN_EXECUTION):
        again = step.chance(0.5)
        given = {"id": job.id, "reason": step.mark, "execute": again} | expected(step, job)
        effects = [either(Event.RESUBMIT), START][: 1 + again]
        user = step.one(ADMINS)
        await change(
            world, step, "resubmitJob", job, {"input": given}, *effects, user=user, mark=step.mark
        )


async def cancel(world: World, step: Step) -> None:
    if job := any_job(world, step, PENDING, ASSIGNED, IN_EXECUTION, RESUB):
        given = {"id": job.id, "reason": step.mark} | expected(step, job)
        effect = either(Event.CANCEL)
        await change(world, step, "cancelJob", job, {"input": given}, effect, mark=step.mark)


async def reopen(world: World, step: Step) -> None:
    if job := any_job(world, step, CANCELLED):
        given = {"id": job.id, "reason": step.mark} | expected(step, job)
        await change(world, step, "reopenJob", job, given, either(Event.REOPEN), mark=step.mark)


async def archive(world: World, step: Step) -> None:
    if job := any_job(world, step, COMPLETED, CANCELLED):
        await change(world, step, "archiveJob", job, {"id": job.id}, either(Event.ARCHIVE))


async def unarchive(world: World, step: Step) -> None:
    if job := any_job(world, step, COMPLETED, CANCELLED):
        await change(world, step, "unarchiveJob", job, {"id": job.id}, either(Event.UNARCHIVE))


async def note(world: World, step: Step) -> None:
    if job := any_job(world, step):
        await change(
            world, step, "addJobNote", job, {"id": job.id, "message": step.mark}, mark=step.mark
        )


WAITING = """
query { jobs(first: 5, where: {phase: {eq: AWAITING_REVIEW}}) {
  nodes { id currentAttempt { id } } } }"""


async def review(world: World, step: Step) -> None:
    """Two admins may decide the same attempt at the same time."""
    data = await world.ask(step, "ada", WAITING, {})
    found: list[Json] = data["jobs"]["nodes"] if data else []
    if not found:
        return
    chosen = step.one(found)
    job = world.jobs.get(chosen["id"])
    if job is None:
        return
    outcome = step.one(["PASS", "FAIL"])
    given = {
        "attemptId": chosen["currentAttempt"]["id"],
        "outcome": outcome,
        "reason": step.mark,
    }
    effect = either(Event.APPROVE, Event.REJECT)
    users = ADMINS if step.chance(0.2) else [step.one(ADMINS)]
    await asyncio.gather(
        *(
            change(
                world,
                step,
                "reviewAttempt",
                job,
                {"input": given | {"reason": f"{step.mark} {user}"}},
                effect,
                user=user,
                mark=f"{step.mark} {user}",
                marked=2,
            )
            for user in users
        )
    )


async def availability(world: World, step: Step) -> None:
    """Out of work for a while, and back."""
    chosen = step.one(list(world.agents.values()))
    state = step.one(["PAUSED", "DISABLED", "ACTIVE"])
    await world.set_availability(step, step.one(ADMINS), chosen, state)
    await asyncio.sleep(step.dice.random())
    await world.activate(chosen)


# Getting in each other's way


async def burst(world: World, step: Step) -> None:
    """The same job, several at once."""
    rivals: Sequence[Action] = (execute, execute, cancel, update, reassign, force, resubmit)
    job = any_job(world, step, ASSIGNED, RESUB, IN_EXECUTION)
    if job is None:
        return
    alone = replace(world, jobs={job.id: job})
    parts = [step.part(number) for number in range(step.dice.randint(2, 8))]
    await asyncio.gather(*(step.one(rivals)(alone, part) for part in parts))


async def repeat(world: World, step: Step) -> None:
    """The same request with the same key once more, as after a lost answer."""
    if world.keyed:
        _, _, variables, request = step.one(list(world.keyed))
        await _once(world, step, variables, request)


async def misuse(world: World, step: Step) -> None:
    """The key of an answered request with other content is refused."""
    acked = world.ledger.acked()
    known = [each for each in world.keyed if each[3].group in acked]
    if not known:
        return
    user, name, variables, first = step.one(known)
    other = {"input": variables["input"] | {"expectedVersion": 1_000_000}}
    if name == "createJob":
        other = {"input": variables["input"] | {"description": step.mark}}
    request = Request(user, name, f"misuse {step.mark}", first.job, first.effects)
    if await world.mutate(step, user, name, other, request):
        raise Broken([f"took the key of another request: {other}"])


OWN = (
    "{ jobs(first: 20) { nodes { id version createdBy { id } logs(first: 3) { nodes { id } } } } }"
)


async def read(world: World, step: Step) -> None:
    """A member sees own jobs alone."""
    user = step.one(list(USERS))
    data = await world.ask(step, user, OWN, {})
    if data and USERS[user] is Role.MEMBER:
        foreign = [job for job in data["jobs"]["nodes"] if job["createdBy"]["id"] != user]
        if foreign:
            raise Broken([f"{user} sees {foreign}"])


async def trouble_judge(world: World, step: Step) -> None:
    troubles = list(JUDGE_TROUBLE.values())
    world.cast.judge.script.extend(step.one(troubles) for _ in range(step.dice.randint(1, 4)))


ACTIONS: Mapping[Action, float] = {
    create: 16,
    execute: 24,
    update: 6,
    assign: 4,
    unassign: 2,
    reassign: 6,
    force: 3,
    resubmit: 5,
    cancel: 4,
    reopen: 3,
    archive: 3,
    unarchive: 2,
    note: 2,
    review: 6,
    availability: 3,
    burst: 7,
    repeat: 4,
    misuse: 1,
    read: 3,
    trouble_judge: 2,
}
