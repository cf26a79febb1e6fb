"""Checks that users wrote, evaluated in child processes that can be killed.

CEL, JSONPath and recursive schemas can take years and gigabytes on small input,
and native parsers can crash. A child gets no environment, little memory, and a
deadline; what breaks it is an answer too, and the next call gets a new child.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from services.judges.languages import NotEvaluated

ROOT = Path(__file__).parents[2]
MAX_MEMORY = 1 << 30
MAX_FRAME = 1 << 20
START_SECONDS = 20
LENGTH = struct.Struct(">I")
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from services.judges.sandbox_child import main; main(int(sys.argv[2]), float(sys.argv[3]))"
)


class ChildDied(Exception):
    """The child ended before it answered."""


class WouldTakeTime(Exception):
    """A check that is not done in this process."""


class Sandbox:
    """A few warm children, started when first needed. `close` it when done.

    Every method raises `NotEvaluated` when no answer comes within `deadline` seconds,
    not counting the `patience` seconds that one may wait for a free child.
    """

    def __init__(self, *, children: int = 2, deadline: float = 2, patience: float = 20) -> None:
        self._deadline = deadline
        self._patience = patience
        self._free = asyncio.Semaphore(children)
        self._idle: list[asyncio.subprocess.Process] = []
        self._closed = False

    async def evaluate(self, source: str, variables: dict[str, Any]) -> tuple[bool, str]:
        """Whether a CEL expression holds, and why not."""
        holds, why = await self._call("evaluate", source, variables)
        return bool(holds), str(why)

    async def find(self, path: str, value: Any, wanted: list[Any]) -> dict[str, Any]:
        """See `languages.find`."""
        return await self._call("find", path, value, wanted)

    async def search(self, pattern: str, text: str) -> tuple[int, int] | None:
        """Where RE2 finds the pattern first."""
        span = await self._call("search", pattern, text)
        return None if span is None else (span[0], span[1])

    async def mismatch(self, schema_text: str, value: Any) -> dict[str, Any] | None:
        """See `languages.mismatch`."""
        return await self._call("mismatch", schema_text, value)

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await _kill(self._idle.pop())

    async def _call(self, function: str, *arguments: Any) -> Any:
        try:
            frame = orjson.dumps([function, *arguments])
        except TypeError as e:
            raise NotEvaluated(f"the value cannot be read: {e}") from None
        try:
            answer = await self._exchange(frame)
        except ChildDied:  # perhaps before it was called
            answer = await self._again(frame)
        if "error" in answer:
            raise NotEvaluated(answer["error"])
        return answer["result"]

    @asynccontextmanager
    async def _child(self) -> AsyncGenerator[asyncio.subprocess.Process, None]:
        """A child of one's own; it serves again only if all went well."""
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise NotEvaluated("too many other checks are being evaluated") from None
        try:
            child = await self._ready()
            try:
                yield child
            except BaseException:
                _signal(child)  # it may be in the midst of something
                await asyncio.shield(child.wait())
                raise
            if self._closed:
                await _kill(child)
            else:
                self._idle.append(child)
        finally:
            self._free.release()

    async def _ready(self) -> asyncio.subprocess.Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return await self._start()

    async def _start(self) -> asyncio.subprocess.Process:
        """A child that has said it is ready, so that a deadline is not spent on starting."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", START, str(ROOT), str(MAX_MEMORY), str(self._deadline)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl+C is for the server, which may finish its work
        )
        try:
            await _answer(child, START_SECONDS)
        except BaseException:
            _signal(child)
            await asyncio.shield(child.wait())
            raise
        return child

    async def _again(self, frame: bytes) -> dict[str, Any]:
        try:
            return await self._exchange(frame)
        except ChildDied:
            raise NotEvaluated("it needed too much memory, or broke the evaluator") from None

    async def _exchange(self, frame: bytes) -> dict[str, Any]:
        async with self._child() as child:
            assert child.stdin  # noqa: S101 - a pipe was asked for
            child.stdin.write(LENGTH.pack(len(frame)) + frame)
            return await _answer(child, self._deadline)


class NoSandbox(Sandbox):
    """For checks that take no time; any other one raises `WouldTakeTime`."""

    async def _call(self, function: str, *arguments: Any) -> Any:
        raise WouldTakeTime(function)


async def _answer(child: asyncio.subprocess.Process, seconds: float) -> dict[str, Any]:
    assert child.stdout  # noqa: S101 - a pipe was asked for
    try:
        async with asyncio.timeout(seconds):
            (length,) = LENGTH.unpack(await child.stdout.readexactly(LENGTH.size))
            if length > MAX_FRAME:
                raise NotEvaluated("the answer is too long")
            return orjson.loads(await child.stdout.readexactly(length))
    except TimeoutError:
        raise NotEvaluated(f"it took longer than {seconds:g} s") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise ChildDied from None


def _signal(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.kill()


async def _kill(child: asyncio.subprocess.Process) -> None:
    _signal(child)
    await child.wait()
