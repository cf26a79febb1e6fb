"""The log as a stream: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, cast
from uuid import UUID

import asyncpg
import pytest
from tortoise import connections

from models import Job, JobLog
from services import events, jobs
from services.events import Events, recent
from services.events.horizon import Gapless
from services.runtime import Runtime
from tests.support.making import MEMBER, holds, make_job, until

only_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
PATIENCE = 0.3
"""For a tailer that would go on too early."""


async def newest() -> int:
    last = await JobLog.all().order_by("-seq").first()
    return last.seq if last else 0


async def written(after: int) -> list[int]:
    found = await JobLog.filter(seq__gt=after).order_by("seq").values_list("seq", flat=True)
    return cast("list[int]", found)


async def note(rt: Runtime, job: Job) -> int:
    return (await jobs.add_note(rt, MEMBER, job.id, "A note.")).seq


@asynccontextmanager
async def listening(source: Events, after: int | None) -> AsyncGenerator[list[int], None]:
    """The positions that a listener gets, as they come."""
    heard: list[int] = []

    async def listen() -> None:
        async with aclosing(source.subscribe(after)) as entries:
            async for entry in entries:
                heard.append(entry.seq)  # noqa: PERF401 - others watch it grow

    known = source.readers
    task = asyncio.create_task(listen())
    await holds(lambda: source.readers > known)
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


# Overlapping transactions


class Connection(Protocol):
    """What is used of asyncpg, which has no types for it."""

    async def execute(self, query: str) -> str: ...

    async def fetchval(self, query: str, *values: object) -> int: ...

    async def close(self) -> None: ...


INSERT = """
INSERT INTO job_logs
  (job_id, type, status, message, payload_truncated, actor_kind, actor_name, created_at)
VALUES ($1, 'NOTE', 'PENDING', 'from elsewhere', false, 'SYSTEM', 'Elsewhere', now())
RETURNING seq"""


class Elsewhere:
    """Another process's connection, with its transaction in our hands."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def write(self, job_id: UUID) -> int:
        """An entry that nobody sees yet; returns its position."""
        await self._connection.execute("BEGIN")
        return await self._connection.fetchval(INSERT, job_id)

    async def end(self, how: str) -> None:
        await self._connection.execute(how)

    async def close(self) -> None:
        await self._connection.close()


Connect = Callable[[], Awaitable[Elsewhere]]


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    dial = cast("Callable[[str], Awaitable[Connection]]", asyncpg.connect)
    opened: list[Elsewhere] = []

    async def one() -> Elsewhere:
        opened.append(Elsewhere(await dial(database_url)))
        return opened[-1]

    yield one
    for each in opened:
        await each.close()


@only_postgres
@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
async def test_entry_that_commits_late_comes_first_and_a_rolled_back_one_is_skipped(
    rt: Runtime, connect: Connect, how: str
) -> None:
    job = await make_job(rt)
    after = await newest()
    elsewhere = await connect()
    async with listening(rt.events, after) as heard:
        late = await elsewhere.write(job.id)
        later = [await note(rt, job), await note(rt, job)]
        assert late < later[0]
        await asyncio.sleep(PATIENCE)
        assert heard == []
        await elsewhere.end(how)
        expected = [late, *later] if how == "COMMIT" else later
        await holds(lambda: len(heard) >= len(expected))
        assert heard == expected


@only_postgres
async def test_gaps_of_several_transactions_are_filled_in_order(
    rt: Runtime, connect: Connect
) -> None:
    job = await make_job(rt)
    after = await newest()
    one, two, three = [await connect() for _ in range(3)]
    async with listening(rt.events, after) as heard:
        first = await one.write(job.id)
        second = await note(rt, job)
        third = await two.write(job.id)
        lost = await three.write(job.id)
        fifth = await note(rt, job)
        await two.end("COMMIT")
        await three.end("ROLLBACK")
        await asyncio.sleep(PATIENCE)
        assert heard == []
        await one.end("COMMIT")
        await holds(lambda: len(heard) >= 4)
        assert heard == [first, second, third, fifth]
        assert lost not in heard


