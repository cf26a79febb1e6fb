"""A collector of traces on loopback: OTLP over HTTP, as OpenTelemetry's exporters send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

SECONDS = 20
"""Longest wait for spans that must come."""


@dataclass(frozen=True)
class Span:
    """`parent` is empty for the root of a trace."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool

    def is_parent_in(self, traceparent: str) -> bool:
        """Whether it names this span; its flags are not sent to a collector."""
        return traceparent.startswith(f"00-{self.trace_id}-{self.span_id}-")


@dataclass
class Collector:
    """`resources` are the attributes of who sent each batch."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list[Span])
    resources: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        received = ExportTraceServiceRequest.FromString(await request.read())
        for resource_spans in received.resource_spans:
            self.resources.append(_attributes(resource_spans.resource))
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(_span(each) for each in scope_spans.spans)
        async with self._arrived:
            self._arrived.notify_all()
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    async def named(self, *names: str) -> list[Span]:
        """One span of each name, which must be there or come, and be the only one of it."""
        async with asyncio.timeout(SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: set(names) <= {each.name for each in self.spans})
        found = {name: [each for each in self.spans if each.name == name] for name in names}
        assert {name: len(spans) for name, spans in found.items()} == dict.fromkeys(names, 1)
        return [spans[0] for spans in found.values()]

    async def count(self, number: int) -> list[Span]:
        """All spans, when there are so many."""
        async with asyncio.timeout(SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: len(self.spans) >= number)
        assert len(self.spans) == number
        return self.spans


def _span(span: trace_pb2.Span) -> Span:
    return Span(
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _attributes(span),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _attributes(message: Any) -> dict[str, Any]:
    """What OTLP writes as a list of pairs of a key and a value with its type."""
    pairs: list[dict[str, Any]] = MessageToDict(message).get("attributes", [])
    return {pair["key"]: next(iter(pair["value"].values())) for pair in pairs}


@asynccontextmanager
async def collecting() -> AsyncGenerator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.endpoint = f"http://127.0.0.1:{site.port}"
    try:
        yield collector
    finally:
        await runner.cleanup()
