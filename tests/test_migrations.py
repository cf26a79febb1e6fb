"""Migrating: from nothing, again, from a damaged state, and by several at once."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tortoise import Tortoise, connections
from tortoise.exceptions import IntegrityError
from tortoise.migrations.api import migrate as apply_migrations

from models import (
    Agent,
    AgentGate,
    Attempt,
    DependencyPolicy,
    Job,
    JobLog,
    JobStatus,
    QueueEntry,
    Role,
    Verdict,
    Worker,
)
from models.base import uuid7
from services import keys, verification
from services.runtime import Runtime
from signoff import database
from tests.support.graphql import SDL_FILE
from tests.support.making import make_agent, make_job

TABLES = {
    "agents",
    "api_keys",
    "attempts",
    "criteria_sets",
    "idempotency_keys",
    "job_logs",
    "job_tags",
    "jobs",
    "verdicts",
}
MIGRATE = """
import asyncio, sys
import signoff
from signoff import database
asyncio.run(database.migrate(sys.argv[1]))
"""


async def tables(url: str) -> set[str]:
    query = (
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        if database.is_sqlite(url)
        else "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"
    )
    async with database.connected(url):
        rows = await connections.get("default").execute_query_dict(query)
    return {row["name"] for row in rows}


async def test_an_empty_database_gets_all_tables(empty_database_url: str) -> None:
    await database.migrate(empty_database_url)
    assert await tables(empty_database_url) >= TABLES
    async with database.connected(empty_database_url):
        await keys.create("Ada", Role.ADMIN)
        assert await keys.any_made()


def content(file: Path) -> list[Any]:
    """The tables' definitions and all rows of an SQLite file."""
    with closing(sqlite3.connect(file)) as connection:
        master = connection.execute("SELECT * FROM sqlite_master ORDER BY name").fetchall()
        names = [row[1] for row in master if row[0] == "table" and not row[1].startswith("sqlite_")]
        rows = [connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names]  # noqa: S608
    return [[row[:3] + row[4:] for row in master], list(zip(names, rows, strict=True))]


@pytest.fixture
async def filled(rt: Runtime) -> tuple[Job, Agent]:
    agent = await make_agent(rt)
    job = await make_job(rt, agent, tags=["a", "b"])
    return job, agent


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.usefixtures("filled")
def test_migrating_a_filled_sqlite_file_again_changes_nothing(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "signoff.db"
    before = content(file)
    assert dict(before[1])["jobs"]
    migrate_apart(database_url)
    assert content(file) == before


@pytest.mark.usefixtures("filled")
async def test_migrating_a_filled_database_again_keeps_every_row(database_url: str) -> None:
    before = await Job.all().values(), await Agent.all().values(), await JobLog.all().values()
    migrate_apart(database_url)
    assert (
        await Job.all().values(),
        await Agent.all().values(),
        await JobLog.all().values(),
    ) == before


def migrate_apart(url: str) -> None:
    """In a process of its own, as a second server would."""
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", MIGRATE, url],
        check=True,
        cwd=SDL_FILE.parent,
        timeout=60,
    )


AT = "'2026-01-02 03:04:05+00:00'"
FIRST_VERSION = [
    """INSERT INTO agents (id, created_at, updated_at, name, description, endpoint_url,
        input_schema_json, output_schema_json, timeout_seconds, max_concurrency, idempotent,
        accepts_feedback, availability, signing_secret_sealed, version)
    VALUES ('{agent}', {at}, {at}, 'Ada', '', 'http://127.0.0.1:9/', '{{}}', '{{}}', 60, 10, true,
        false, 'ACTIVE', '', 1)""",
    """INSERT INTO jobs (id, created_at, updated_at, name, description, input_json,
        acceptance_criteria, criteria_version, status, status_reason, status_changed_at, priority,
        attempt_count, version, created_by_kind, created_by_id, created_by_name, agent_id)
    VALUES ('{job}', {at}, {at}, 'Old', '', 'null', 'It is good.', 1, 'RESUBMISSION_REQUIRED',
        'VERDICT_FAILED', {at}, 1, 1, 5, 'API_KEY', 'mia', 'Mia', '{agent}')""",
    """INSERT INTO criteria_sets (id, created_at, version, text, items_json, pass_threshold, job_id)
    VALUES ('{job}', {at}, 1, 'It is good.', '[]', 1, '{job}')""",
    """INSERT INTO attempts (id, created_at, number, state, agent_snapshot_json, feedback_json,
        criteria_version, resumptions, agent_id, job_id)
    VALUES ('{job}', {at}, 1, 'FAILED', '{{}}', '[]', 1, 0, '{agent}', '{job}')""",
    """INSERT INTO verdicts (id, created_at, outcome, summary, results_json, judge_json,
        input_tokens, output_tokens, latency_ms, attempt_id, criteria_set_id, job_id)
    VALUES ('{job}', {at}, 'FAIL', '', '[]', '{{}}', 7, 8, 9, '{job}', '{job}', '{job}')""",
]
"""Rows as the first version wrote them."""


