"""Traces by OpenTelemetry, for who installed the extra `otel` and says where they go.

The standard environment variables tell: `OTEL_EXPORTER_OTLP_ENDPOINT` and its like.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from services.tracing import ERROR, Attributes, Kind, Tracer

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

logger = structlog.get_logger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
CLOSE_SECONDS = 5.0


class BadTraceSettings(Exception):
    """The variables ask for what we cannot do; the message says which."""


def tracer(environment: Mapping[str, str]) -> Tracer | None:
    """None where no traces are asked for, or the extra is not installed.

    Without the one and the other nothing of OpenTelemetry is imported.
    """
    if not _wanted(environment):
        return None
    try:
        return _OpenTelemetry()
    except ModuleNotFoundError:
        logger.warning("OTEL_… asks for traces: pip install 'signoff[otel]'")
        return None


def _wanted(environment: Mapping[str, str]) -> bool:
    """An exporter that was not told where to would only fill the log with its failures."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    )
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise BadTraceSettings("OTEL_TRACES_EXPORTER must be otlp or none")
    for name in PROTOCOLS:
        if (environment.get(name) or "http/protobuf") != "http/protobuf":
            raise BadTraceSettings(f"{name} must be http/protobuf")
    return True


class _OpenTelemetry:
    """Spans of a provider of our own; they are sent by a thread, in batches."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        own = {"service.name": "signoff", "service.version": version("signoff")}
        given = OTELResourceDetector().detect().attributes
        self._provider = TracerProvider(
            resource=Resource.create({**own, **given}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("signoff", own["service.version"])

    def start(self, name: str, kind: Kind, parent: str | None) -> _Span:
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        return _Span(
            self._tracer.start_span(name, context=_context(parent), kind=SpanKind[kind.value])
        )

    def close(self) -> None:
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


def _context(parent: str | None) -> Context:
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.context import Context  # noqa: PLC0415

    if parent is None:
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    remote = trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=_flags(flags)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())


def _flags(text: str) -> trace.TraceFlags:
    from opentelemetry.trace import TraceFlags  # noqa: PLC0415

    return TraceFlags(int(text, 16))


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        told = self._span.get_span_context()
        return f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}"

    def end(self, attributes: Attributes) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_attributes(attributes)
        if ERROR in attributes:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
