"""A server on real sockets around an engine, a fake one where none is given, with a client of each transport."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc.aio
import httpx
from grpc_health.v1 import health_pb2

from mfalcon.metrics.server_metrics import ServerMetrics
from proto import ranking_pb2_grpc
from server.addresses import Addresses
from server.config import load_config
from server.service import ServedEngine, Service
from tests.server.fake_engine import FakeEngine

FREE_PORTS = {"checkpoint": "unused", "grpc_port": 0, "http_port": 0}


EngineT = TypeVar("EngineT", bound=ServedEngine)


@dataclass(frozen=True, slots=True)
class Clients:
    """A client of each transport, and a bare channel."""

    channel: grpc.aio.Channel
    stub: ranking_pb2_grpc.RankingStub
    http: httpx.AsyncClient


@dataclass(frozen=True, slots=True)
class Served(Clients, Generic[EngineT]):
    """A running server and its clients."""

    engine: EngineT
    service: Service
    addresses: Addresses


Running = Served[FakeEngine]


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    """What the health service says of a service."""
    check: grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
        channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
    )
    return (await check(health_pb2.HealthCheckRequest(service=service))).status


HealthWatch = grpc.aio.UnaryStreamCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


async def next_status(watch: HealthWatch) -> int:
    """The next change."""
    answer = await watch.read()
    assert isinstance(answer, health_pb2.HealthCheckResponse)
    return answer.status


def watch_health(channel: grpc.aio.Channel) -> HealthWatch:
    """The changes of the server's health."""
    call: grpc.aio.UnaryStreamMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
        channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
    )
    return call(health_pb2.HealthCheckRequest())


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[Running]:
    """Start a server around a fake engine, hand out, stop."""
    async with serving_engine(FakeEngine(), None, **settings) as running:
        yield running


@asynccontextmanager
async def serving_engine(
    engine: EngineT, metrics: ServerMetrics | None = None, **settings: object
) -> AsyncIterator[Served[EngineT]]:
    """Start a server around the engine, hand out, stop. metrics: what it counts in."""
    service = Service(load_config(None, FREE_PORTS | {"drain_seconds": 1} | settings), metrics)
    addresses = await service.listen()
    await service.serve(engine)
    async with (
        # A client of its own for each server: channels to one address share a connection otherwise.
        grpc.aio.insecure_channel(addresses.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http,
    ):
        stub = ranking_pb2_grpc.RankingStub(channel)
        try:
            yield Served(channel, stub, http, engine, service, addresses)
        finally:  # of a test that failed too: a gRPC server that was not stopped hangs whoever collects it
            if service.running:
                await service.stop()
