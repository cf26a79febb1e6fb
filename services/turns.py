"""Turns at writing to one log: those of this process write one after another.

Who came at once would each find the log longer than it was read, hash anew and write again.
Across processes that is how it goes; the guard on the log's end decides, a turn does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.chain import Chain
from services.errors import DatabaseUnavailable


class Turn(asyncio.Lock):
    """At the log of the job or workspace whose id is the number `log`.

    `wanted` are those who have it or wait for it; `end` is the hash that the log ended with
    after the turn before, if that is known.
    """

    def __init__(self, log: int) -> None:
        super().__init__()
        self.log = log
        self.wanted = 0
        self.end: str | None = None


Turns = dict[int, Turn]
"""Those that are wanted by somebody, by their logs; others are forgotten."""
Held = list[tuple[Chain, Turn]]


async def take_turns(turns: Turns, chains: Sequence[Chain], until: float | None) -> Held:
    """Wait for the turn at each log that others may write to.

    Always in one order, so nobody waits for who waits for them. Raises `DatabaseUnavailable` if
    a turn has not come at the loop's time `until`.
    """
    wanted = [(chain, _wanted(turns, int(chain.owner.id))) for chain in chains if not chain.is_new]
    if len(wanted) > 1:
        wanted.sort(key=_order)
    held: Held = []
    try:
        for each in wanted:
            await _have(each[1], until)
            held.append(each)
    except BaseException:
        give_back(turns, held)
        _leave(turns, wanted[len(held) :])
        raise
    return held


def give_back(turns: Turns, held: Held) -> None:
    """Let the next ones write."""
    for _, turn in held:
        turn.release()
    _leave(turns, held)


def _order(each: tuple[Chain, Turn]) -> int:
    return each[1].log


def _wanted(turns: Turns, log: int) -> Turn:
    turn = turns.get(log)
    if turn is None:
        turn = turns[log] = Turn(log)
    turn.wanted += 1
    return turn


async def _have(turn: Turn, until: float | None) -> None:
    if turn.wanted == 1:
        await turn.acquire()  # nobody else can have it, so this waits for nothing
        return
    try:
        async with asyncio.timeout_at(until):
            await turn.acquire()
    except TimeoutError:
        raise DatabaseUnavailable from None


def _leave(turns: Turns, wanted: Held) -> None:
    for _, turn in wanted:
        turn.wanted -= 1
        if not turn.wanted:
            del turns[turn.log]
