"""See the package for what this is and how to run it for hours."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation import invariants, world
from tests.simulation.actions import ACTIONS, Action
from tests.simulation.faults import FAULTS
from tests.simulation.world import JUDGE_KEY, Broken, Step, World

SEED = int(os.environ.get("SIGNOFF_SIMULATION_SEED") or 1)
STEPS = int(os.environ.get("SIGNOFF_SIMULATION_STEPS") or 1_000)
AT_ONCE = 10
"""Steps under way at the same time."""
CHECK_EVERY = 250
WHAT: dict[Action, float] = {**ACTIONS, **FAULTS}


@pytest.mark.timeout(120 + STEPS / 5)
async def test_invariants_hold_whatever_people_agents_and_machines_do(
    database_url: str, tmp_path: Path
) -> None:
    async with world.living(SEED, database_url, tmp_path) as living:
        try:
            await _live(living)
            await _end(living)
        except BaseException as error:
            error.add_note(living.tell_all(error.problems if isinstance(error, Broken) else ()))
            raise


async def _live(living: World) -> None:
    numbers = iter(range(1, STEPS + 1))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(_act(living, numbers))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _act(living: World, numbers: Iterator[int]) -> None:
    for number in numbers:
        step = Step.of(living.seed, number)
        (action,) = step.dice.choices(list(WHAT), list(WHAT.values()))
        await action(living, step)
        if number % CHECK_EVERY == 0:
            await living.check()


async def _end(living: World) -> None:
    """Everything comes to rest, everything was heard, and nothing secret was said."""
    found = await living.settle()
    await living.hear_all(found)
    secret = [kind.secret for kind in world.KINDS] + [JUDGE_KEY, *living.keys.values()]
    leaks = invariants.leaks(found, secret)
    if leaks:
        raise Broken(leaks)
    print(dict(living.counts))  # noqa: T201 - shown with -s
