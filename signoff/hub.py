"""Subscriptions of one process: what several ask for alike is executed and encoded once.

A subscriber is first told by itself what is past its position, at its own pace. Once little is
missing, it joins the others, and from then on gets the bytes that were made for all; they are
held for it until it was told the rest. A group takes each entry of the log once; who joins
between two entries is told of the second with the others, and of the first by itself.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from graphql import GraphQLError

from models import JobLog
from models.statements import Unavailable
from resolvers.context import Context
from schema.cost import OPERATION
from schema.failures import shown_failure
from schema.sharing import Enquiry, Selection, Sharable
from schema.sharing import Messages as Telling
from services.actors import Viewer
from services.errors import DatabaseUnavailable, LimitExceeded, RateLimited
from services.listening import Batch, Follower, Question, Stretch, first_of
from services.runtime import Runtime
from signoff import results
from signoff.asked import Asked, encoded
from signoff.guarding import Guard
from signoff.messages import Messages, parts
from signoff.results import NotExecuted
from signoff.subscribers import Subscriber

MAX_ASKED_BYTES = 131_072
"""Of a subscription's request with all that is in it, which is kept as long as it is open."""
REPLAYS = 16
"""Listeners that are brought up to date at once; the others wait for their turn."""
RETRY_SECONDS = 0.5
MAX_HELD_BYTES = 262_144
"""Of what the others are told while who joins them is told the last of what was before."""
BYTES_A_UNIT = 20
"""What an answer costs, by what is sent: executing takes about as long."""
T = TypeVar("T")
Key = tuple[tuple[str, str | None, bytes], Viewer]


