"""The end of a process that was asked to end: in time, whatever hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import structlog

logger = structlog.get_logger(__name__)

CLOSING_SECONDS = 4.5
"""For all that is to be done when the time of the executions is over, together."""


async def asked() -> None:
    """Return when the process is asked to end."""
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, heard.set)
    await heard.wait()


def begin(grace_seconds: float) -> None:
    """End the process at the latest `CLOSING_SECONDS` after its executions have had their time.

    What is not done by then is cut off, which does no more harm than a crash: the rows say how to
    go on. It is a thread that does it, since the event loop may be what hangs, or another thread
    that the interpreter would wait for.
    """
    logger.info("stopping")
    last = threading.Timer(grace_seconds + CLOSING_SECONDS, _cut)
    last.daemon = True
    last.start()


def _cut() -> None:
    logger.warning("ending with work under way; it goes on where the rows say")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
