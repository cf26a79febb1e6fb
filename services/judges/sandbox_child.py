"""The child of the sandbox: reads a call, answers it, reads the next, until its parent is gone."""

from __future__ import annotations

import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import Any

import orjson

from services.judges import languages

FUNCTIONS = {
    "evaluate": languages.evaluate,
    "find": languages.find,
    "search": languages.search,
    "mismatch": languages.mismatch,
}
LENGTH = struct.Struct(">I")
# Longer than the parent's patience: only for a child whose parent died.
GRACE = 2.0


def main(max_memory: int, deadline: float) -> None:
    _limit(max_memory)
    _warm_up()
    _write({"result": "ready"})
    while head := sys.stdin.buffer.read(LENGTH.size):
        # The kernel ends the child even inside native code, and if the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, deadline + GRACE)
        frame = sys.stdin.buffer.read(LENGTH.unpack(head)[0])
        answer = _answer(frame)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answer)


def _answer(frame: bytes) -> dict[str, Any]:
    try:
        function, *arguments = orjson.loads(frame)
        return {"result": FUNCTIONS[function](*arguments)}
    except (languages.NotEvaluated, languages.BadSource) as e:
        return {"error": str(e)}
    except MemoryError:
        return {"error": "it needed too much memory"}
    except Exception as e:  # noqa: BLE001 - whatever went wrong says nothing about the output
        return {"error": f"{type(e).__name__} in the evaluator"}


def _write(answer: dict[str, Any]) -> None:
    frame = orjson.dumps(answer)
    sys.stdout.buffer.write(LENGTH.pack(len(frame)) + frame)
    sys.stdout.buffer.flush()


def _limit(max_memory: int) -> None:
    limits = {
        resource.RLIMIT_AS: max_memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # macOS knows no RLIMIT_AS
            resource.setrlimit(limit, (value, value))


def _warm_up() -> None:
    languages.evaluate("true", {})
    languages.find("$", None, [])
