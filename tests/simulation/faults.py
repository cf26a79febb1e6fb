"""What happens to machines and databases. `FAULTS` says how often; each is one step."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress

from tests.simulation import snapshot
from tests.simulation.actions import Action
from tests.simulation.fleet import Machine
from tests.simulation.world import SETTINGS, Step, World
from tests.support.making import holds

FROZEN_SECONDS = float(SETTINGS["SIGNOFF_LEASE_SECONDS"]) + 0.5
"""Long enough to be taken for dead."""
LOCKED_SECONDS = 0.3
BUSY_SECONDS = 0.5
CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name <> $1 AND random() < $2"""


async def crash(world: World, step: Step) -> None:
    """`kill -9` anywhere; what is left behind is whole, before the next one starts too."""
    machine = _any(world, step)
    async with machine.changing:
        if step.chance(0.8):
            await _until_busy(world)
        world.tell(f"{step.number:06} kill -9 {machine.name}")
        await world.fleet.kill(machine)
        if world.on_sqlite or step.chance(0.2):
            await world.check()
        await world.fleet.start(machine)


async def _until_busy(world: World) -> None:
    """For a moment, in which some agent may be at work that would do it twice."""
    with suppress(TimeoutError):
        await holds(lambda: world.cast.at_work > 0, BUSY_SECONDS)


async def stop(world: World, step: Step) -> None:
    """SIGTERM, and the next one."""
    machine = _any(world, step)
    async with machine.changing:
        world.tell(f"{step.number:06} stop {machine.name}")
        await world.fleet.stop(machine)
        await world.fleet.start(machine)


async def freeze(world: World, step: Step) -> None:
    """A machine that others take for dead goes on afterwards."""
    machine = _any(world, step)
    async with machine.changing:
        world.tell(f"{step.number:06} freeze {machine.name}")
        await world.fleet.freeze(machine, FROZEN_SECONDS)


async def cut(world: World, step: Step) -> None:
    """Connections to the database break, all or some."""
    if world.on_sqlite:
        await _lock(world, step)
        return
    share = step.one([0.3, 1.0])
    world.tell(f"{step.number:06} cut {share:.0%} of the connections")
    connection = await snapshot.connect(world.database_url)
    world.fleet.disturbed_at = asyncio.get_running_loop().time()
    try:
        await connection.fetch(CUT, snapshot.OURS, share)
    finally:
        world.fleet.disturbed_at = asyncio.get_running_loop().time()
        await connection.close()


async def _lock(world: World, step: Step) -> None:
    """Another process holds the file for a while."""
    world.tell(f"{step.number:06} lock the file")
    path = world.database_url.removeprefix("sqlite://")
    await asyncio.to_thread(_hold, path)


def _hold(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_SECONDS)


def _any(world: World, step: Step) -> Machine:
    return step.one(world.fleet.machines)


FAULTS: Mapping[Action, float] = {crash: 0.9, stop: 0.15, freeze: 0.15, cut: 0.7}
