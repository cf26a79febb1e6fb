"""The invariants find what is not so: each lie about true rows is told of."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest

from models import Role, VerdictOutcome
from services import decisions
from services.decisions import ForceComplete
from services.rules import Event
from services.runtime import Runtime
from tests.fakes.agents import fake_agent
from tests.simulation import invariants, snapshot
from tests.simulation.ledger import Ledger, Outcome, Request, either
from tests.simulation.snapshot import Row, Snapshot
from tests.support.making import (
    ADMIN,
    execute,
    holds,
    make_agent,
    make_job,
    says_no,
    says_ok,
    stalls,
)

ROLES = {"mia": Role.MEMBER, "local": Role.ADMIN}
Lie = Callable[[Snapshot, str], object]


async def a_history(rt: Runtime, database_url: str) -> dict[str, Any]:
    """Jobs that were done, sent back and forced, and one under way; with all rows."""
    async with fake_agent(says_ok) as good, fake_agent(says_no) as bad, fake_agent(stalls) as slow:
        done = await execute(rt, await make_job(rt, await make_agent(rt, good.url)))
        failed = await execute(rt, await make_job(rt, await make_agent(rt, bad.url)))
        forced = ForceComplete.model_validate({"id": failed.id, "result": 1, "reason": "So."})
        await decisions.force_complete(rt, ADMIN, forced)
        under_way = await make_job(rt, await make_agent(rt, slow.url))
        await execute(rt, under_way, wait_seconds=0)
        await holds(lambda: len(slow.received) == 1)
        rows = await snapshot.take(database_url)
    return {"rows": rows, "done": done.id.hex, "forced": failed.id.hex, "runs": under_way.id.hex}


def entry(rows: Snapshot, job: str, event: str) -> Row:
    return next(row for row in rows.logs[job] if f'"event":"{event}"' in row["payload_json"])


def rename_event(rows: Snapshot, job: str) -> None:
    row = entry(rows, job, "FORCE_COMPLETE")
    row["payload_json"] = row["payload_json"].replace('"FORCE_COMPLETE"', '"PASS"')


def change_actor(rows: Snapshot, job: str) -> None:
    entry(rows, job, "FORCE_COMPLETE")["actor_id"] = "mia"


def drop_from_queue(rows: Snapshot, job: str) -> None:
    cast("dict[str, Row]", rows.queue).pop(job)


def lose(rows: Snapshot, job: str, type: str) -> None:
    rows.logs[job][:] = [row for row in rows.logs[job] if row["type"] != type]


def set_verdict(rows: Snapshot, job: str, outcome: VerdictOutcome) -> None:
    for verdict in rows.verdicts.values():
        if verdict["job_id"] == job:
            verdict["outcome"] = outcome.value


def spoil(rows: Snapshot, job: str) -> None:
    """The answer was wrong, and passed all the same."""
    for row in (rows.jobs[job], rows.attempts[job][-1]):
        row["result_json"] = row["response_json"] = '{"answer":"no"}'


LIES: dict[str, tuple[str, Lie, str]] = {
    "another status": (
        "done",
        lambda rows, job: rows.jobs[job].update(status="CANCELLED", completion_mode=None),
        "status is",
    ),
    "another phase": ("runs", lambda rows, job: rows.jobs[job].update(phase="QUEUED"), "phase is"),
    "another result": (
        "forced",
        lambda rows, job: rows.jobs[job].update(result_json="2"),
        "result is 2, but the log says 1",
    ),
    "another name": ("done", lambda rows, job: rows.jobs[job].update(name="X"), "changes is"),
    "a version more": (
        "done",
        lambda rows, job: rows.jobs[job].update(version=99),
        "version is 99",
    ),
    "a lost step": ("done", lambda rows, job: lose(rows, job, "AGENT_REQUEST"), "makes version"),
    "a lost move": ("done", lambda rows, job: lose(rows, job, "STATUS_CHANGE"), "version is"),
    "an illegal move": (
        "forced",
        rename_event,
        "not allowed from RESUBMISSION_REQUIRED",
    ),
    "by somebody who may not": (
        "forced",
        change_actor,
        "not allowed to",
    ),
    "two live attempts": (
        "runs",
        lambda rows, job: rows.attempts[job].append(rows.attempts[job][0] | {"number": 2}),
        "has 1 attempts",
    ),
    "a live attempt of a done job": (
        "done",
        lambda rows, job: rows.attempts[job][0].update(state="RUNNING"),
        "with live attempts [1]",
    ),
    "nobody runs it": (
        "runs",
        drop_from_queue,
        "in the queue: None",
    ),
    "too many at once": (
        "runs",
        lambda rows, job: rows.agents[rows.jobs[job]["agent_id"]].update(max_concurrency=0),
        "under way, of at most 0",
    ),
    "no passing verdict": (
        "done",
        lambda rows, job: set_verdict(rows, job, VerdictOutcome.FAIL),
        "is validated by ['FAIL']",
    ),
    "a wrong answer": ("done", spoil, "does not meet"),
    "tokens from nowhere": (
        "done",
        lambda rows, job: rows.jobs[job].update(input_tokens=5),
        "counts input_tokens 5",
    ),
}


async def test_every_lie_about_true_rows_is_told_of(rt: Runtime, database_url: str) -> None:
    history = await a_history(rt, database_url)
    assert invariants.problems(history["rows"], ROLES) == []
    for name, (which, lie, told) in LIES.items():
        rows = deepcopy(history["rows"])
        lie(rows, history[which])
        problems = invariants.problems(rows, ROLES)
        assert any(told in problem for problem in problems), (name, problems)


@pytest.mark.parametrize(
    ("outcome", "event", "told"),
    [
        (Outcome.ACKED, Event.CANCEL, "there are 0, of 1 answered and 1 asked for"),
        (Outcome.REFUSED, Event.FORCE_COMPLETE, "there are 1, of 0 answered and 0 asked for"),
    ],
)
async def test_lost_and_unasked_effects_are_told_of(
    rt: Runtime, database_url: str, outcome: Outcome, event: Event, told: str
) -> None:
    history = await a_history(rt, database_url)
    job = f"job_{history['forced']}"
    logs = {job: invariants.entries_of(history["rows"])[job]}
    known = Request("mia", "executeJob", "1", job, (either(Event.EXECUTE),), None, 1, Outcome.ACKED)
    force = either(Event.FORCE_COMPLETE)
    forced = Request("local", "forceComplete", "2", job, (force,), "So.", 1, Outcome.ACKED)
    ledger = Ledger([known, forced])
    assert ledger.problems(logs, [], ledger.acked()) == []
    if event is Event.CANCEL:
        ledger.requests.append(
            Request("mia", "cancelJob", "3", job, (either(event),), None, 1, outcome)
        )
    else:
        forced.outcome = outcome
    assert any(told in problem for problem in ledger.problems(logs, [], ledger.acked()))
