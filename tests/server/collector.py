"""A collector of spans: OTLP over gRPC on a real socket, as the exporter speaks it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans = list[Span]()
        self.roles = set[str]()
        self.address = ""
        self.frozen = threading.Event()
        """While it is set nobody is answered."""
        self._thaw = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        if self.frozen.is_set():
            self._thaw.wait()
        for resource in request.resource_spans:
            self.roles |= {a.value.string_value for a in resource.resource.attributes if a.key == "mfalcon.role"}
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        self._thaw.set()

    def of(self, trace_id: int) -> dict[str, Span]:
        """The spans of a trace by name."""
        return {span.name: span for span in self.spans if span.trace_id == trace_id.to_bytes(16, "big")}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of loopback."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    collector.address = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        collector.close()
        server.stop(0).wait()


def attributes(span: Span) -> dict[str, Any]:
    """Of a span, as Python has them."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in span.attributes}
