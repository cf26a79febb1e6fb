"""Who runs executions: the worker of this process, one of any number.

The rows decide. What the worker runs is what they say it runs: an entry that is its own and not
under way here is begun, a run whose entry is gone is ended. A worker that is not seen for the
length of the lease loses its entries to the others; what it still writes afterwards is refused,
since whoever takes over moves the job's version on. Signs of life wait for nothing else: they go
by a task and a connection of their own.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from models.base import uuid7
from models.statements import Unavailable
from services import queue, workers
from services.errors import DatabaseUnavailable
from services.queue import Taken
from services.workers import Orphan, Watch

logger = structlog.get_logger(__name__)

Key = tuple[UUID, int]
"""A job and the number of its attempt."""

HEARTBEAT = "heartbeat"
POLL_SECONDS = 1.0
"""How late what nobody told of is seen."""
RESCUE_SECONDS = 2.0
"""How late at most it is seen that the lease of another worker is over."""
COMPARE_SECONDS = 0.05
"""How late a run is ended at most whose attempt another process has ended."""
MAX_FAILURES = 5
STOP_SECONDS = 2.0
"""For handing back what still runs at the end of the grace."""
LEAVE_SECONDS = 1.0
AWAY = (Unavailable, DatabaseUnavailable)
"""No failure of the run: the database did not answer it."""

_own: ContextVar[Key | None] = ContextVar("own", default=None)


@dataclass(frozen=True, slots=True)
class Work:
    """What the engine calls.

    `run` does an attempt that is this worker's, `give_up` settles one whose runs fail
    unexpectedly, `aborted` notes what a run was cut off from that is not this worker's any more,
    `take_over` frees an execution of a lost worker, `due` does what the clock asks for and
    returns when it asks again.
    """

    run: Callable[[UUID, int, UUID], Awaitable[None]]
    give_up: Callable[[UUID, int], Awaitable[None]]
    aborted: Callable[[UUID, int], Awaitable[None]]
    take_over: Callable[[Orphan], Awaitable[None]]
    due: Callable[[datetime], Awaitable[datetime | None]]


class Engine:
    """The worker of one process; without `start` it runs nothing.

    `alone` says that no other process can have a worker. After `lease_seconds` without a sign
    of life, given every `heartbeat_seconds`, its executions are taken over; each other worker's
    after that one's own lease.
    """

    def __init__(
        self, *, alone: bool, lease_seconds: float, heartbeat_seconds: float, max_tasks: int
    ) -> None:
        self._alone = alone
        self._lease = lease_seconds
        self._heartbeat = heartbeat_seconds
        self._max_tasks = max_tasks
        self._max_looks = max(1, max_tasks // 2)
        self._id = uuid7()
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._suspects: set[Key] = set()
        self._looks: set[Key] = set()
        self._aborted: set[Key] = set()
        self._gone: set[Key] = set()
        self._settled: set[Key] = set()
        self._news = asyncio.Event()
        self._alarm: datetime | None = None
        self._polled_at = self._compared_at = -math.inf
        self._to_compare = False
        self._expected = False
        self._to_resume = False
        self._stopping = False
        self._turn = asyncio.Lock()
        self._look_seconds = min(RESCUE_SECONDS, heartbeat_seconds)
        self._watch = Watch(self._look_seconds)
        self._tasks: list[asyncio.Task[None]] = []
        self._troubles: dict[str, str] = {}
        self._work: Work | None = None

    async def start(self, work: Work) -> None:
        """Begin to work, with what was left behind."""
        self._work = work
        await self._enter()
        if self._alone:
            await self._take_over()
        resumed = await queue.reconcile()
        if resumed:
            logger.info("queued executions that no queue knew of", count=resumed)
        steps = {"work": self._round, "taking over": self._rescue, HEARTBEAT: self._beat}
        self._tasks = [asyncio.create_task(self._kept(*each)) for each in steps.items()]
        self._news.set()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new work, give what runs its time, hand the rest back. Once is enough."""
        if self._stopping:
            return
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                async with self._turn:  # what is being taken is begun
                    pass
                while self._running:
                    await asyncio.wait(self._running.values())
        await _end([*self._tasks[:-1], *self._running.values()])  # nothing is begun any more
        await _end(self._tasks[-1:])
        if self._work is not None:
            with suppress(Exception):  # the others find out
                async with asyncio.timeout(LEAVE_SECONDS):
                    await workers.leave(self._id)

    def healthy(self) -> str | None:
        """What is wrong with the worker; None if it is well, or if there is none."""
        return next(iter(self._troubles.values()), None)

    @property
    def running(self) -> int:
        """Executions under way in this process."""
        return len(self._running)

    def wake(self, at: datetime | None = None) -> None:
        """There may be something to run; with `at`, from then on."""
        self._set_alarm(at)
        self._expected = self._expected or at is None
        self._news.set()

    def _set_alarm(self, *times: datetime | None) -> None:
        self._alarm = queue.earliest(self._alarm, *times)

    def heard(self) -> None:
        """Another process wrote something: an entry more, or one less."""
        self._to_compare = True
        self._news.set()

    def abort(self, ended: Iterable[Key]) -> None:
        """End the runs of attempts that have ended, except the one that ended its own."""
        for key in ended:
            if key not in self._running:
                continue
            if key == _own.get():
                self._settled.add(key)
            elif key not in self._aborted:
                # Once each: a second cancel would hit what is done about the first.
                self._aborted.add(key)
                self._running[key].cancel()

    async def _kept(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat `step` for ever; a database that is away is waited for."""
        while True:
            try:
                await step()
                self._troubles.pop(name, None)
            except Exception as error:
                if name not in self._troubles:
                    logger.exception("the worker is in trouble; trying again", step=name)
                self._troubles[name] = f"the worker cannot go on: {error!r}"
                await asyncio.sleep(min(POLL_SECONDS, self._heartbeat))

    async def _enter(self) -> None:
        id = uuid7()
        name = f"{socket.gethostname()}:{os.getpid()}"
        await workers.enter(id, name, self._lease, alone=self._alone)
        self._id = id

    async def _beat(self) -> None:
        """Give a sign of life; one that does not get through in time is given anew, at once."""
        if HEARTBEAT not in self._troubles:
            await asyncio.sleep(self._heartbeat)
        async with asyncio.timeout(self._lease / 3):
            if not await workers.beat(self._id):
                logger.warning("taken for lost; beginning anew")
                await self._enter()
                self.heard()

    async def _rescue(self) -> None:
        await asyncio.sleep(self._look_seconds)
        await self._take_over()
        await workers.bury(self._watch)

    async def _take_over(self) -> None:
        assert self._work is not None  # noqa: S101
        for orphan in await workers.orphans(self._watch):
            if orphan.worker_id == self._id:
                continue  # this process was asleep, and nobody took over: it just goes on
            try:
                await self._work.take_over(orphan)
            except AWAY:
                raise
            except Exception:
                logger.exception("a lost execution could not be freed", job_id=orphan.job_id)

    async def _round(self) -> None:
        """Wait until there may be something to do, and do it."""
        await self._wait()
        self._news.clear()
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        now, clock = datetime.now(UTC), asyncio.get_running_loop().time()
        polling = clock >= self._polled_at + POLL_SECONDS
        if polling or (self._alarm is not None and self._alarm <= now):
            await self._look_at_clock(now)
        if polling or self._to_compare:
            await self._compare_in_time(now, clock, polling=polling)
        if self._to_resume and not self._stopping:
            await self._resume(now)
        slots = self._max_tasks - len(self._running)
        if slots > 0 and not self._stopping and await self._something_waits():
            found = await queue.take(self._id, slots, suspects=polling and not self._suspects)
            self._set_alarm(found.again_at)
            for each in found.taken:
                self._begin(each)
        if polling:
            self._polled_at = clock

    async def _something_waits(self) -> bool:
        """What was queued here needs no look."""
        expected, self._expected = self._expected, False
        return expected or await queue.any_waiting()

    async def _look_at_clock(self, now: datetime) -> None:
        assert self._work is not None  # noqa: S101
        self._alarm, self._to_resume = None, True
        self._set_alarm(await self._work.due(now), await queue.wake(now))

    async def _resume(self, now: datetime) -> None:
        """Look at what is awaited and due; first of all, since others may fill every place.

        Nor may looks, at agents that do not say how far they are, fill every place.
        """
        free = self._max_tasks - len(self._running)
        slots = min(free, self._max_looks - len(self._looks))
        if slots > 0:
            found = await queue.resume(self._id, slots, now)
            self._to_resume = len(found.taken) == slots
            self._set_alarm(None if self._to_resume else found.again_at)
            for each in found.taken:
                self._begin(each)
                self._looks.add(each.key)

    async def _compare_in_time(self, now: datetime, clock: float, *, polling: bool) -> None:
        """Compare now, or soon, if it was done just now: other processes tell of a lot."""
        if not polling and clock < self._compared_at + COMPARE_SECONDS:
            self._set_alarm(now + timedelta(seconds=COMPARE_SECONDS))
            return
        self._compared_at, self._to_compare = clock, False
        await self._compare()
        if not polling:  # what another process wrote may have moved a timer to now
            await self._look_at_clock(now)

    async def _wait(self) -> None:
        seconds = POLL_SECONDS
        if self._alarm is not None:
            left = (self._alarm - datetime.now(UTC)).total_seconds()
            seconds = min(seconds, max(0.0, left))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _compare(self) -> None:
        """What the rows say runs here, against what does.

        A run that ends its attempt itself may not know yet that it did: what has no row is
        ended only if it is still there at a second look.
        """
        before = set(self._running)
        rows = {each.key: each for each in await queue.mine(self._id)}
        gone = before - rows.keys() - self._aborted - self._settled
        self.abort(gone & self._gone)
        self._gone = gone
        if gone:
            self._to_compare = True
            self._set_alarm(datetime.now(UTC) + timedelta(seconds=COMPARE_SECONDS))
        for key in rows.keys() - before - self._running.keys():
            if not self._stopping:
                self._begin(rows[key])

    def _begin(self, it: Taken) -> None:
        """Run it; a run of it that is there still had it taken away, and ends first."""
        before = self._running.get(it.key)
        if it.key not in self._settled:
            self.abort([it.key])
        task = asyncio.create_task(self._do(it, before))
        self._running[it.key] = task
        if it.suspect:
            self._suspects.add(it.key)
        task.add_done_callback(partial(self._ended, it.key))

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            self._running.pop(key)
            self._looks.discard(key)
        self._suspects.discard(key)
        self._aborted.discard(key)
        self._settled.discard(key)
        self._news.set()

    async def _do(self, it: Taken, before: asyncio.Task[None] | None) -> None:
        assert self._work is not None  # noqa: S101
        _own.set(it.key)
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._work.run(*it.key, self._id)
        except asyncio.CancelledError:
            await self._cancelled(it)
        except AWAY as error:
            logger.warning("the database is away; going on later", error=repr(error))
            await self._put_off(it, failures=it.failures)
        except Exception:
            logger.exception("a run failed unexpectedly", job_id=it.job_id, attempt=it.number)
            await self._put_off(it, failures=it.failures + 1)

    async def _cancelled(self, it: Taken) -> None:
        assert self._work is not None  # noqa: S101
        try:
            if it.key in self._aborted:
                await self._work.aborted(*it.key)
            else:  # only `stop` cancels else
                await queue.release(self._id, it, failures=it.failures, ready_at=None)
        except Exception:
            logger.exception("the end of a run could not be noted", job_id=it.job_id)

    async def _put_off(self, it: Taken, *, failures: int) -> None:
        """Another try later; the rows have to know, so a database that is away is waited for."""
        assert self._work is not None  # noqa: S101
        ready_at = datetime.now(UTC) + timedelta(seconds=2**failures)
        while True:
            try:
                if failures >= MAX_FAILURES:
                    await self._work.give_up(*it.key)
                else:
                    await queue.release(self._id, it, failures=failures, ready_at=ready_at)
                    self.wake(ready_at)
            except AWAY:
                await asyncio.sleep(POLL_SECONDS)
            except Exception:
                logger.exception("the failed run could not be noted; trying again")
                await asyncio.sleep(POLL_SECONDS)
            else:
                return


def in_a_run() -> bool:
    """Whether the caller is part of an execution."""
    return _own.get() is not None


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_SECONDS)
