"""What one client costs the others who sends a WebSocket as many frames as it takes.

    python benchmarks/floods.py [SECONDS]

A server as `signoff serve` runs it, on SQLite with its default settings. A process of its own
floods it, from one connection at a time: closed, it connects again at once. Meanwhile
`{ __typename }` is asked without a pause. Prints how the first connection ended and when, how
many there were, and the median and the longest of the answers.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import median

import aiohttp

PORT = 8396
URL = f"http://127.0.0.1:{PORT}/graphql"
PROBE = {"query": "{ __typename }"}
BLOCK = 1_000_000
HANDSHAKE = (
    f"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
).encode()
TEXT, PING, CONTINUATION, BEGINNING = 0x81, 0x89, 0x00, 0x01


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Masked with zeros; `payload` has less than 126 bytes."""
    return bytes([kind, 0x80 | len(payload)]) + bytes(4) + payload


INIT = frame(TEXT, b'{"type":"connection_init"}')
SUBSCRIBE = b'{"id":"%d","type":"subscribe","payload":{"query":"{__typename}"}}'
FLOODS = {
    "nothing": (b"", b""),
    "`ping` before `connection_init`": (b"", frame(TEXT, b'{"type":"ping"}')),
    "`pong` after it": (INIT, frame(TEXT, b'{"type":"pong"}')),
    "`ping` after it": (INIT, frame(TEXT, b'{"type":"ping"}')),
    "`complete` of no operation": (INIT, frame(TEXT, b'{"type":"complete","id":"1"}')),
    "`subscribe`": (INIT, b"".join(frame(TEXT, SUBSCRIBE % n) for n in range(1_000))),
    "ping frames before it": (b"", frame(PING)),
    "ping frames after it": (INIT, frame(PING)),
    "empty fragments": (frame(BEGINNING), frame(CONTINUATION)),
    "what is no message": (INIT, frame(TEXT)),
}


class Flood:
    """One that goes on until its process is stopped."""

    def __init__(self, name: str, out: Connection) -> None:
        self._opening, one = FLOODS[name]
        self._block = one * (BLOCK // len(one))
        self._out = out

    def run(self) -> None:
        while True:
            began = time.perf_counter()
            with socket.create_connection(("127.0.0.1", PORT)) as connection:
                got = bytearray()
                reader = threading.Thread(target=self._read, args=(connection, got))
                reader.start()
                self._write(connection)
                reader.join()
            self._out.send((ended(bytes(got)), time.perf_counter() - began))

    def _write(self, connection: socket.socket) -> None:
        try:
            connection.sendall(HANDSHAKE + self._opening)
            while True:
                connection.sendall(self._block)
        except OSError:
            pass

    def _read(self, connection: socket.socket, got: bytearray) -> None:
        try:
            while data := connection.recv(262_144):
                got[:] = got[-200:] + data
        except OSError:
            pass


def ended(got: bytes) -> str:
    """Code and reason of the close frame that the server's bytes end with."""
    at = got.rfind(b"\x88")
    if at < 0 or len(got) < at + 4 or got[at + 1] != len(got) - at - 2:
        return "cut off"
    return f"{struct.unpack('>H', got[at + 2 : at + 4])[0]} {got[at + 4 :].decode()}"


def flooding(name: str, out: Connection) -> None:
    Flood(name, out).run()


@contextmanager
def server() -> Generator[None]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "SIGNOFF_DATABASE_URL": f"sqlite:///{folder}/signoff.db",
            "SIGNOFF_KEY_FILE": f"{folder}/signoff.key",
            "SIGNOFF_SAMPLE_AGENT": "false",
        }
        command = [sys.executable, "-m", "signoff", "serve", "--port", str(PORT)]
        environment = dict(os.environ) | settings
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


async def asked(session: aiohttp.ClientSession) -> float:
    """Milliseconds until it was answered."""
    began = time.perf_counter()
    async with session.post(URL, json=PROBE) as response:
        await response.read()
    return (time.perf_counter() - began) * 1000


async def ready(session: aiohttp.ClientSession) -> None:
    for _ in range(600):
        try:
            await asked(session)
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.1)
        else:
            return
    raise TimeoutError("the server does not answer")


async def measured(session: aiohttp.ClientSession, name: str, seconds: float) -> str:
    results, out = multiprocessing.Pipe(duplex=False)
    flood = multiprocessing.Process(target=flooding, args=(name, out), daemon=True)
    if FLOODS[name][1]:
        flood.start()
        await asyncio.sleep(0.5)
    waits: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        waits.append(await asked(session))
    if flood.is_alive():
        flood.kill()
        flood.join()
    ends: list[tuple[str, float]] = []
    while results.poll():
        ends.append(results.recv())
    told = f"{ends[0][0]} | {ends[0][1] * 1000:.0f} ms" if ends else "open |"
    return f"| {name} | {told} | {len(ends)} | {median(waits):.1f} ms | {max(waits):.0f} ms |"


async def table(seconds: float) -> None:
    async with aiohttp.ClientSession() as session:
        await ready(session)
        print("| sent | the first ended | after | ended | median | longest |")
        print("|---|---|---|---|---|---|")
        for name in FLOODS:
            print(await measured(session, name, seconds), flush=True)


if __name__ == "__main__":
    with server():
        asyncio.run(table(float(sys.argv[1]) if len(sys.argv) > 1 else 10))
