"""One reading for all who want it at the same time."""

from __future__ import annotations

import asyncio

import pytest

from services.events.coalesced import Coalesced


class Source:
    """Counts how often it is read; each reading ends when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.fails = False
        self._may_end = asyncio.Semaphore(0)

    async def read(self) -> int:
        self.begun += 1
        number = self.begun
        await self._may_end.acquire()
        if self.fails:
            raise ConnectionError
        return number

    def end(self) -> None:
        self._may_end.release()


async def turn() -> None:
    """Let all others do what they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_while_it_is_read_shares_the_next_reading() -> None:
    source = Source()
    newest = Coalesced(source.read)
    first = asyncio.create_task(newest())
    await turn()
    others = [asyncio.create_task(newest()) for _ in range(100)]
    await turn()
    assert source.begun == 1
    source.end()
    assert await first == 1
    await turn()
    assert source.begun == 2
    late = asyncio.create_task(newest())
    await turn()
    source.end()
    assert await asyncio.gather(*others) == [2] * 100
    source.end()
    assert await late == 3


async def test_who_gives_up_takes_it_from_nobody() -> None:
    source = Source()
    newest = Coalesced(source.read)
    one, other = asyncio.create_task(newest()), asyncio.create_task(newest())
    await turn()
    one.cancel()
    await turn()
    source.end()
    assert await other == 1
    assert one.cancelled()


async def test_a_failure_is_that_of_all_who_wanted_it_and_of_nobody_else() -> None:
    source = Source()
    newest = Coalesced(source.read)
    waiting = [asyncio.create_task(newest()) for _ in range(2)]
    await turn()
    source.fails = True
    source.end()
    for each in waiting:
        with pytest.raises(ConnectionError):
            await each
    source.fails = False
    source.end()
    assert await newest() == 2
