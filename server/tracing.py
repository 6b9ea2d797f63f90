"""Whose trace a request is a part of, whether it is traced, and where its spans go. Without an endpoint there are none,
and whose trace it is, is only passed on.
"""

import atexit
import logging
import os
import random
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mfalcon.errors import ConfigError
from mfalcon.metrics.span_metrics import SpanMetrics
from mfalcon.spans import Value, at

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)

PARENT: Final = "traceparent"
"""Of W3C Trace Context."""
HEADERS: Final = frozenset({PARENT, "tracestate"})
FLUSH_S: Final = 2.0
"""At the end of a process, for spans that wait: a collector that does not answer holds up nobody for longer."""
MOST_WAITING: Final = 4_096
"""Spans that wait for the collector; a traced rank has about ten."""
_propagator: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("mfalcon")
FAILURES: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes of gRPC that are errors of a server, as OpenTelemetry's conventions have it; over HTTP it is 5xx."""


def join(headers: Mapping[str, str]) -> None:
    """Make the spans of this task, which answers one request, a part of the caller's trace, if these headers name one:
    what they say otherwise is ignored.
    """
    if PARENT in headers:
        context.attach(_propagator.extract(dict(headers)))


def joined() -> dict[str, str]:
    """The headers by which another process joins the trace of this task; none if it has none."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


class Tracing:
    """Decides at the edge which requests are traced: those whose caller says so, none of those whose caller says not,
    and of the others a part. Lives on one event loop.
    """

    def __init__(self, sample: float) -> None:
        self._sample = sample
        # What is not traced here shall not be by those whom it asks either.
        unsampled = SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
        self._unsampled = trace.set_span_in_context(NonRecordingSpan(unsampled), Context())

    def begin(self, headers: Mapping[str, str], name: str, arrived: float) -> Span | None:
        """The span of a request that this task answers, and that its head came for at `arrived` (`time.monotonic()`);
        None if it is not traced.
        """
        parent = None
        if PARENT in headers:
            parent = _propagator.extract(dict(headers))
            told = trace.get_current_span(parent).get_span_context()
            if not told.is_valid:
                parent = None
            elif not told.trace_flags.sampled:
                context.attach(parent)
                return None
        if parent is None and random.random() >= self._sample:
            context.attach(self._unsampled)
            return None
        span = _tracer.start_span(name, parent, SpanKind.SERVER, start_time=at(arrived))
        context.attach(trace.set_span_in_context(span))
        return span


def end(span: Span, name: str, attributes: Mapping[str, Value], code: str, ended: float) -> None:
    """The request has ended at `ended` (`time.monotonic()`), with this code of its transport."""
    span.update_name(name)
    span.set_attributes(attributes)
    if code in FAILURES or code.startswith("5"):
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))
    span.end(at(ended))


def trace_to(endpoint: str | None, metrics: SpanMetrics | None = None, role: str = "server") -> None:
    """Send the spans of this process to an OTLP collector, in the background. ConfigError without the extra `trace`."""
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )
    except ImportError as error:
        raise ConfigError("otlp_endpoint: needs the extra: pip install -e '.[trace]'") from error
    counted, insecure = metrics or SpanMetrics(), not endpoint.startswith("https:")

    class Told(SpanExporter):
        """Sends batches, counts them, and says once that it cannot, and once that it can again."""

        def __init__(self) -> None:
            self._exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure)
            self._is_failing = False
            self.num_taken = 0

        def export(self, spans: "tuple[ReadableSpan, ...]") -> SpanExportResult:  # type: ignore[override]
            self.num_taken += len(spans)
            try:
                result = self._exporter.export(spans)
            except Exception:  # noqa: BLE001 (the edge of another's thread: spans are no reason to end it)
                result = SpanExportResult.FAILURE
            is_sent = result is SpanExportResult.SUCCESS
            counted.spans.labels("sent" if is_sent else "failed").inc(len(spans))
            if is_sent == self._is_failing:
                self._is_failing = not is_sent
                if is_sent:
                    logger.info("traces: the collector at %s takes spans again", endpoint)
                else:
                    logger.warning("traces: the collector at %s takes no spans; they are lost until it does", endpoint)
            return result

        def shutdown(self) -> None:
            self._exporter.shutdown()

    class Bounded(BatchSpanProcessor):
        """Counts what its queue drops."""

        def __init__(self) -> None:
            self._told = Told()
            self._num_kept = 0
            super().__init__(self._told, max_queue_size=MOST_WAITING)

        def on_end(self, span: "ReadableSpan") -> None:
            if self._num_kept - self._told.num_taken >= MOST_WAITING:
                counted.spans.labels("dropped").inc()
                return
            self._num_kept += 1
            super().on_end(span)

    # What these say, they would say for every batch.
    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    instance = f"{socket.gethostname()}:{os.getpid()}"
    resource = Resource.create({SERVICE_NAME: "mfalcon", SERVICE_INSTANCE_ID: instance, "mfalcon.role": role})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(Bounded())
    trace.set_tracer_provider(provider)
    atexit.register(_flush, provider.shutdown)


def _flush(shutdown: object) -> None:
    """Send what waits, for a while."""
    assert callable(shutdown)
    thread = threading.Thread(target=shutdown, daemon=True)
    thread.start()
    thread.join(FLUSH_S)
