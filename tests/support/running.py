from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web
from aiohttp.test_utils import TestClient

from signoff.settings import Settings

Client: TypeAlias = TestClient[web.Request, web.Application]
AiohttpClient: TypeAlias = Callable[[web.Application], Awaitable[Client]]


def settings_for(database_url: str, folder: Path, **changes: Any) -> Settings:
    """Settings of a test's own server: nothing of the environment's databases, keys or files."""
    given: dict[str, Any] = {
        "database_url": database_url,
        "key_file": folder / "signoff.key",
        "allow_private_agents": True,
        "allow_private_webhooks": True,
        "openai_api_key": None,
        "retry_initial_seconds": 0.01,
        "retry_max_seconds": 0.05,
        "shutdown_seconds": 2,
        "auth_failures_per_minute": 0,  # a test may fail as often as it likes
    }
    return Settings(**(given | changes))
