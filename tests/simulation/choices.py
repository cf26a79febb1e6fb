"""What a step chooses: who, which job, which work, which plan. All of it by the step's dice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from models import JobStatus, Role
from tests.simulation.actors import GOOD, WAYS
from tests.simulation.world import USERS, Json, Known, Step, World

ADMINS = [name for name, role in USERS.items() if role is Role.ADMIN]
MAKERS = [name for name, role in USERS.items() if role is not Role.VIEWER]
RECENT = 12
"""Jobs that are dealt with most, so that people get in each other's way."""


def any_job(world: World, step: Step, *statuses: JobStatus) -> Known | None:
    """Mostly a job that was of such a status when it was last heard of, mostly a recent one."""
    known = list(world.jobs.values())
    fit = [job for job in known if job.status in statuses]
    chosen = fit if fit and step.chance(0.85) else known
    if step.chance(0.7):
        chosen = chosen[-RECENT:]
    return step.one(chosen) if chosen else None


def somebody(step: Step, job: Known) -> str:
    """Who may, mostly."""
    roll = step.dice.random()
    if roll < 0.55:
        return job.owner
    return step.one(ADMINS) if roll < 0.9 else step.one(list(USERS))


def expected(step: Step, job: Known) -> Json:
    """Mostly no version, else the last one known, or one that never was."""
    roll = step.dice.random()
    if roll < 0.75:
        return {}
    return {"expectedVersion": job.version if roll < 0.92 else job.version + 7}


def key(step: Step) -> Json:
    return {"idempotencyKey": f"key of {step.mark}"} if step.chance(0.4) else {}


def agent(world: World, step: Step) -> str:
    """Seldom the one that is nowhere."""
    return world.agents["nowhere" if step.chance(0.05) else step.one(list(world.cast.agents))]


def input_of(step: Step) -> Json:
    """What the agent is to do: mostly its work, sooner or later."""
    ways = [step.one(GOOD if step.chance(0.5) else list(WAYS)) for _ in range(3)]
    return {"n": step.number, "script": ways[: step.dice.randint(1, 3)]}


def criteria_of(step: Step, input: Json) -> Json:
    value = f"right-{input['n']}"
    exact = {
        "text": "It is right.",
        "kind": "EXACT",
        "config": {"value": value, "pointer": "/answer"},
    }
    contains = exact | {"kind": "CONTAINS", "config": {"value": "right", "pointer": "/answer"}}
    judged = {"text": step.one(["It is polite.", "It must fail.", "It is unclear."])}
    items = [step.one([exact, exact, contains])]
    return {"items": [*items, judged] if step.chance(0.3) else items}


def policy(world: World, step: Step) -> Json:
    given: Json = {
        "maxAttempts": step.dice.randint(1, 4),
        "initialSeconds": step.one([0, 0.02, 0.2]),
        "maxSeconds": 0.3,
        "retryOnVerdictFail": step.chance(0.5),
    }
    if step.chance(0.3):
        others = step.dice.sample(list(world.agents.values()), 2)
        given |= {"fallbackAgentIds": others, "reassignAfter": step.dice.randint(1, 2)}
    return given


def plan(step: Step) -> Json:
    """Mostly none; else times that come within seconds."""
    given: Json = {}
    if step.chance(0.35):
        given["autoExecute"] = True
    if step.chance(0.15):
        given["runAt"] = soon(step, 0, 1)
    if step.chance(0.1):
        given["expiresAt"] = soon(step, 1, 4)
    return given


def soon(step: Step, least: float, most: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=step.dice.uniform(least, most))).isoformat()


def needs(world: World, step: Step, user: str) -> Json:
    """Other jobs of the same user that must be done first."""
    own = [job for job in world.jobs.values() if job.owner == user][-RECENT:]
    if not own or not step.chance(0.15):
        return {}
    chosen = step.dice.sample(own, min(len(own), step.dice.randint(1, 2)))
    return {
        "dependsOn": [{"jobId": job.id} for job in chosen],
        "onDependencyCancelled": step.one(["BLOCK", "CANCEL", "IGNORE"]),
    }
