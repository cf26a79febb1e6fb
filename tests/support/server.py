"""Servers and workers in processes of their own, that can be stopped in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

START_SECONDS = 60


@dataclass
class Program:
    """`signoff` with `arguments` in a process; what it prints goes to `name`.log in `folder`."""

    folder: Path
    environment: Mapping[str, str]
    name: str
    arguments: tuple[str, ...] = ()
    process: Process | None = None

    @property
    def log(self) -> str:
        return self._file.read_text()

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    async def start(self) -> None:
        """Return when it is ready."""
        with self._file.open("ab") as log:
            begins_at = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "signoff", *self.arguments),
                env=self.environment,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_SECONDS):
            while not await self._is_ready(self._file.read_bytes()[begins_at:].decode()):
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)

    async def _is_ready(self, printed: str) -> bool:
        return "is ready." in printed

    async def kill(self) -> None:
        """As `kill -9`, or a power cut."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return await self._end(signal.SIGTERM)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


@dataclass
class Server(Program):
    port: int = 0
    session: aiohttp.ClientSession = field(default_factory=aiohttp.ClientSession)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _is_ready(self, printed: str) -> bool:
        try:
            async with self.session.get(f"{self.url}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an operation that must succeed."""
        answer = await self.answer(query, **variables)
        assert "errors" not in answer, answer
        return answer["data"]

    async def answer(self, query: str, **variables: Any) -> dict[str, Any]:
        """The whole answer, errors and all."""
        body = {"query": query, "variables": variables}
        async with self.session.post(f"{self.url}/graphql", json=body) as response:
            return await response.json()


def _environment(database_url: str, folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNOFF_", "OPENAI_"))}
    defaults = {
        "SIGNOFF_DATABASE_URL": database_url,
        "SIGNOFF_KEY_FILE": str(folder / "signoff.key"),
        "SIGNOFF_ALLOW_PRIVATE_AGENTS": "1",
        "SIGNOFF_ALLOW_PRIVATE_WEBHOOKS": "1",
        "SIGNOFF_SAMPLE_AGENT": "0",
        "SIGNOFF_LEASE_SECONDS": "2",
        "SIGNOFF_HEARTBEAT_SECONDS": "0.3",
        "SIGNOFF_SHUTDOWN_SECONDS": "1",
    }
    return clean | defaults | dict(given)


@asynccontextmanager
async def serving(
    database_url: str, folder: Path, *options: str, **environment: str
) -> AsyncGenerator[Server, None]:
    """A started server; killed at the end if it is still there."""
    port = _free_port()
    arguments = ("serve", "--port", str(port), *options)
    settings = _environment(database_url, folder, environment)
    server = Server(folder, settings, "server", arguments, port=port)
    try:
        await server.start()
        yield server
    finally:
        if server.process is not None:
            await server.kill()
        await server.session.close()


@asynccontextmanager
async def working(
    database_url: str, folder: Path, name: str, **environment: str
) -> AsyncGenerator[Program, None]:
    """A started `signoff worker`; killed at the end if it is still there."""
    settings = _environment(database_url, folder, environment)
    worker = Program(folder, settings, name, ("worker",))
    try:
        await worker.start()
        yield worker
    finally:
        if worker.process is not None:
            await worker.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