async def test_rows_of_the_first_version_get_the_defaults_of_new_columns(
    empty_database_url: str,
) -> None:
    job_id, agent_id = uuid7(), uuid7()
    config = database.config(empty_database_url, migrating=True)
    try:
        await apply_migrations(config=config, target="models.0001_initial")
        for statement in FIRST_VERSION:
            sql = statement.format(job=job_id, agent=agent_id, at=AT)
            await connections.get("default").execute_script(sql)
    finally:
        await Tortoise.close_connections()
    await database.migrate(empty_database_url)
    async with database.connected(empty_database_url):
        job, agent = await Job.get(id=job_id), await Agent.get(id=agent_id)
        attempt, verdict = await Attempt.get(job_id=job_id), await Verdict.get(job_id=job_id)
    assert (job.name, job.status, job.version) == ("Old", JobStatus.RESUBMISSION_REQUIRED, 5)
    assert (job.armed, job.auto_execute, job.first_attempt) == (False, False, 1)
    assert job.dependency_policy is DependencyPolicy.BLOCK
    assert (job.dependency_count, job.cost_micros, job.expires_at) == (0, 0, None)
    assert (agent.name, agent.idempotent, agent.rate_per_minute) == ("Ada", True, None)
    assert agent.max_wait_seconds == 86_400
    assert (attempt.reserved_tokens, attempt.cost_micros, attempt.idempotency_key) == (0, 0, None)
    assert (verdict.cost_micros, verdict.input_tokens) == (0, 7)


async def test_workers_of_the_release_before_have_the_lease_that_was_the_default(
    empty_database_url: str,
) -> None:
    """Also those that begin beside workers of this one."""
    enter = "INSERT INTO workers (id, created_at, name, seen_at) VALUES ('{id}', {at}, '', {at})"
    config = database.config(empty_database_url, migrating=True)
    try:
        await apply_migrations(config=config, target="models.0007_long_work")
        await connections.get("default").execute_script(enter.format(id=uuid7(), at=AT))
    finally:
        await Tortoise.close_connections()
    await database.migrate(empty_database_url)
    async with database.connected(empty_database_url):
        await connections.get("default").execute_script(enter.format(id=uuid7(), at=AT))
        assert [worker.lease_seconds for worker in await Worker.all()] == [30, 30]


ENTRY = """INSERT INTO job_logs (type, status, message, payload_json, payload_truncated, actor_kind,
        actor_id, actor_name, created_at, job_id, agent_id, attempt_id)
    VALUES ('NOTE', 'PENDING', {message}, '{{}}', {cut}, 'API_KEY', 'mia', 'Mia', {at}, '{job}',
        '{agent}', NULL)"""


async def test_entries_from_before_are_chained_as_they_are(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("models.migrations.0006_audit"), "SLICE", 2)
    agent_id, made = uuid7(), [uuid7() for _ in range(3)]
    config = database.config(empty_database_url, migrating=True)
    told = ("NULL", "false", AT), ("'Grüße'", "true", "'2026-01-02 03:04:05.000600+00:00'")
    try:
        await apply_migrations(config=config, target="models.0002_engine")
        run = connections.get("default").execute_script
        await run(FIRST_VERSION[0].format(agent=agent_id, at=AT))
        for job_id in made:
            new = {"armed": "false", "auto_execute": "false", "dependency_policy": "'BLOCK'"}
            numbers = "agent_attempts dependency_count fallbacks_used first_attempt cost_micros"
            numbers += " judge_cost_micros input_tokens output_tokens"
            new |= dict.fromkeys(numbers.split(), "0")
            sql = FIRST_VERSION[1].replace("agent_id)", f"agent_id, {', '.join(new)})")
            sql = sql.replace("'{agent}')", f"'{{agent}}', {', '.join(new.values())})")
            await run(sql.format(job=job_id, agent=agent_id, at=AT))
        for message, cut, at in [*told, told[0]]:
            for job_id in made[:2]:
                await run(ENTRY.format(job=job_id, agent=agent_id, message=message, cut=cut, at=at))
    finally:
        await Tortoise.close_connections()
    await database.migrate(empty_database_url)
    async with database.connected(empty_database_url):
        found = [log async for log in verification.everywhere({})]
        kept = [job.log_head for job in await Job.all().order_by("id")]
    assert [log.found.checked for log in found] == [0, 3, 3, 0]
    assert [log.found.problem for log in found] == [None] * 4
    assert [log.found.head for log in found[1:]] == kept
    assert len(set(kept)) == 3