class Hub:
    """`subscribers` are those who have joined a group."""

    def __init__(self, rt: Runtime, guard: Guard) -> None:
        self.rt = rt
        self.position = 0
        self._guard = guard
        self._groups: dict[Key, Group] = {}
        self._by_job: defaultdict[UUID | None, set[Group]] = defaultdict(set)
        self._joined: dict[Subscriber, Group] = {}
        self._listening = ExitStack()
        self._replays = asyncio.Semaphore(REPLAYS)
        rt.telemetry.subscribers.set_function(lambda: self.subscribers)

    @property
    def subscribers(self) -> int:
        return len(self._joined)

    @property
    def groups(self) -> int:
        """How many executions an event takes that concerns everybody, at most."""
        return len(self._groups)

    async def run(self, asked: Asked, viewer: Viewer, subscriber: Subscriber) -> None:
        """Send the results of any operation; a subscription goes on until it is cancelled.

        Raises `NotExecuted`, also of what ends a subscription, and `ConnectionError`.
        """
        try:
            membership = await self._begin(asked, viewer, subscriber)
            if membership is not None:
                raise NotExecuted([await membership.ended])
        finally:
            self.leave(subscriber)

    async def _begin(
        self, asked: Asked, viewer: Viewer, subscriber: Subscriber
    ) -> Membership | None:
        """Send the results; who subscribes is told the rest of all that was, and is a member then.

        By itself, so that nothing of it is kept for as long as they are told what follows.
        """
        enquiry = Enquiry(self.rt, viewer)
        async with aclosing(results.stream(self._guard, enquiry, asked)) as payloads:
            async for payload in payloads:
                await subscriber.send(payload)
        if enquiry.asked is None:
            return None
        if asked.size > MAX_ASKED_BYTES:
            message = f"A subscription is kept, so it has at most {MAX_ASKED_BYTES} bytes."
            raise NotExecuted([shown_failure(LimitExceeded(message, MAX_ASKED_BYTES))])
        sharable = Sharable(self._guard.text(asked), asked.variables, asked.operation_name)
        question, telling = enquiry.asked
        try:
            with self._group(sharable, question, telling) as group:
                return await self._replay(group, question, subscriber)
        except ConnectionError:
            raise
        except Exception as error:
            raise NotExecuted([shown_failure(error)]) from error

    def leave(self, subscriber: Subscriber) -> None:
        """Tell the subscriber nothing more."""
        group = self._joined.pop(subscriber, None)
        if group is not None:
            group.members.pop(subscriber)
            self._tidy(group)

    @contextmanager
    def _group(self, asked: Sharable, question: Question, telling: Telling) -> Generator[Group]:
        """The group of all who ask so; it is kept at least as long as somebody is to join it."""
        shared = self._guard.schema.shared_variables(asked)
        key = asked.key(shared), question.viewer.scope
        group = self._groups.get(key) or self._new_group(key, asked, question, telling)
        group.joining += 1
        try:
            yield group
        finally:
            group.joining -= 1
            self._tidy(group)

    def _new_group(self, key: Key, asked: Sharable, question: Question, telling: Telling) -> Group:
        if not self._groups:
            self.position = self.rt.events.position
            self._listening.enter_context(self.rt.events.watching(self._dispatch))
        selection = Selection(self._guard.schema.executor(asked), telling)
        group = self._groups[key] = Group(self, key, question, selection)
        self._by_job[question.job_id].add(group)
        return group

    def _tidy(self, group: Group) -> None:
        if group.members or group.joining:
            return
        group.stop()
        del self._groups[group.key]
        of_job = self._by_job[group.question.job_id]
        of_job.discard(group)
        if not of_job:
            del self._by_job[group.question.job_id]
        if not self._groups:
            self._listening.close()

    def _dispatch(self) -> None:
        """Set those groups to work that the newest entries may concern."""
        before, self.position = self.position, self.rt.events.position
        rows = self.rt.events.recent(before, self.position)
        for group in self._groups.values() if rows is None else self._near(rows):
            if rows is None or any(map(group.question.wants, rows)):
                group.wake(before)

    def _near(self, rows: Sequence[JobLog]) -> list[Group]:
        """The groups of these entries' jobs, and those of all jobs."""
        jobs: set[UUID | None] = {None, *(row.job_id for row in rows)}
        return [group for job_id in jobs for group in self._by_job.get(job_id, ())]

    async def _replay(self, group: Group, question: Question, subscriber: Subscriber) -> Membership:
        """Tell the subscriber all that the group was told, and make them a member."""
        follower = Follower(self.rt.events, question)
        tell = partial(self._tell, group, subscriber, question.viewer.budget)
        await patiently(self.rt.events.complete_until)  # else caughtUp would come too early
        await tell(follower.begin)
        await group.past(follower.base - 1)
        while True:
            until = group.position
            await tell(partial(follower.step, until))
            await self._solvent(question.viewer.budget)
            if follower.position >= until and follower.may_join(group.position):
                membership = self._join(group, subscriber, question.viewer.budget)
                until = group.position
                while follower.position < until:
                    await tell(partial(follower.step, until))
                self.rt.telemetry.frames.inc(membership.release(subscriber))
                if subscriber in group.members or membership.ended.done():
                    return membership
            elif follower.position >= group.position:
                await group.past(max(group.position, follower.position - 1))

    def _join(self, group: Group, subscriber: Subscriber, budget: str) -> Membership:
        self._joined[subscriber] = group
        return group.join(subscriber, budget)

    async def _tell(
        self,
        group: Group,
        subscriber: Subscriber,
        budget: str,
        read: Callable[[], Awaitable[Batch | None]],
    ) -> None:
        """Tell one subscriber, at their pace, and no faster than their budget comes back."""
        answers = await self._in_turn(budget, partial(group.told, read))
        for messages in parts(answers):
            if subscriber.tell(messages):
                self.rt.telemetry.frames.inc(messages.count)
            await subscriber.ready()

    async def _in_turn(
        self, budget: str, make: Callable[[], Awaitable[list[bytes]]]
    ) -> list[bytes]:
        """What is made for one listener; not for too many at once, nor for who has used all up.

        It is paid for afterwards, so nobody keeps it while they wait until they can.
        """
        while True:
            async with self._replays:
                try:
                    self.rt.rates.check(budget)
                except RateLimited as error:
                    seconds = error.retry_after
                else:
                    answers = await make()
                    self.rt.rates.owe(budget, self._price(answers))
                    return answers
            await asyncio.sleep(seconds)

    async def _solvent(self, budget: str) -> None:
        """Return when something is left again; else the next event would end the subscription."""
        while True:
            try:
                return self.rt.rates.check(budget)
            except RateLimited as error:
                await asyncio.sleep(error.retry_after)

    def charge(self, budget: str, answers: Sequence[bytes]) -> None:
        """Take what answers cost; raises `RateLimited` where nothing was left before."""
        self.rt.rates.check(budget)
        self.rt.rates.owe(budget, self._price(answers))

    def _price(self, answers: Sequence[bytes]) -> int:
        """Of finding and making them; never more than a budget holds."""
        units = OPERATION + sum(OPERATION + len(each) // BYTES_A_UNIT for each in answers)
        return min(units, self.rt.rates.burst)


class Group:
    """Subscribers who are told the same. All up to `position` was told to its members."""

    def __init__(self, hub: Hub, key: Key, question: Question, selection: Selection) -> None:
        self.key = key
        self.question = replace(question, viewer=key[1], after=None, snapshot=False)
        self.members: dict[Subscriber, Membership] = {}
        self.joining = 0
        self._hub = hub
        self._selection = selection
        self._taken = 0
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """While it does nothing, there is nothing for it in all that the hub has seen."""
        return self._hub.position if self._task is None else self._taken

    def join(self, subscriber: Subscriber, budget: str) -> Membership:
        """Tell them from now on, once they are released."""
        ended = asyncio.get_running_loop().create_future()
        membership = self.members[subscriber] = Membership(ended, budget)
        return membership

    def wake(self, before: int) -> None:
        """There is something after the position `before`."""
        if self._task is None:
            self._taken = before
            self._task = asyncio.create_task(self._work())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def past(self, position: int) -> None:
        """Return when it has taken entries beyond `position`."""
        while self.position <= position:
            if self._task is None:
                await self._hub.rt.events.past(position)
            else:
                await self._moved.wait()

    async def told(self, read: Callable[[], Awaitable[Batch | None]]) -> list[bytes]:
        """What the batch that is read is told in, encoded."""
        batch = await patiently(read)
        return [] if batch is None else await patiently(partial(self._answers, batch))

    async def _answers(self, batch: Batch) -> list[bytes]:
        """Raises `Unavailable`."""
        context = Context(self._hub.rt, self.question.viewer)  # whose loaders read anew
        return [encoded(each) for each in await self._selection.results(context, batch)]

    async def _work(self) -> None:
        try:
            while self._taken < self._hub.position:
                await self._take()
        except Exception as error:  # noqa: BLE001 - logged where it is made presentable
            self._fail(error)
        finally:
            self._task = None
            self._move()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _take(self) -> None:
        """Tell the members of the next entries; who joins from now on has been told of them."""
        page = await patiently(self._page)
        self._taken = page.end
        self._move()
        members = list(self.members)
        if members and (page.rows or page.gap):
            answers = await self.told(partial(self._batch, page))
            self._charge(members, answers)
            for messages in parts(answers):
                self._tell(members, messages)
                await asyncio.sleep(0)  # lets the sockets send

    async def _page(self) -> Stretch:
        """Raises `Unavailable`."""
        until = self._hub.position
        rows = self._hub.rt.events.recent(self._taken, until) if self.members else ()
        if rows is None:
            return await self.question.read(self._taken, until)
        return first_of([row for row in rows if self.question.wants(row)], until)

    async def _batch(self, page: Stretch) -> Batch | None:
        """Raises `Unavailable`. All members have caught up."""
        told = await self.question.pick(page.rows)
        if not told and not page.gap:
            return None
        return Batch(page.end, told, caught_up=True, gap=page.gap)

    def _tell(self, members: Sequence[Subscriber], messages: Messages) -> None:
        told = 0
        for each in members:
            membership = self.members.get(each)
            if membership is None:
                continue
            if membership.held is None:
                told += each.tell(messages)
            elif not membership.hold(messages):
                self._hub.leave(each)
        self._hub.rt.telemetry.frames.inc(told * messages.count)

    def _charge(self, members: Sequence[Subscriber], answers: Sequence[bytes]) -> None:
        """Each budget pays once, as if nobody else listened; where it is empty, that is the end."""
        for budget in {self.members[each].budget for each in members if each in self.members}:
            try:
                self._hub.charge(budget, answers)
            except RateLimited as error:
                self._fail(error, budget)

    def _fail(self, error: Exception, budget: str | None = None) -> None:
        """End what the members ask for, or those of them who have this budget."""
        told = shown_failure(error)
        for each, membership in list(self.members.items()):
            if budget in (None, membership.budget):
                membership.end(told)
                self._hub.leave(each)


@dataclass(slots=True)
class Membership:
    """How a subscriber hears of the end, and who pays for what they are told.

    `held` is what they are told when all before it has been; None from then on.
    """

    ended: asyncio.Future[GraphQLError]
    budget: str
    held: list[Messages] | None = field(default_factory=list[Messages])

    def hold(self, messages: Messages) -> bool:
        """Keep it for them; False, and nothing is kept any more, where that would be too much."""
        held = [*(self.held or ()), messages]
        fits = sum(each.size for each in held) <= MAX_HELD_BYTES
        self.held = held if fits else []
        return fits

    def release(self, subscriber: Subscriber) -> int:
        """Tell them what was held, and hold nothing more; returns how many messages."""
        held, self.held = self.held or (), None
        return sum(each.count for each in held if subscriber.tell(each))

    def end(self, error: GraphQLError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)


async def patiently(do: Callable[[], Awaitable[T]]) -> T:
    """What `do` makes, tried again while the database is away."""
    while True:
        try:
            return await do()
        except (Unavailable, DatabaseUnavailable):
            await asyncio.sleep(RETRY_SECONDS)
