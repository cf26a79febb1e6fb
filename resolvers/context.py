from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar
from uuid import UUID

import strawberry
from strawberry.dataloader import DataLoader

from models import Agent, Attempt, CriteriaSet, Job, JobDependency, Verdict
from services import agents, budgets, circuits, dependencies, jobs, reading, waiting
from services.actors import Viewer
from services.circuits import Circuit
from services.runtime import Runtime

K = TypeVar("K")
T = TypeVar("T")


def _batching(load: Callable[[list[K]], Awaitable[list[T]]]) -> DataLoader[K, T]:
    return DataLoader(load_fn=load, cache=False)


@dataclass(slots=True)
class Loaders:
    """Batch the reads of one moment.

    Nothing is cached: a WebSocket keeps its context as long as it is open, and
    a cached row would be told to a subscriber long after it changed.
    """

    viewer: Viewer
    agents: DataLoader[UUID, Agent | None] = field(
        default_factory=lambda: _batching(agents.get_many)
    )
    jobs: DataLoader[UUID, Job | None] = field(init=False)
    tags: DataLoader[UUID, list[str]] = field(default_factory=lambda: _batching(jobs.tags_of))
    criteria: DataLoader[tuple[UUID, int], CriteriaSet] = field(
        default_factory=lambda: _batching(jobs.criteria_of)
    )
    criteria_sets: DataLoader[UUID, CriteriaSet | None] = field(
        default_factory=lambda: _batching(reading.criteria_sets)
    )
    attempts: DataLoader[UUID, Attempt | None] = field(
        default_factory=lambda: _batching(reading.attempts)
    )
    attempt_numbers: DataLoader[tuple[UUID, int], Attempt | None] = field(
        default_factory=lambda: _batching(reading.attempt_numbers)
    )
    verdicts: DataLoader[UUID, list[Verdict]] = field(
        default_factory=lambda: _batching(reading.verdicts_of_attempts)
    )
    latest_verdicts: DataLoader[UUID, Verdict | None] = field(
        default_factory=lambda: _batching(reading.latest_verdicts)
    )
    circuits: DataLoader[UUID, Circuit] = field(
        default_factory=lambda: _batching(circuits.of_agents)
    )
    running_counts: DataLoader[UUID, int] = field(
        default_factory=lambda: _batching(waiting.running_counts)
    )
    waiting: DataLoader[UUID, str | None] = field(
        default_factory=lambda: _batching(waiting.reasons)
    )
    cost_estimates: DataLoader[UUID, bool] = field(
        default_factory=lambda: _batching(budgets.are_estimates)
    )
    positions: DataLoader[UUID, int] = field(default_factory=lambda: _batching(reading.positions))

    unmet: DataLoader[UUID, list[Job]] = field(
        default_factory=lambda: _batching(dependencies.unmet_of)
    )
    dependencies: DataLoader[UUID, list[JobDependency]] = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = _batching(partial(jobs.get_many, self.viewer))
        self.dependencies = _batching(partial(dependencies.seen_by, self.viewer))


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


Info: TypeAlias = strawberry.Info[Context, None]
