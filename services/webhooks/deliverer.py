"""The part of a worker that delivers to webhooks.

Two loops, which share nothing with the executions: one follows the log and makes deliveries, one
sends those that are due, each in a task of its own, so that a slow receiver holds up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta

import structlog

from services import agent_http, telemetry
from services.engine import AWAY
from services.runtime import Runtime
from services.secrets import SecretUnreadable
from services.values import public_id
from services.webhooks import claims, making, outcomes
from services.webhooks.claims import Claimed
from services.webhooks.client import Answer, Outcome, WebhookClient
from services.webhooks.making import Maker
from services.webhooks.outcomes import Overtaken

logger = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
"""How late is seen what nobody tells of: a new webhook, a redelivery, a lost worker's delivery."""
GAP_SECONDS = 0.05
"""Between two looks at the log; what is committed meanwhile is made in one go."""
PAUSE_SECONDS = 0.01
MAX_SENDING = 256
UNREADABLE = (
    "Its address and secret were saved with another SIGNOFF_SECRET_KEY, so nothing was sent. "
    "Start with that key, or make the webhook anew."
)
STOP_SECONDS = 2.0
"""For requests under way when the process is asked to stop."""


class Deliverer:
    """The deliveries of one process.

    `seconds` is the time for one request; a worker that takes twice that is taken for lost.
    Events that are older than `kept` are not delivered any more.
    """

    def __init__(
        self, rt: Runtime, client: WebhookClient, *, seconds: float, kept: timedelta
    ) -> None:
        self._rt = rt
        self._client = client
        self._seconds = seconds
        self._lease = timedelta(seconds=2 * seconds)
        self._maker = Maker(rt, kept=kept)
        self._news = asyncio.Event()
        self._due = asyncio.Event()
        self._until = 0
        self._again_at: datetime | None = None
        self._listener: asyncio.Task[None] | None = None
        self._sending: dict[asyncio.Task[None], Claimed] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()
        self._stopping = False

    def start(self) -> None:
        steps = {"making": self._make, "sending": self._send}
        self._loops = [asyncio.create_task(_kept(*each)) for each in steps.items()]

    async def stop(self) -> None:
        """Begin nothing more; what is under way gets a moment, and is given back then."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS), self._turn:
                pass  # what is being taken is begun
        await _ended([*self._loops, *([self._listener] if self._listener else [])])
        if self._sending:
            await asyncio.wait(self._sending, timeout=STOP_SECONDS)
        left = dict(self._sending)
        await _ended(list(left))
        for it in left.values():
            with suppress(Exception):  # its lease will end
                await claims.release(it, datetime.now(UTC))

    async def _make(self) -> None:
        """Wait for something new in the log, and make deliveries of it."""
        if not await making.any_enabled():
            await self._deafen()
            await asyncio.sleep(POLL_SECONDS)
            return
        if not await self._is_told():
            self._until = max(self._until, await self._rt.events.complete_until())
        while await self._maker.look(self._until):
            self._due.set()
        self._due.set()
        await asyncio.sleep(GAP_SECONDS)

    async def _is_told(self) -> bool:
        """Whether there is a new entry; False after a while, and when nobody listened before."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._hear())
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._news.wait()
        told = self._news.is_set()
        self._news.clear()
        return told

    async def _deafen(self) -> None:
        """Stop to listen: there is nobody to tell."""
        if self._listener is not None:
            await _ended([self._listener])
            self._listener = None

    async def _hear(self) -> None:
        try:
            async with aclosing(self._rt.events.subscribe()) as entries:
                async for entry in entries:
                    self._until = max(self._until, entry.seq)
                    self._news.set()
        except Exception:
            logger.exception("webhooks do not hear of new entries; trying again")
            await asyncio.sleep(POLL_SECONDS)

    async def _send(self) -> None:
        """Wait until something may be due, and begin to send it."""
        await self._wait()
        self._due.clear()
        async with self._turn:
            if not self._stopping:
                await self._take()
        await asyncio.sleep(PAUSE_SECONDS)

    async def _take(self) -> None:
        slots = MAX_SENDING - len(self._sending)
        found = await claims.take(self._rt, datetime.now(UTC), slots, self._lease)
        self._again_at = found.again_at
        for it in found.taken:
            task = asyncio.create_task(self._deliver(it))
            self._sending[task] = it
            task.add_done_callback(self._sent)

    async def _wait(self) -> None:
        seconds = POLL_SECONDS
        if self._again_at is not None:
            left = (self._again_at - datetime.now(UTC)).total_seconds()
            seconds = min(seconds, max(0.0, left))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._due.set()

    async def _deliver(self, it: Claimed) -> None:
        began = datetime.now(UTC)
        with telemetry.timed(self._rt.telemetry.webhook_calls) as call:
            answer = await self._answer(it)
            call.outcome = answer.outcome
        name = public_id("delivery", it.id)
        try:
            await self._record(it, answer, began)
        except (Overtaken, *AWAY) as error:
            logger.warning("a delivery was not noted", delivery_id=name, error=repr(error))
        except Exception:
            logger.exception("a delivery could not be noted", delivery_id=name)

    async def _record(self, it: Claimed, answer: Answer, began: datetime) -> None:
        """Write it down, as long as nobody else may take the delivery on."""
        while True:
            try:
                await outcomes.record(self._rt, it, answer, began)
            except AWAY:
                if datetime.now(UTC) >= it.until:
                    raise
            else:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _answer(self, it: Claimed) -> Answer:
        body = it.body.encode()
        try:
            url = self._rt.vault.open(it.hook.url_sealed)
            headers = self._signed(it, body)
        except SecretUnreadable:
            return Answer(Outcome.UNREADABLE, error=UNREADABLE)
        try:
            return await self._client.post(url, headers, body, deadline=self._seconds)
        except Exception:
            name = public_id("delivery", it.id)
            logger.exception("a delivery failed unexpectedly", delivery_id=name)
            return Answer(Outcome.BROKEN, error="A mistake on our side; the server's log has it.")

    def _signed(self, it: Claimed, body: bytes) -> dict[str, str]:
        """With the secret, and with the one before it as long as that counts."""
        hook, now = it.hook, time.time()
        sealed = [hook.secret_sealed]
        until = hook.old_secret_until
        if hook.old_secret_sealed and until is not None and until.timestamp() > now:
            sealed.append(hook.old_secret_sealed)
        id = public_id("delivery", it.id)
        signed = [
            agent_http.sign(self._rt.vault.open(each), id=id, timestamp=int(now), body=body)
            for each in sealed
        ]
        signatures = " ".join(each["webhook-signature"] for each in signed)
        return signed[0] | {"webhook-signature": signatures}


async def _kept(name: str, step: Callable[[], Awaitable[None]]) -> None:
    """Repeat `step` for ever; a database that is away is waited for."""
    troubled = False
    while True:
        try:
            await step()
            troubled = False
        except Exception:
            if not troubled:
                logger.exception("webhooks are in trouble; trying again", step=name)
            troubled = True
            await asyncio.sleep(POLL_SECONDS)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