@only_postgres
async def test_transaction_that_stays_open_holds_back_what_follows_and_nothing_is_lost(
    rt: Runtime, connect: Connect
) -> None:
    job = await make_job(rt)
    after = await newest()
    elsewhere, other = await connect(), await connect()
    async with listening(rt.events, after) as heard:
        late = await elsewhere.write(job.id)
        made: list[int] = []
        for _ in range(20):
            made.append(await note(rt, job))
            await other.write(job.id)
            await other.end("ROLLBACK")
        assert await rt.events.complete_until() == after  # after two seconds
        assert (heard, await rt.events.lag()) == ([], made[-1] - after)
        await elsewhere.end("COMMIT")
        await holds(lambda: len(heard) >= len(made) + 1)
        assert heard == [late, *made]


@only_postgres
async def test_stream_is_the_log_whatever_writers_do_at_once(rt: Runtime, connect: Connect) -> None:
    chance = random.Random(3)  # noqa: S311
    job = await make_job(rt)
    after = await newest()

    async def others() -> None:
        elsewhere = await connect()
        for _ in range(15):
            await elsewhere.write(job.id)
            await asyncio.sleep(chance.uniform(0, 0.05))
            await elsewhere.end(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))

    async def ours() -> None:
        for _ in range(15):
            await note(rt, job)
            await asyncio.sleep(chance.uniform(0, 0.03))

    async with listening(rt.events, after) as heard:
        await asyncio.gather(*(others() for _ in range(5)), *(ours() for _ in range(5)))
        expected = await written(after)
        await holds(lambda: len(heard) >= len(expected))
        assert heard == expected


@only_postgres
async def test_tailer_that_starts_within_a_transaction_does_not_miss_its_entry(
    rt: Runtime, connect: Connect
) -> None:
    job = await make_job(rt)
    after = await newest()
    elsewhere = await connect()
    late = await elsewhere.write(job.id)
    later = await note(rt, job)
    other = Events(Gapless(), 0.05)
    starting = asyncio.create_task(other.start())
    await asyncio.sleep(PATIENCE)
    assert not starting.done()
    await elsewhere.end("COMMIT")
    await starting
    try:
        async with listening(other, after) as heard:
            await holds(lambda: len(heard) >= 2)
            assert heard == [late, later]
    finally:
        await other.stop()


@only_postgres
async def test_entries_of_other_processes_are_heard_without_a_wake_up(
    rt: Runtime, connect: Connect
) -> None:
    job = await make_job(rt)
    elsewhere = await connect()
    async with listening(rt.events, await newest()) as heard:
        seq = await elsewhere.write(job.id)
        await elsewhere.end("COMMIT")
        await holds(lambda: heard == [seq], 5)


@only_postgres
async def test_listener_without_a_position_hears_what_commits_after_it_came(
    rt: Runtime, connect: Connect
) -> None:
    job = await make_job(rt)
    elsewhere = await connect()
    late = await elsewhere.write(job.id)
    before = await note(rt, job)
    async with listening(rt.events, None) as heard:
        await asyncio.sleep(PATIENCE)
        await elsewhere.end("COMMIT")
        last = await note(rt, job)
        await holds(lambda: last in heard)
        assert [seq for seq in heard if seq != before] == [late, last]


# From a position on


async def test_listener_hears_exactly_what_is_after_its_position(rt: Runtime) -> None:
    job = await make_job(rt)
    made = [await note(rt, job) for _ in range(5)]
    async with listening(rt.events, made[1]) as heard:
        await holds(lambda: len(heard) >= 3)
        more = await note(rt, job)
        await holds(lambda: more in heard)
        assert heard == [*made[2:], more]


async def test_listener_without_a_position_hears_only_what_is_new(rt: Runtime) -> None:
    job = await make_job(rt)
    async with listening(rt.events, None) as heard:
        await asyncio.sleep(PATIENCE)
        new = await note(rt, job)
        await holds(lambda: heard == [new])


async def test_listener_with_a_position_to_come_hears_what_is_after_it(rt: Runtime) -> None:
    job = await make_job(rt)
    at = await newest()
    async with listening(rt.events, at + 1) as heard:
        await note(rt, job)
        second = await note(rt, job)
        await holds(lambda: heard == [second])


