"""Two jobs through a running server's API, each step told in the terminal."""

from __future__ import annotations


async def run(url: str, key: str | None) -> None: ...
