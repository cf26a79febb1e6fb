"""Who runs executions: pgqueuer, in memory or on Postgres, behind one small port.

The queue only wakes: what there is to do stands in the rows, and a message that
comes twice, late or for a finished attempt changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import orjson
import structlog
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.adapters.inmemory import InMemoryDriver, InMemoryQueries
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.tm import cancel_on_exit
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job as Message
from pgqueuer.domain.types import QueueEntrypoint
from pgqueuer.ports import RepositoryPort

from models import Agent, Job, JobPhase, JobStatus

logger = structlog.get_logger(__name__)

Handler = Callable[[UUID, int], Awaitable[None]]

BATCH = 20
REDELIVERIES = 5
SYNC_SECONDS = 1.0
"""How late another process's new or changed agent is seen."""


def entrypoint(agent_id: UUID | None) -> str:
    return f"agent:{agent_id}"


def messages(jobs: Sequence[Job]) -> dict[str, list[Any]]:
    """Arguments of pgqueuer's `enqueue`: the key makes a message unique while it waits."""
    return {
        "entrypoint": [entrypoint(job.agent_id) for job in jobs],
        "payload": [orjson.dumps([str(job.id), job.attempt_count]) for job in jobs],
        "priority": [int(job.priority) for job in jobs],
        "dedupe_key": [f"{job.id}:{job.attempt_count}" for job in jobs],
    }


class Engine:
    """The queue and the worker of one process.

    `dsn` None keeps the queue in memory, for a single process; else it is a Postgres URL
    and any number of processes share the work. `lease_seconds` is how long a worker that
    stopped answering keeps what it took.
    """

    def __init__(self, dsn: str | None, *, lease_seconds: float, max_tasks: int) -> None:
        self._dsn = dsn
        self._lease = timedelta(seconds=lease_seconds)
        self._max_tasks = max_tasks
        self._manager: QueueManager | None = None
        self._limits: dict[str, int] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._run: Handler | None = None
        self._give_up: Handler | None = None

    async def start(self, run: Handler, give_up: Handler) -> None:
        """Begin to work. `give_up` is called for what failed unexpectedly too often."""
        self._run, self._give_up = run, give_up
        ready = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(ready))
        await ready.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new work, give what runs its time, leave the rest for the next start."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.shutdown.set()
        if self._supervisor is None:
            return
        await asyncio.wait([self._supervisor], timeout=grace_seconds)
        for task in self._running:
            task.cancel()
        await asyncio.wait([self._supervisor], timeout=5)
        self._supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervisor

    def register(self, agent: Agent) -> None:
        """Take work for `agent`, within its concurrency."""
        self._register(agent.id, agent.max_concurrency)

    def _register(self, agent_id: UUID, limit: int) -> None:
        name = entrypoint(agent_id)
        manager = self._manager
        if manager is None or self._limits.get(name) == limit:
            return
        manager.entrypoint_registry.pop(QueueEntrypoint(name), None)
        manager.entrypoint(name, concurrency_limit=limit)(self._handle)
        self._limits[name] = limit

    async def enqueue(self, connection: Any, jobs: Sequence[Job]) -> None:
        """On Postgres: the queue entry, in the transaction that is open on `connection`."""
        if self._dsn is not None:
            await Queries(AsyncpgDriver(connection)).enqueue(**messages(jobs), on_conflict="skip")

    async def enqueued(self, jobs: Sequence[Job]) -> None:
        """In memory: the queue entry, after the commit of the request."""
        if self._dsn is None and self._manager is not None:
            await self._manager.queries.enqueue(**messages(jobs), on_conflict="skip")

    async def forget(self) -> None:
        """Empty the log that the queue keeps of its own; ours is the one that counts."""
        if self._manager is not None:
            queries = cast("Queries | InMemoryQueries", self._manager.queries)
            await queries.clear_queue_log()
            await queries.clear_statistics_log()

    async def _supervise(self, ready: asyncio.Event) -> None:
        """Keep a queue manager at work: its `run` ends when the database goes away."""
        while not self._stopping.is_set():
            try:
                async with AsyncExitStack() as stack:
                    await self._serve(stack, ready)
            except Exception:
                logger.exception("the engine stopped; starting it again")
            ready.set()
            if not self._stopping.is_set():
                await asyncio.sleep(1)

    async def _serve(self, stack: AsyncExitStack, ready: asyncio.Event) -> None:
        queries = await self._open(stack)
        self._manager = QueueManager(queries)
        self._limits.clear()
        await self._sync_agents()
        await self._reconcile(queries)
        ready.set()
        if self._dsn is not None:
            await stack.enter_async_context(cancel_on_exit(asyncio.create_task(self._follow())))
        await self._manager.run(
            batch_size=BATCH,
            max_concurrent_tasks=self._max_tasks,
            heartbeat_timeout=self._lease,
            dequeue_timeout=self._lease / 2,
            shutdown_on_listener_failure=True,
        )

    async def _open(self, stack: AsyncExitStack) -> RepositoryPort:
        if self._dsn is None:
            return InMemoryQueries(driver=InMemoryDriver())
        create_pool = cast("Callable[..., Awaitable[Any]]", asyncpg.create_pool)
        pool = await create_pool(self._dsn, min_size=1, max_size=4, command_timeout=30, timeout=10)
        stack.push_async_callback(pool.close)
        return Queries(AsyncpgPoolDriver(pool))

    async def _follow(self) -> None:
        """Learn of agents that other processes add or change."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                await self._sync_agents()
            except Exception:
                logger.exception("reading the agents failed; trying again")

    async def _sync_agents(self) -> None:
        for agent_id, limit in await Agent.all().values_list("id", "max_concurrency"):
            self._register(agent_id, limit)

    async def _reconcile(self, queries: RepositoryPort) -> None:
        """Queue what the rows say is under way and no queue knows of, such as after a crash."""
        under_way = await Job.filter(status=JobStatus.IN_EXECUTION)
        lost = [job for job in under_way if job.phase is not JobPhase.AWAITING_REVIEW]
        if lost:
            logger.info("resuming executions", count=len(lost))
            await queries.enqueue(**messages(lost), on_conflict="skip")

    async def _handle(self, message: Message) -> None:
        assert self._run is not None and self._give_up is not None  # noqa: S101, PT018
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._running.add(task)
        key, number = orjson.loads(message.payload or b"")
        try:
            await self._run(UUID(key), number)
        except asyncio.CancelledError:  # only `stop` cancels: hand it back, to be gone on with
            raise RetryRequested(timedelta(0), "the worker is stopping") from None
        except Exception as error:
            logger.exception("an execution failed unexpectedly", job_id=key, attempt=number)
            if message.attempts < REDELIVERIES:
                raise RetryRequested(timedelta(seconds=2**message.attempts)) from error
            await self._give_up(UUID(key), number)
        finally:
            self._running.discard(task)