QUEUED = """INSERT INTO queue_entries (job_id, number, agent_id, owner_id, priority, state, rank,
        queued_at, lost, failures)
    VALUES ('{job}', 1, '{agent}', '{owner}', {priority}, '{state}', {rank}, {at}, 0, 0)"""


async def test_what_is_queued_keeps_its_order_in_rounds(empty_database_url: str) -> None:
    agents = [uuid7(), uuid7()]
    time = 1_790_000_000_000_000
    queued = [  # owner, priority, state, agent, former rank, rank
        ("mia", 1, "WAITING", 0, time + 3, 2),
        ("mia", 1, "RUNNING", 0, time + 1, 1),
        ("mia", 1, "SLEEPING", 0, time + 9, 3),
        ("olaf", 1, "WAITING", 0, time + 4, 1),
        ("mia", 3, "WAITING", 0, time - 3600, -59),
        ("mia", 2, "SUSPECT", 0, time - 600, -9),
        ("mia", 0, "AWAITING", 0, time + 600, 11),
        ("mia", 1, "WAITING", 1, time + 5, 1),
    ]
    jobs = [uuid7() for _ in queued]
    config = database.config(empty_database_url, migrating=True)
    try:
        await apply_migrations(config=config, target="models.0007_long_work")
        run = connections.get("default").execute_script
        for job, (owner, priority, state, agent, rank, _) in zip(jobs, queued, strict=True):
            given = {"owner": owner, "priority": priority, "state": state, "rank": rank}
            await run(QUEUED.format(job=job, agent=agents[agent], at=AT, **given))
        await run(
            f"INSERT INTO agent_gates (agent_id, failures, opened, rate_at) "  # noqa: S608
            f"VALUES ('{agents[0]}', 2, 0, 7)"
        )
    finally:
        await Tortoise.close_connections()
    await database.migrate(empty_database_url)
    async with database.connected(empty_database_url):
        found = {entry.job_id: entry for entry in await QueueEntry.all()}
        gate = await AgentGate.get(agent_id=agents[0])
    assert [found[job].rank for job in jobs] == [each[-1] for each in queued]
    assert [found[job].state for job in jobs] == [each[2] for each in queued]
    assert (gate.failures, gate.rate_at, gate.round, gate.high_round) == (2, 7, None, None)


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_indexes_that_are_gone_are_made_again(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "signoff.db"
    before = content(file)
    with closing(sqlite3.connect(file)) as connection:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'ix_%'"
            )
        ]
        for name in names:
            connection.execute(f"DROP INDEX {name}")
    assert len(names) > 10
    assert content(file) != before
    await database.migrate(database_url)
    assert content(file) == before


async def test_rows_that_are_referred_to_cannot_be_deleted(
    rt: Runtime, filled: tuple[Job, Agent]
) -> None:
    job, agent = filled
    for rows in (Agent.filter(id=agent.id), Job.filter(id=job.id)):
        with pytest.raises(IntegrityError):
            await rows.delete()
    assert await Agent.filter(id=agent.id).exists()
    assert await Job.filter(id=job.id).exists()
    with pytest.raises(IntegrityError):
        await Job.filter(id=job.id).update(agent_id=job.id)


def test_three_processes_migrate_one_empty_database(empty_database_url: str) -> None:
    started = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", MIGRATE, empty_database_url],
            cwd=SDL_FILE.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert asyncio.run(tables(empty_database_url)) >= TABLES
