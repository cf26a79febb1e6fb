"""What can be measured of a process, and of the queue that it shares with others.

Every metric is declared here. What stands in the rows is read when somebody looks, not kept
in memory: it is the same for all processes, and survives them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import nan

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from models import QueueEntry, QueueState, Webhook, WebhookDelivery, WebhookDeliveryState
from services.events import Events

logger = structlog.get_logger(__name__)

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LOOK_SECONDS = 5
"""How long a scrape waits for the database."""
OK = "OK"
OVERTAKEN = "OVERTAKEN"
"""The outcome of an attempt that somebody else ended while it ran."""


class Telemetry:
    """The metrics of one process; their labels have few values, never ids."""

    def __init__(self) -> None:
        disable_created_metrics()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.attempts = Counter(
            "signoff_attempts",
            "Attempts that this process ran to an end, by the job's statusReason.",
            ["outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "signoff_executions_running", "Executions under way in this process.", registry=registry
        )
        self.agent_calls = Histogram(
            "signoff_agent_call_seconds",
            "Requests to agents, each try by itself, by OK or what went wrong.",
            ["outcome"],
            buckets=SECONDS,
            registry=registry,
        )
        self.judge_calls = Histogram(
            "signoff_judge_call_seconds",
            "Questions to the LLM judge, by OK or what went wrong.",
            ["outcome"],
            buckets=SECONDS,
            registry=registry,
        )
        self.judge_tokens = Counter(
            "signoff_judge_tokens", "Tokens of the LLM judge.", ["direction"], registry=registry
        )
        self.webhook_calls = Histogram(
            "signoff_webhook_call_seconds",
            "Requests to webhooks, each try by itself, by OK or what went wrong.",
            ["outcome"],
            buckets=SECONDS,
            registry=registry,
        )
        self.database = Gauge(
            "signoff_database_up",
            "1 if the database answered this scrape; else what is read there is NaN.",
            registry=registry,
        )
        self.queue = Gauge(
            "signoff_queue_entries",
            "Executions in the queue of all processes, by state.",
            ["state"],
            registry=registry,
        )
        self.oldest = Gauge(
            "signoff_queue_oldest_waiting_seconds",
            "How long the execution has waited that waits longest; 0 if none does.",
            registry=registry,
        )
        self.events_lag = Gauge(
            "signoff_events_lag",
            "Log entries that this process has not yet handed on to its subscribers.",
            registry=registry,
        )
        self.webhook_backlog = Gauge(
            "signoff_webhook_backlog",
            "Deliveries to enabled webhooks that have not succeeded yet, of all processes.",
            registry=registry,
        )
        self.webhook_oldest = Gauge(
            "signoff_webhook_oldest_seconds",
            "How old the oldest of them is; 0 if there is none.",
            registry=registry,
        )
        self.subscribers = Gauge(
            "signoff_subscribers",
            "Subscriptions that are up to date and wait for what is new.",
            registry=registry,
        )
        self.frames = Counter(
            "signoff_subscription_messages",
            "Messages written to subscribers.",
            registry=registry,
        )
        self.slow = Counter(
            "signoff_slow_subscribers",
            "Connections that were closed because too much was left unread.",
            registry=registry,
        )
        self.judged(0, 0)

    def ended(self, outcome: str | None) -> None:
        """An attempt that this process ran has come to its end."""
        self.attempts.labels(outcome or "NONE").inc()

    def judged(self, input_tokens: int, output_tokens: int) -> None:
        self.judge_tokens.labels("input").inc(input_tokens)
        self.judge_tokens.labels("output").inc(output_tokens)

    async def exposition(self, events: Events, running: int, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that `accept` asks for, and its content type.

        `running` are the executions under way in this process.
        """
        self.running.set(running)
        await self._look(events)
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    async def _look(self, events: Events) -> None:
        """Read what stands in the rows; NaN where it cannot be read."""
        counts, waited, lag, answered = dict.fromkeys(QueueState, nan), nan, nan, False
        backlog, age = nan, nan
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                counts = {state: await QueueEntry.filter(state=state).count() for state in counts}
                waited = await _oldest_waiting()
                lag = await events.lag()
                backlog, age = await _webhooks_behind()
                answered = True
        except Exception:
            logger.exception("the database does not answer a scrape")
        for state, count in counts.items():
            self.queue.labels(state.value.lower()).set(count)
        self.database.set(answered)
        self.oldest.set(waited)
        self.events_lag.set(lag)
        self.webhook_backlog.set(backlog)
        self.webhook_oldest.set(age)


async def _oldest_waiting() -> float:
    """Seconds since the first of the executions that wait was queued."""
    first = await QueueEntry.filter(state=QueueState.WAITING).order_by("queued_at").first()
    if first is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - first.queued_at).total_seconds())


UNSETTLED = (WebhookDeliveryState.PENDING, WebhookDeliveryState.SENDING)


async def _webhooks_behind() -> tuple[int, float]:
    """Deliveries that are still to succeed, and seconds since the first of them was made."""
    enabled = await Webhook.filter(enabled=True).values_list("id", flat=True)
    query = WebhookDelivery.filter(webhook_id__in=enabled, state__in=UNSETTLED)
    first = await query.order_by("created_at").first() if enabled else None
    if first is None:
        return 0, 0.0
    return await query.count(), max(0.0, (datetime.now(UTC) - first.created_at).total_seconds())


class Call:
    """A call under way; whoever makes it says how it ended."""

    outcome = "CANCELLED"


@contextmanager
def timed(histogram: Histogram) -> Generator[Call]:
    """Measure what happens inside, by the outcome that is told."""
    call = Call()
    began = time.perf_counter()
    try:
        yield call
    finally:
        histogram.labels(call.outcome).observe(time.perf_counter() - began)
