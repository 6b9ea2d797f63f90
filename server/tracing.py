"""Where spans go, and whose trace they are a part of. Without an endpoint OpenTelemetry's API does nothing, and costs
next to nothing.
"""

from collections.abc import Mapping
from typing import Final

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mfalcon.errors import ConfigError
from mfalcon.scope import Scope, enter, request_id
from server import arrivals
from server.request_ids import REQUEST_ID

PARENT: Final = "traceparent"
"""Of W3C Trace Context."""
HEADERS: Final = frozenset({PARENT, "tracestate"})
_CALLER: Final = "caller"
_propagator: Final = TraceContextTextMapPropagator()


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


def carried() -> dict[str, str]:
    """What another process of this server must know of the request of this task: its name, caller and trace."""
    return {REQUEST_ID: request_id(), _CALLER: arrivals.current().caller} | joined()


def carry_on(headers: Mapping[str, str]) -> None:
    """Answer, in this task, the request of which another process of this server has `carried` this."""
    enter(Scope(headers.get(REQUEST_ID, "")))
    arrivals.carry_on(headers.get(_CALLER, ""))
    join(headers)


def trace_to(endpoint: str | None) -> None:
    """Send the spans of this process to an OTLP collector, in the background. ConfigError without the extra `trace`."""
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("otlp_endpoint: needs the extra: pip install -e '.[trace]'") from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "mfalcon"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:")))
    )
    trace.set_tracer_provider(provider)
