"""Commands of ours in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

SECONDS = 60
"""Longest wait for a process on a busy machine."""


def environment(**given: str) -> dict[str, str]:
    """The settings given, and none of the developer's own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNOFF_", "OPENAI_"))}
    return clean | given


@asynccontextmanager
async def process(
    folder: Path, settings: Mapping[str, str], *arguments: str
) -> AsyncGenerator[Process]:
    """`signoff` with these arguments; killed at the end if it is still there."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signoff", *arguments),
        cwd=folder,
        env=settings,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def run(
    folder: Path, settings: Mapping[str, str], *arguments: str
) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of a command that must end by itself."""
    async with process(folder, settings, *arguments) as command:
        async with asyncio.timeout(SECONDS):
            out, err = await command.communicate()
        return command.returncode, out.decode(), err.decode()


async def until_line(command: Process, beginning: str) -> list[str]:
    """The lines it prints, up to one that begins so."""
    assert command.stdout
    lines: list[str] = []
    async with asyncio.timeout(SECONDS):
        while not (lines and lines[-1].startswith(beginning)):
            line = (await command.stdout.readline()).decode()
            assert line, lines
            lines.append(line.rstrip())
    return lines
