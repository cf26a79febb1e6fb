"""The machines: servers and workers that are started, killed, stopped and frozen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60
"""Longest wait for a process on a busy machine."""
STARTS = 3
END_SECONDS = 20
"""How long a stop may take at most."""


@dataclass
class Machine:
    """One process at a time; `up` while requests may be sent to it."""

    name: str
    arguments: tuple[str, ...]
    port: int
    log: Path
    pid: int | None = None
    up: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def serves(self) -> bool:
        return self.arguments[0] == "serve"

    def tell(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def alive(self) -> bool:
        try:
            os.kill(self.pid or 0, 0)
        except ProcessLookupError:
            return False
        return True


@dataclass
class Fleet:
    """All machines of a database."""

    nursery: Process
    folder: Path
    environment: Mapping[str, str]
    session: aiohttp.ClientSession
    machines: list[Machine] = field(default_factory=list[Machine])
    disturbed_at: float = 0.0
    """When a server was last cut off from its database, or from everything."""
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def servers(self) -> list[Machine]:
        return [each for each in self.machines if each.serves]

    async def add(self, name: str, *arguments: str) -> Machine:
        port = _free_port()
        log = self.folder / f"{name}.log"
        machine = Machine(name, (*arguments, "--port", str(port)), port, log)
        self.machines.append(machine)
        await self.start(machine)
        return machine

    async def start(self, machine: Machine) -> None:
        """Return when it answers; one that ends at once is started again, as a supervisor does."""
        async with asyncio.timeout(SECONDS):
            for _ in range(STARTS):
                machine.pid = await self._born(machine)
                while machine.alive():
                    if await self._answers(machine):
                        machine.up.set()
                        return
                    await asyncio.sleep(0.02)
        raise AssertionError(machine.log.read_text()[-20_000:])

    async def _born(self, machine: Machine) -> int:
        assert self.nursery.stdin
        assert self.nursery.stdout
        wanted = {
            "arguments": machine.arguments,
            "environment": dict(self.environment),
            "folder": str(self.folder),
            "log": str(machine.log),
        }
        async with self._asking:
            self.nursery.stdin.write(json.dumps(wanted).encode() + b"\n")
            return int(await self.nursery.stdout.readline())

    async def _answers(self, machine: Machine) -> bool:
        try:
            async with self.session.get(f"{machine.url}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def kill(self, machine: Machine) -> None:
        """As `kill -9`, or a power cut."""
        machine.up.clear()
        machine.tell(signal.SIGKILL)
        await self._ended(machine)

    async def stop(self, machine: Machine) -> None:
        """Ask it to end, which it must."""
        machine.up.clear()
        machine.tell(signal.SIGTERM)
        await self._ended(machine)

    async def _ended(self, machine: Machine) -> None:
        """Return when its process has ended; one that does not tells what it waits for."""
        try:
            async with asyncio.timeout(END_SECONDS):
                while machine.alive():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            machine.tell(signal.SIGUSR1)
            await asyncio.sleep(1)
            raise AssertionError(machine.log.read_text()[-20_000:]) from None

    async def freeze(self, machine: Machine, seconds: float) -> None:
        """It does nothing meanwhile, and goes on as if nothing had been."""
        machine.up.clear()
        machine.tell(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        machine.tell(signal.SIGCONT)
        self.disturbed_at = asyncio.get_running_loop().time()  # its patience is at an end, too
        machine.up.set()

    async def close(self) -> None:
        for machine in self.machines:
            if machine.pid is not None and machine.alive():
                machine.tell(signal.SIGKILL)
        assert self.nursery.stdin
        self.nursery.stdin.close()
        await self.nursery.wait()


@asynccontextmanager
async def nursing(folder: Path, environment: Mapping[str, str]) -> AsyncGenerator[Fleet]:
    """A fleet without machines yet; all of them are gone at the end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNOFF_", "OPENAI_"))}
    nursery = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.simulation.nursery"),
        cwd=ROOT,
        env=clean,
        stdin=PIPE,
        stdout=PIPE,
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        fleet = Fleet(nursery, folder, clean | dict(environment), session)
        try:
            assert nursery.stdout
            assert await nursery.stdout.readline() == b"ready\n"
            yield fleet
        finally:
            await fleet.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
