"""Where spans go. Without an endpoint OpenTelemetry's API does nothing, and costs next to nothing."""

from opentelemetry import trace

from mfalcon.errors import ConfigError


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