async def test_listeners_that_come_while_others_write_miss_and_repeat_nothing(
    rt: Runtime,
) -> None:
    chance = random.Random(4)  # noqa: S311
    job = await make_job(rt)
    writing = True

    async def write() -> None:
        while writing:
            await note(rt, job)

    async def listen() -> None:
        await asyncio.sleep(chance.uniform(0, 1))
        after = chance.randint(0, await newest())
        async with listening(rt.events, after) as heard:
            await holds(lambda: not writing)
            await ended.wait()
            expected = await written(after)
            await holds(lambda: len(heard) >= len(expected))
            assert heard == expected

    ended = asyncio.Event()
    writers = [asyncio.create_task(write()) for _ in range(3)]
    listeners = [asyncio.create_task(listen()) for _ in range(20)]

    async def enough() -> bool:
        return await newest() > 50

    await asyncio.sleep(1)  # the last listener has come
    await until(enough)
    writing = False
    await asyncio.gather(*writers)
    ended.set()
    await asyncio.gather(*listeners)


async def test_page_boundaries_lose_nothing(rt: Runtime) -> None:
    await make_job(rt)
    after = await newest()
    await write_many(2 * events.PAGE)
    rt.events.wake()
    async with listening(rt.events, after) as heard:
        await holds(lambda: len(heard) >= 2 * events.PAGE)
        assert heard == await written(after)


# Slow listeners


MANY = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
INSERT INTO job_logs
  (job_id, type, status, payload_truncated, actor_kind, actor_name, created_at)
SELECT id, 'NOTE', 'PENDING', false, 'SYSTEM', 'Signoff', CURRENT_TIMESTAMP FROM jobs, numbers"""


async def write_many(count: int) -> None:
    """For each job so many entries, of which nobody is told."""
    await connections.get("default").execute_query(MANY.format(count=count))


async def test_listener_that_falls_far_behind_reads_the_log_itself_and_misses_nothing(
    rt: Runtime,
) -> None:
    job = await make_job(rt)
    after = await newest()
    heard: list[int] = []
    async with aclosing(rt.events.subscribe(after)) as entries:
        await note(rt, job)
        heard.append((await anext(entries)).seq)
        await write_many(2 * recent.MAX_ROWS)
        rt.events.wake()
        expected = await written(after)
        await rt.events.past(expected[-1] - 1)
        assert rt.events.recent(heard[-1], expected[-1]) is None
        while heard[-1] != expected[-1]:
            heard.append((await anext(entries)).seq)
    assert heard == expected
    assert rt.events.readers == 0


async def test_slow_listener_does_not_hold_up_the_others(rt: Runtime) -> None:
    job = await make_job(rt)
    after = await newest()
    async with aclosing(rt.events.subscribe(after)) as slow:
        await note(rt, job)
        await anext(slow)
        async with listening(rt.events, after) as heard:
            await write_many(2 * recent.MAX_ROWS)
            last = await note(rt, job)
            await holds(lambda: last in heard)
            assert heard == await written(after)


async def test_first_listener_after_a_quiet_time_is_not_held_up_by_what_was_written_in_it(
    rt: Runtime,
) -> None:
    job = await make_job(rt)
    await write_many(40_000)
    rt.events.wake()
    await asyncio.sleep(2 * events.IDLE_SECONDS)
    async with listening(rt.events, None) as heard:
        began = time.monotonic()
        new = await note(rt, job)
        await holds(lambda: heard == [new])
        assert time.monotonic() - began < 1  # reading all of it takes longer


# Waiting for something


async def test_until_finds_what_is_there_already(rt: Runtime) -> None:
    async def found() -> str | None:
        return "it"

    assert await rt.events.until(found, 5) == "it"
    assert rt.events.readers == 0


async def test_until_asks_again_after_each_entry(rt: Runtime) -> None:
    job = await make_job(rt)
    after = await newest()

    async def found() -> Sequence[int] | None:
        seqs = await written(after)
        return seqs if len(seqs) == 2 else None

    waiting = asyncio.create_task(rt.events.until(found, 20))
    made = [await note(rt, job), await note(rt, job)]
    assert await waiting == made


async def test_until_gives_up_after_its_time(rt: Runtime) -> None:
    async def found() -> Any:
        return None

    began = time.monotonic()
    assert await rt.events.until(found, 0.2) is None
    assert 0.2 <= time.monotonic() - began < 5
    assert rt.events.readers == 0
