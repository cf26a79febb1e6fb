"""The WebSockets and event streams that are open in this process, and who holds them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from services.actors import NOBODY, Viewer
from services.errors import ErrorCode, LimitExceeded, Unauthenticated
from signoff.auth import Gate
from signoff.refusals import Refused

logger = structlog.get_logger(__name__)

WATCH_SECONDS = 2.0
"""How often keys are looked at; a revoked one is closed well within five seconds."""
SOON = {"Retry-After": "5"}
CLOSE_SECONDS = 1.0
"""What a client gets to agree to the end; then its connection is cut."""
FORBIDDEN, GOING_AWAY = 4403, 1001
STOPPING = "The server is stopping."
REVOKED = "The key was revoked, or is needed now."
CHANGED = "The key's role has changed; connect again."


@dataclass(eq=False, slots=True)
class Session:
    """One of them. `client` is who it counts for: a user, or an address as long as unknown.

    `end` closes it with a WebSocket's code and a reason.
    """

    client: str
    end: Callable[[int, str], Awaitable[None]]
    credential: str | None = None
    viewer: Viewer = NOBODY

    @property
    def introduced(self) -> bool:
        return self.viewer is not NOBODY


@dataclass(slots=True)
class Limits:
    """Of one client: connections that stay open, and operations under way on them."""

    connections: int = 1000
    operations: int = 1000


@dataclass(slots=True)
class Sessions:
    """All of this process."""

    gate: Gate
    limits: Limits = field(default_factory=Limits)
    watch_seconds: float = WATCH_SECONDS
    stopping: bool = False
    _open: set[Session] = field(default_factory=set[Session])
    _connections: Counter[str] = field(default_factory=Counter[str])
    _operations: Counter[str] = field(default_factory=Counter[str])
    _watch: asyncio.Task[None] | None = None
    _ends: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        self._watch = asyncio.create_task(self._watching())

    async def stop(self) -> None:
        """Close all of them with 1001, and take no more."""
        self.stopping = True
        if self._watch is not None:
            self._watch.cancel()
        for session in self._open:
            self._end(session, GOING_AWAY, STOPPING)
        if self._ends:
            await asyncio.wait(self._ends)

    @contextmanager
    def opened(self, client: str, end: Callable[[int, str], Awaitable[None]]) -> Generator[Session]:
        """A session as long as the context lasts; raises `Refused` when there are too many."""
        if self.stopping:
            wait = {"Retry-After": "1"}
            raise Refused(503, STOPPING, ErrorCode.UNAVAILABLE, headers=wait, hang_up=True)
        if self._connections[client] >= self.limits.connections:
            error = self._too_many()
            raise Refused(429, str(error), error.code, headers=SOON)
        session = Session(client, end)
        self._open.add(session)
        self._connections[client] += 1
        try:
            yield session
        finally:
            self._open.discard(session)
            _less(self._connections, session.client)

    def enter(self, session: Session, credential: str | None, viewer: Viewer, client: str) -> None:
        """`viewer` holds it from now on; raises `LimitExceeded` if they hold too many."""
        if client != session.client:
            if self._connections[client] >= self.limits.connections:
                raise self._too_many()
            _less(self._connections, session.client)
            self._connections[client] += 1
            session.client = client
        session.credential, session.viewer = credential, viewer

    async def viewer(self, session: Session, headers: Mapping[str, str]) -> Viewer:
        """In whose name an operation runs; raises `Unauthenticated` if that has changed.

        What ran by another role than the watch compares would outlast that role, if the change
        is undone before the watch comes round.
        """
        viewer = await self.gate.viewer(session.credential, headers)
        if viewer != session.viewer:
            raise Unauthenticated(CHANGED)
        return viewer

    @contextmanager
    def operation(self, session: Session) -> Generator[None]:
        """Counts an operation while it is under way; raises `LimitExceeded`."""
        client, limit = session.client, self.limits.operations
        if self._operations[client] >= limit:
            message = f"You have {limit} operations under way, as many as you may."
            raise LimitExceeded(message, limit)
        self._operations[client] += 1
        try:
            yield
        finally:
            _less(self._operations, client)

    def _too_many(self) -> LimitExceeded:
        limit = self.limits.connections
        return LimitExceeded(f"You have {limit} connections open, as many as you may.", limit)

    async def _watching(self) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                await self.check()
            except Exception:
                logger.exception("keys of open connections cannot be read; trying again")

    async def check(self) -> None:
        """End the sessions whose credential is not what it was; one query for all of them."""
        held = [session for session in self._open if session.introduced]
        if not held:
            return
        viewers = await self.gate.current({each.credential: each.viewer for each in held})
        for session in held:
            viewer = viewers.get(session.credential)
            if viewer is None:
                self._end(session, FORBIDDEN, REVOKED)
            elif viewer != session.viewer:
                self._end(session, FORBIDDEN, CHANGED)

    def _end(self, session: Session, code: int, reason: str) -> None:
        task = asyncio.create_task(_ended(session, code, reason))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)


def client_of(
    request: web.BaseRequest, credential: str | None = None, viewer: Viewer = NOBODY
) -> str:
    """Who is counted: the user of a key, else an address."""
    return f"at {request.remote}" if credential is None else f"user {viewer.budget}"


async def _ended(session: Session, code: int, reason: str) -> None:
    """A client that does not read does not hold up the end of its connection."""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(2 * CLOSE_SECONDS):
            await session.end(code, reason)


def _less(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
