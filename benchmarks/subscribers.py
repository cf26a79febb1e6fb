"""Subscriptions to many: shared beside each by itself, and what one costs that waits.

    python benchmarks/subscribers.py [--subscribers 500] [--seconds 5] [--idle 10000]

The server is a process of its own, on SQLite, and so is the client, which only counts what
comes in. Entries are written to the log one after the other, each when the one before has been
told to everybody; all of the way from the table to the sockets counts. Without sharing, each gets
its events from memory, and all it does is execute and send. The limit is what the event loop
alone takes to write as many bytes to the same sockets. Rounds alternate; the best of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import resource
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
import uvloop
from aiohttp import web

from models import Job, JobLog
from models.job_log import JobLogType
from resolvers.context import Context
from services import jobs, log
from services.actors import LOCAL_ADMIN, Viewer
from services.jobs import CreateJob
from services.listening import Batch, Question
from services.transactions import unannounced
from signoff import logs, results
from signoff.app import RUNTIME, VIEW, create_app
from signoff.asked import Asked
from signoff.cli import keep_what_is_loaded
from signoff.guarding import Guard
from signoff.hub import Hub
from signoff.settings import Settings
from signoff.subscribers import Subscriber

T = TypeVar("T")

HOST = "127.0.0.1"
PORTS = {"shared": 8395, "plain": 8396}
QUERY = """subscription {
  jobStatusChanged { cursor from to reason at actor { kind name } job { id name status } } }"""
HANDSHAKE = (
    b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
NEXT = b'"type":"next"'
PING, PONG = b"\x89\x00", b"\x8a\x80" + bytes(4)
MOVE = {"from": "PENDING", "to": "ASSIGNED", "reason": "CREATED"}
READ_BYTES = 1 << 20
FRAME_BYTES = 420
"""About what a change takes."""
WARM = 100
"""Subscribers who are there before the others are counted, as the first ones cost more."""


class Tally:
    """Counts messages that were written, as the counter does whose place it takes."""

    def __init__(self) -> None:
        self.written = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def inc(self, amount: int = 1) -> None:
        self.written += amount
        if self.written >= self._wanted:
            self._reached.set()

    async def until(self, total: int) -> None:
        self._wanted = total
        self._reached.clear()
        if self.written < total:
            await self._reached.wait()


# The server


PLAIN: list[asyncio.Queue[Batch]] = []
"""One for each subscription that is not shared."""


class Plain(Hub):
    """Each subscription executes and encodes its own events, and awaits that they are sent."""

    async def run(self, asked: Asked, viewer: Viewer, subscriber: Subscriber) -> None:
        async with aclosing(results.stream(Guard(), Listening(self.rt, viewer), asked)) as payloads:
            async for payload in payloads:
                await subscriber.send(payload)
                self.rt.telemetry.frames.inc()


class Listening(Context):
    async def listen(
        self, question: Question, messages: Callable[[Batch], Sequence[T]]
    ) -> AsyncGenerator[T, None]:
        queue: asyncio.Queue[Batch] = asyncio.Queue()
        PLAIN.append(queue)
        try:
            while True:
                for message in messages(await queue.get()):
                    yield message
        finally:
            PLAIN.remove(queue)


async def publish(
    app: web.Application, kind: str, seconds: float, members: int, burst: int
) -> dict[str, Any]:
    """Tell of changes for so long, each burst when the one before was written to everybody."""
    rt, tally = app[RUNTIME], app[TALLY]
    job = await Job.all().first()
    assert job
    began, spent, events, before = time.perf_counter(), time.process_time(), 0, tally.written
    while time.perf_counter() - began < seconds:
        async with unannounced():
            for _ in range(burst):
                log.append(job, JobLogType.STATUS_CHANGE, LOCAL_ADMIN, payload=MOVE)
        if kind == "plain":
            rows = await JobLog.all().order_by("-seq").limit(burst)
            told = [(row, await Job.get(id=job.id)) for row in reversed(rows)]
            for queue in PLAIN:
                queue.put_nowait(Batch(rows[0].seq, told, caught_up=True))
        else:
            rt.events.wake()
        events += burst
        await tally.until(before + events * members)
    return {
        "frames": events * members,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
    }


async def write(app: web.Application, seconds: float) -> dict[str, Any]:
    """The same bytes to all sockets, again and again, and nothing else."""
    (group,) = cast("Any", app[VIEW].hub)._groups.values()  # noqa: SLF001
    sockets = [each._connection.transport for each in group.members]  # noqa: SLF001
    data = b"\x81\x7e" + struct.pack("!H", FRAME_BYTES) + NEXT.ljust(FRAME_BYTES)
    began, spent, frames = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        for each in sockets:
            each.write(data)
        frames += len(sockets)
        await asyncio.sleep(0)
    return {
        "frames": frames,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
    }


TALLY: web.AppKey[Tally] = web.AppKey("tally", Tally)


def application(kind: str, folder: str) -> web.Application:
    settings = Settings(
        database_url=f"sqlite://{folder}/{kind}.db",
        key_file=Path(folder) / f"{kind}.key",
        max_client_connections=1_000_000,
        max_client_operations=1_000_000,
    )
    app = create_app(settings, work=False)
    tally = app[TALLY] = Tally()

    async def begin(app: web.Application) -> None:
        wanted = {"name": "benchmark", "acceptance_criteria": {"text": "- It is good."}}
        await jobs.create(app[RUNTIME], LOCAL_ADMIN, CreateJob.model_validate(wanted))
        cast("Any", app[RUNTIME].telemetry).frames = tally
        if kind == "plain":
            app[VIEW].hub = Plain(app[RUNTIME], Guard())

    async def published(request: web.Request) -> web.Response:
        members, burst = (int(request.query[name]) for name in ("members", "burst"))
        done = await publish(app, kind, float(request.query["seconds"]), members, burst)
        return web.json_response(done)

    async def written(request: web.Request) -> web.Response:
        return web.json_response(await write(app, float(request.query["seconds"])))

    async def waiting(_: web.Request) -> web.Response:
        count = len(PLAIN) if kind == "plain" else app[VIEW].hub.subscribers
        return web.json_response({"subscribers": count})

    async def memory(_: web.Request) -> web.Response:
        gc.collect()
        return web.json_response({"bytes": resident()})

    app.on_startup.append(begin)
    app.router.add_get("/publish", published)
    app.router.add_get("/write", written)
    app.router.add_get("/waiting", waiting)
    app.router.add_get("/memory", memory)
    return app


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def serve(kind: str, folder: str) -> None:
    raise_limit()
    logs.configure("ERROR")
    app, loop = application(kind, folder), uvloop.new_event_loop()
    keep_what_is_loaded()
    web.run_app(app, host=HOST, port=PORTS[kind], print=None, access_log=None, loop=loop)


def raise_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# The client


def until(seen: Callable[[], T | None]) -> T:
    for _ in range(600):
        with suppress(ConnectionError, AttributeError):
            if found := seen():
                return found
        time.sleep(0.1)
    raise TimeoutError


def asked(kind: str, path: str) -> dict[str, Any]:
    connection = HTTPConnection(HOST, PORTS[kind], timeout=120)
    try:
        connection.request("GET", path)
        return orjson.loads(connection.getresponse().read())
    finally:
        connection.close()


def frame(message: object) -> bytes:
    """A masked text frame; a mask of zeros is one too."""
    data = orjson.dumps(message)
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))  # noqa: PLR2004
    return b"\x81" + size + bytes(4) + data


class Reader(threading.Thread):
    """Subscribes with many sockets, and reads what comes; answers pings, else they are closed."""

    def __init__(self, kind: str, count: int) -> None:
        super().__init__(daemon=True)
        self.received = 0
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._closed = False
        self.start()
        for number in range(count):
            opened = socket.create_connection((HOST, PORTS[kind]))
            opened.sendall(HANDSHAKE + frame({"type": "connection_init"}))
            while b"connection_ack" not in opened.recv(READ_BYTES):
                pass
            id = f"{number:08x}-0000-4000-8000-000000000000"
            subscribe = {"id": id, "type": "subscribe", "payload": {"query": QUERY}}
            opened.sendall(frame(subscribe))
            self._sockets[opened.fileno()] = opened
            self._poll.register(opened, select.EPOLLIN)

    def run(self) -> None:
        while not self._closed:
            for number, _ in self._poll.poll(0.2):
                came = self._sockets[number].recv(READ_BYTES)
                self.received += came.count(NEXT)
                if PING in came:
                    self._sockets[number].sendall(PONG)

    def close(self) -> None:
        self._closed = True
        self.join()
        for each in self._sockets.values():
            each.close()


def rate(kind: str, members: int, path: str) -> tuple[float, float]:
    """Frames a second that came in, and the server's microseconds for one of them."""
    reader = Reader(kind, members)
    try:
        until(lambda: asked(kind, "/waiting")["subscribers"] == members)
        done = asked(kind, path)
        until(lambda: reader.received >= done["frames"])
        assert reader.received == done["frames"]
    finally:
        reader.close()
        until(lambda: asked(kind, "/waiting")["subscribers"] == 0)
    return done["frames"] / done["seconds"], done["cpu"] / done["frames"] * 1e6


