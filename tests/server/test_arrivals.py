"""The end of a request, as its span tells it."""

import pytest
from opentelemetry.sdk.trace import TracerProvider

from server.arrivals import Arrival, end_span


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_span_says_how_its_request_came(scheme: str) -> None:
    span = TracerProvider().get_tracer("test").start_span("rank")
    arrival = Arrival("rank", route="POST /v1/rank", scheme=scheme)
    end_span(span, arrival, "http", "200", arrival.arrived)
    told = dict(span.attributes or {})  # type: ignore[attr-defined]  # the SDK's span has them
    assert told["url.scheme"] == scheme
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/rank", 200)


def test_every_code_of_grpc_has_its_number() -> None:
    for code, number in (("OK", 0), ("DEADLINE_EXCEEDED", 4), ("UNAUTHENTICATED", 16)):
        span = TracerProvider().get_tracer("test").start_span("rank")
        arrival = Arrival("append_events")
        end_span(span, arrival, "grpc", code, arrival.arrived)
        told = dict(span.attributes or {})  # type: ignore[attr-defined]  # as above
        assert (told["rpc.grpc.status_code"], told["rpc.method"]) == (number, "AppendEvents")
