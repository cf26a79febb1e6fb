"""Filters of webhooks: the same jobs as in lists, and each filter's SQL is made once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models import Job
from services import agents, decisions, filters
from services.agents import AgentAvailability
from services.decisions import CancelJob
from services.filters import JobFilter
from services.runtime import Runtime
from services.values import public_id
from services.webhooks import matching
from services.webhooks.making import Maker
from services.webhooks.matching import Where
from signoff.wiring import runtime
from tests.support.hooks import Hook, make_hook
from tests.support.making import ADMIN, MEMBER, NOWHERE, make_agent, make_job
from tests.support.running import settings_for

WEEKS = {"created_at": {"gt": "-P7D", "lt": "2126-01-01T00:00:00Z"}, "due_at": {"lte": "PT5M"}}


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> Any:
    """Nobody works but the test."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(
        settings, allow_private_agents=True, allow_private_webhooks=True, work=False
    ) as rt:
        yield rt


def where(given: dict[str, Any]) -> Where:
    text = filters.stored(JobFilter.model_validate(given))
    return Where(text, filters.restored(text))


async def a_variety(rt: Runtime) -> list[Job]:
    alpha = await make_agent(rt)
    await agents.set_availability(rt, ADMIN, alpha.id, AgentAvailability.PAUSED)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    jobs = [
        await make_job(rt, name="Plain", tags=["x", "y"]),
        await make_job(rt, await make_agent(rt), name="100%_\\", tags=["y"], priority=2),
        await make_job(rt, name="plainer $1 ? 'so'", due_at=soon, viewer=ADMIN),
    ]
    waits: dict[str, Any] = {"depends_on": [{"job_id": jobs[0].id}], "tags": ["z"]}
    jobs.append(await make_job(rt, name="Waits", **waits))
    gone = await make_job(rt, name="Gone", tags=["x"])
    return [*jobs, await decisions.cancel(rt, ADMIN, CancelJob(id=gone.id))]


def every_kind(jobs: list[Job]) -> list[dict[str, Any]]:
    """A filter for each comparator, and some of several."""
    one, agent = public_id("job", jobs[0].id), public_id("agent", jobs[1].agent_id or jobs[1].id)
    kinds: list[dict[str, Any]] = [
        {"id": {"in_": [one]}},
        {"id": {"nin": [one]}},
        {"status": {"in_": ["PENDING", "ASSIGNED"]}},
        {"phase": {"eq": "QUEUED"}},
        {"priority": {"gte": "HIGH"}},
        {"name": {"contains": "PLAIN"}},
        {"name": {"starts_with": "plain", "ignore_case": False}},
        {"name": {"in_": ["100%_\\", "plainer $1 ? 'so'"]}},
        {"agent": {"is_null": True}},
        {"agent": {"id": {"eq": agent}, "availability": {"in_": ["ACTIVE"]}}},
        {"agent": {"name": {"contains": "agent"}}},
        {"created_by": {"eq": MEMBER.id}},
        {"tags": {"any": ["x", "z"]}},
        {"tags": {"all": ["x", "y"]}},
        {"tags": {"none": ["y"]}},
        {"tags": {"is_empty": True}},
        {"blocked": True},
        {"blocked": False},
        {"due_at": {"lt": "P1D"}},
        {"updated_at": {"gte": "-PT1H"}, "archived": {"eq": False}},
        WEEKS,
        {"and_": []},
        {"or_": []},
        {"or_": [{"tags": {"any": ["z"]}}, {"name": {"eq": "gone"}}], "not_": {"blocked": True}},
    ]
    return [*kinds, *({"not_": kind} for kind in kinds)]


async def test_a_filter_finds_for_a_webhook_what_it_finds_in_a_list(idle: Runtime) -> None:
    jobs = await a_variety(idle)
    wheres = [where(kind) for kind in every_kind(jobs)]
    told: set[frozenset[Any]] = set()
    for asked in (jobs, jobs[2:], jobs[:1], []):
        ids = {job.id for job in jobs} & {job.id for job in asked}
        for _ in range(2):
            found = await matching.jobs_of(wheres, ids)
            for each in wheres:
                listed = Job.filter(filters.asked(each.filter), id__in=ids)
                assert found[each.text] == {job.id async for job in listed}, each.text
            told |= {frozenset(each or ()) for each in found.values()}
    assert len(told) > 10


def test_times_that_go_with_the_clock_do_so_and_others_stay(idle: Runtime) -> None:
    asked, now = where(WEEKS), datetime.now(UTC)
    for passed in (timedelta(), timedelta(seconds=1), timedelta(days=400)):
        fresh = where(WEEKS).query(now + passed)
        assert asked.query(now + passed) == fresh
        assert fresh
        assert set(fresh[1]) == {
            now + passed - timedelta(days=7),
            datetime(2126, 1, 1, tzinfo=UTC),
            now + passed + timedelta(minutes=5),
        }


def test_a_time_that_leaves_the_calendar_is_none(idle: Runtime) -> None:
    now = datetime.now(UTC)
    last = datetime.max.replace(tzinfo=UTC) - now - timedelta(hours=30)
    weeks, days = divmod(last.days, 7)
    asked = where({"due_at": {"lt": f"P{weeks}W{days}DT{last.seconds}S"}})
    assert asked.query(now)
    assert asked.query(now + timedelta(days=3)) is None


async def test_the_sql_of_a_filter_is_made_once_for_all_who_have_it(
    idle: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[JobFilter] = []
    make = matching._made  # pyright: ignore[reportPrivateUsage]

    def counted(where: JobFilter, now: datetime) -> Any:
        made.append(where)
        return make(where, now)

    monkeypatch.setattr(matching, "_made", counted)
    maker = Maker(idle, kept=timedelta(days=30))
    hooks = [await make_hook(idle, NOWHERE, where={"name": {"eq": name}}) for name in "aab"]
    for lap in range(1, 4):
        for name in "ab":
            await make_job(idle, name=name)
        while await maker.look(await idle.events.complete_until()):
            pass
        assert [len(await hook.deliveries()) for hook in hooks] == [lap] * 3
        assert len(made) == 2
    last: Hook = await make_hook(idle, NOWHERE, where={"name": {"eq": "b"}})
    await make_job(idle, name="b")
    while await maker.look(await idle.events.complete_until()):
        pass
    assert len(await last.deliveries()) == 1
    assert len(made) == 2