def idle(kind: str, members: int) -> float:
    """The bytes that one more subscriber takes who waits."""
    readers = [Reader(kind, WARM)]
    until(lambda: asked(kind, "/waiting")["subscribers"] == WARM)
    before = asked(kind, "/memory")
    readers.append(Reader(kind, members))
    until(lambda: asked(kind, "/waiting")["subscribers"] == WARM + members)
    after = asked(kind, "/memory")
    for each in readers:
        each.close()
    return (after["bytes"] - before["bytes"]) / members


def compare(members: int, seconds: float, rounds: int, burst: int) -> None:
    published = f"/publish?seconds={seconds}&members={members}&burst={burst}"
    ways = {
        "shared": ("shared", published),
        "plain": ("plain", published),
        "limit": ("shared", f"/write?seconds={seconds}"),
    }
    best = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(rounds):
        for way, (kind, path) in ways.items():
            best[way] = max(best[way], rate(kind, members, path))
    (shared, cost), (plain, plain_cost) = best["shared"], best["plain"]
    limit, limit_cost = best["limit"]
    print(
        f"{members} subscribers, changes in bursts of {burst}: shared {shared:,.0f} frames/s "
        f"({cost:.1f} µs of CPU each), plain {plain:,.0f} ({plain_cost:.0f} µs), "
        f"ratio {shared / plain:.1f}; limit {limit:,.0f} ({limit_cost:.1f} µs), "
        f"of which shared is {shared / limit:.0%}",
        flush=True,
    )


def measure(given: argparse.Namespace) -> None:
    for kind in PORTS:
        until(partial(asked, kind, "/waiting"))
    for burst in given.bursts:
        compare(given.subscribers, given.seconds, given.rounds, burst)
    if given.idle:
        print(f"{given.idle} subscribers that wait: {idle('shared', given.idle):,.0f} bytes each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bursts", type=int, nargs="*", default=[1, 10], help="changes at once")
    parser.add_argument("--idle", type=int, default=10_000, help="subscribers that wait")
    given = parser.parse_args()
    raise_limit()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        servers = [
            context.Process(target=serve, args=(kind, folder), daemon=True) for kind in PORTS
        ]
        for server in servers:
            server.start()
        try:
            measure(given)
        finally:
            for server in servers:
                server.terminate()
                server.join()


if __name__ == "__main__":
    main()
