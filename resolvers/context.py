from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeAlias, TypeVar
from uuid import UUID

import strawberry
from strawberry.dataloader import DataLoader

from models import Agent, Attempt, CriteriaSet, Job, JobDependency, JobLog, Verdict
from services import agents, budgets, circuits, dependencies, jobs, listening, reading, waiting
from services.actors import Viewer
from services.circuits import Circuit
from services.listening import Batch, Question
from services.runtime import Runtime

K = TypeVar("K")
T = TypeVar("T")


def _batching(load: Callable[[list[K]], Awaitable[list[T]]]) -> DataLoader[K, T]:
    return DataLoader(load_fn=load, cache=False)


class Loaders:
    """Batch the reads of one moment; each loader is made when it is first asked.

    Nothing is cached: a WebSocket keeps its context as long as it is open, and
    a cached row would be told to a subscriber long after it changed.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    @cached_property
    def agents(self) -> DataLoader[UUID, Agent | None]:
        return _batching(partial(agents.seen_by, self._viewer))

    @cached_property
    def jobs(self) -> DataLoader[UUID, Job | None]:
        return _batching(partial(jobs.get_many, self._viewer))

    @cached_property
    def tags(self) -> DataLoader[UUID, list[str]]:
        return _batching(jobs.tags_of)

    @cached_property
    def criteria(self) -> DataLoader[tuple[UUID, int], CriteriaSet]:
        return _batching(jobs.criteria_of)

    @cached_property
    def criteria_sets(self) -> DataLoader[UUID, CriteriaSet | None]:
        return _batching(reading.criteria_sets)

    @cached_property
    def attempts(self) -> DataLoader[UUID, Attempt | None]:
        return _batching(reading.attempts)

    @cached_property
    def attempt_numbers(self) -> DataLoader[tuple[UUID, int], Attempt | None]:
        return _batching(reading.attempt_numbers)

    @cached_property
    def verdicts(self) -> DataLoader[UUID, list[Verdict]]:
        return _batching(reading.verdicts_of_attempts)

    @cached_property
    def latest_verdicts(self) -> DataLoader[UUID, Verdict | None]:
        return _batching(reading.latest_verdicts)

    @cached_property
    def circuits(self) -> DataLoader[UUID, Circuit]:
        return _batching(circuits.of_agents)

    @cached_property
    def running_counts(self) -> DataLoader[UUID, int]:
        return _batching(waiting.running_counts)

    @cached_property
    def waiting(self) -> DataLoader[UUID, str | None]:
        return _batching(waiting.reasons)

    @cached_property
    def cost_estimates(self) -> DataLoader[UUID, bool]:
        return _batching(budgets.are_estimates)

    @cached_property
    def positions(self) -> DataLoader[UUID, int]:
        return _batching(reading.positions)

    @cached_property
    def log_entries(self) -> DataLoader[int, JobLog | None]:
        return _batching(partial(reading.log_entries, self._viewer))

    @cached_property
    def unmet(self) -> DataLoader[UUID, list[Job]]:
        return _batching(dependencies.unmet_of)

    @cached_property
    def dependencies(self) -> DataLoader[UUID, list[JobDependency]]:
        return _batching(partial(dependencies.seen_by, self._viewer))


@dataclass(slots=True)
class Context:
    """What an operation runs in: the server's services and the caller."""

    rt: Runtime
    viewer: Viewer
    loaders: Loaders = field(init=False)

    def __post_init__(self) -> None:
        self.enter(self.viewer)

    def enter(self, viewer: Viewer) -> None:
        """Take `viewer` as the caller from now on."""
        self.viewer = viewer
        self.loaders = Loaders(viewer)

    async def listen(
        self, question: Question, messages: Callable[[Batch], Sequence[T]]
    ) -> AsyncGenerator[T, None]:
        """The messages of a subscription, as `messages` makes them of what is to be told."""
        async with aclosing(listening.follow(self.rt.events, question)) as batches:
            async for batch in batches:
                for message in messages(batch):
                    yield message


Info: TypeAlias = strawberry.Info[Context, None]
