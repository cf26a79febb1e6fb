"""A server in a process of its own, that can be killed and started again."""

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
class Server:
    """`environment` are the settings; what it prints goes to `log` in `folder`."""

    folder: Path
    environment: Mapping[str, str]
    port: int
    process: Process | None = None
    session: aiohttp.ClientSession = field(default_factory=aiohttp.ClientSession)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    async def start(self) -> None:
        """Return when it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "signoff", "serve", "--port", str(self.port)),
                env=self.environment,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_SECONDS):
            while not await self._healthy():
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)

    async def _healthy(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def kill(self) -> None:
        """As `kill -9`, or a power cut."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    async def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an operation that must succeed."""
        body = {"query": query, "variables": variables}
        async with self.session.post(f"{self.url}/graphql", json=body) as response:
            answer = await response.json()
        assert "errors" not in answer, answer
        return answer["data"]


@asynccontextmanager
async def serving(
    database_url: str, folder: Path, **environment: str
) -> AsyncGenerator[Server, None]:
    """A started server; killed at the end if it is still there."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNOFF_", "OPENAI_"))}
    given = {
        "SIGNOFF_DATABASE_URL": database_url,
        "SIGNOFF_KEY_FILE": str(folder / "signoff.key"),
        "SIGNOFF_ALLOW_PRIVATE_AGENTS": "1",
        "SIGNOFF_SAMPLE_AGENT": "0",
        "SIGNOFF_LEASE_SECONDS": "2",
        "SIGNOFF_HEARTBEAT_SECONDS": "0.3",
        "SIGNOFF_SHUTDOWN_SECONDS": "1",
    }
    server = Server(folder, clean | given | environment, _free_port())
    try:
        await server.start()
        yield server
    finally:
        if server.process is not None:
            await server.kill()
        await server.session.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
