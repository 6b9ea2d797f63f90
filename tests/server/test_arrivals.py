"""The end of a request, as its span tells it."""

import asyncio
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace import TracerProvider

from mfalcon.metrics.server_metrics import ServerMetrics
from server.arrivals import Arrival, Arrivals, end_span


@dataclass
class Heard:
    """Who hears of ends."""

    ends: list[tuple[str, str, bool]] = field(default_factory=list)

    def ended(self, arrival: Arrival, transport: str, code: str, took_s: float, *, answered: bool) -> None:
        assert took_s >= 0
        self.ends.append((arrival.verb, code, answered))


async def test_an_answer_waits_for_no_line_of_the_access_log() -> None:
    """It is made in a later turn of the loop, when the answer is on its way; what is counted is so before."""
    metrics, heard = ServerMetrics(), Heard()
    arrivals = Arrivals("grpc", metrics.requests, metrics.stages, heard)
    arrival = arrivals.begin("rank", "")
    arrivals.end(arrival, "OK", answered=True)
    arrivals.end(arrival, "CANCELLED")
    counted = {"model": "", "verb": "rank", "transport": "grpc", "code": "OK"}
    assert (heard.ends, metrics.registry.get_sample_value("mfalcon_requests_total", counted)) == ([], 1)
    await asyncio.sleep(0)
    assert heard.ends == [("rank", "OK", True)]


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
