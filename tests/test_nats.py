"""NATS wakes other processes, and may be away without a loss."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from models import JobLog
from services import jobs
from services.bus import Announcer
from services.events import Events
from services.nats_bus import NatsBus
from services.runtime import Runtime
from signoff.wiring import BadSettings, runtime
from tests.support.making import MEMBER, holds, make_job
from tests.support.missing import missing
from tests.support.running import settings_for


@dataclass
class NatsServer:
    """A real one, on a port of its own, that can be stopped and started."""

    program: str
    port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(self.program, "-a", "127.0.0.1", "-p", str(self.port)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    program = shutil.which("nats-server")
    if program is None:
        missing("NATS", "install Debian's `nats-server`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = NatsServer(program, port)
    await made.start()
    yield made
    await made.stop()


@dataclass
class Ear:
    """What one process was told; True where it is something for workers."""

    bus: Announcer
    told: list[bool]

    def heard(self, *, work: bool) -> None:
        self.told.append(work)


@asynccontextmanager
async def listening(url: str) -> AsyncGenerator[Ear]:
    ear = Ear(NatsBus(url), [])
    await ear.bus.start(ear.heard)
    try:
        await holds(lambda: ear.told == [True])  # connected, and looks what it missed
        ear.told.clear()
        yield ear
    finally:
        await ear.bus.stop()


async def test_others_are_told_and_oneself_is_not(server: NatsServer) -> None:
    async with listening(server.url) as one, listening(server.url) as two:
        one.bus.tell(work=False)
        await holds(lambda: two.told == [False])
        two.bus.tell(work=True)
        await holds(lambda: one.told == [True])
        assert two.told == [False]


async def test_what_is_told_in_one_moment_is_told_in_one_message(server: NatsServer) -> None:
    async with listening(server.url) as one, listening(server.url) as two:
        for number in range(1000):
            one.bus.tell(work=number == 500)
        await holds(lambda: bool(two.told))
        one.bus.tell(work=False)
        await holds(lambda: two.told[-1] is False)
        assert two.told == [True, False]


async def test_the_last_word_before_the_end_is_heard(server: NatsServer) -> None:
    async with listening(server.url) as two:
        async with listening(server.url) as one:
            one.bus.tell(work=True)
        await holds(lambda: two.told == [True])


async def test_both_look_and_talk_again_when_nats_is_back(server: NatsServer) -> None:
    async with listening(server.url) as one, listening(server.url) as two:
        await server.stop()
        one.bus.tell(work=True)
        await server.start()
        await holds(lambda: True in one.told and True in two.told)
        one.told.clear()
        two.told.clear()
        two.bus.tell(work=False)
        await holds(lambda: False in one.told)


async def test_events_of_another_process_come_by_nats_and_also_while_it_is_away(
    server: NatsServer, postgres_url: str, tmp_path: Path
) -> None:
    settings = settings_for(postgres_url, tmp_path, nats_url=server.url)
    async with (
        runtime(settings, allow_private_agents=True, work=False) as ours,
        runtime(settings, allow_private_agents=True, work=False) as theirs,
    ):
        heard: list[int] = []
        job = await make_job(ours)
        listener = asyncio.create_task(_listen(theirs.events, heard))
        await holds(lambda: theirs.events.readers == 1)
        written = [await _note(ours, job.id) for _ in range(5)]
        await holds(lambda: heard[-5:] == written)
        await server.stop()
        written += [await _note(ours, job.id) for _ in range(5)]
        await holds(lambda: heard[-10:] == written)
        await server.start()
        written += [await _note(ours, job.id) for _ in range(5)]
        await holds(lambda: heard[-15:] == written)
        assert heard == sorted(set(heard))
        listener.cancel()
        await asyncio.wait([listener])


async def _note(rt: Runtime, job_id: UUID) -> int:
    return (await jobs.add_note(rt, MEMBER, job_id, "A note.")).seq


async def _listen(events: Events, heard: list[int]) -> None:
    async for entry in events.subscribe():
        assert isinstance(entry, JobLog)
        heard.append(entry.seq)


async def test_nats_beside_sqlite_is_refused_since_nobody_else_could_hear(tmp_path: Path) -> None:
    settings = settings_for(
        f"sqlite://{tmp_path}/signoff.db", tmp_path, nats_url="nats://127.0.0.1:4222"
    )
    with pytest.raises(BadSettings, match="SIGNOFF_NATS_URL is for several processes"):
        async with runtime(settings, allow_private_agents=True):
            pass
