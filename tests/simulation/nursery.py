"""Servers in processes of their own that start in a fraction of a second.

    python -m tests.simulation.nursery

imports the product once; each line of JSON on its standard input is a server to be forked off,
whose process id it answers with. When its input ends, so do they.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

PRELOADED = (
    "openai",
    "openai.resources.chat.completions",
    "openai.resources.responses",
    "signoff.cli",
    "signoff.postgres",
    "signoff.sqlite",
)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to wait for the killed
    born: list[int] = []
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        born.append(pid)
        print(pid, flush=True)  # noqa: T201
    for pid in born:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(wanted: dict[str, Any]) -> None:
    """Be the command; never returns."""
    code: object = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _redirect(wanted["log"])
        signal.signal(signal.SIGUSR1, _tell_tasks)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        from signoff import cli  # noqa: PLC0415 - is loaded already

        cli.main(wanted["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the log shall have it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _tell_tasks(*_: object) -> None:
    """What a process that does not end is waiting for, into its log."""
    for task in asyncio.all_tasks():
        task.print_stack()
    sys.stderr.flush()


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    main()
