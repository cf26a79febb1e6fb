"""Who may read the metrics while the keys cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from models.statements import Unavailable
from services.actors import LOCAL_ADMIN, Viewer
from services.errors import Unauthenticated
from signoff.auth import Gate
from signoff.scrapers import Scrapers

KEY = {"Authorization": "Bearer signoff_key"}


class Door(Gate):
    """Lets in whoever `answer` is, or fails as it says."""

    def __init__(self) -> None:
        super().__init__(local=False)
        self.answer: Viewer | Exception = LOCAL_ADMIN

    async def viewer(self, authorization: str | None, headers: Mapping[str, str]) -> Viewer:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def looked_up(viewer: Viewer) -> tuple[Door, Scrapers]:
    door, scrapers = Door(), Scrapers()
    door.answer = viewer
    assert await scrapers.viewer(door, KEY) == viewer
    return door, scrapers


async def test_key_that_was_good_is_taken_while_it_cannot_be_looked_up() -> None:
    door, scrapers = await looked_up(LOCAL_ADMIN)
    door.answer = Unavailable()
    assert await scrapers.viewer(door, KEY) == LOCAL_ADMIN
    for headers in ({}, {"Authorization": "Bearer signoff_other"}):
        with pytest.raises(Unavailable):
            await scrapers.viewer(door, headers)


async def test_key_that_was_refused_since_is_not() -> None:
    door, scrapers = await looked_up(LOCAL_ADMIN)
    for answer in (Unauthenticated("It is revoked."), Unavailable()):
        door.answer = answer
        with pytest.raises(type(answer)):
            await scrapers.viewer(door, KEY)


async def test_key_that_has_ended_since_is_not() -> None:
    ended = replace(LOCAL_ADMIN, expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    door, scrapers = await looked_up(ended)
    door.answer = Unavailable()
    with pytest.raises(Unavailable):
        await scrapers.viewer(door, KEY)
