"""A server on real sockets around a fake engine, with a client of each transport."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import httpx

from proto import ranking_pb2_grpc
from server.app import Addresses, Service
from server.config import load_config
from tests.server.fake_engine import FakeEngine

FREE_PORTS = {"checkpoint": "unused", "grpc_port": 0, "http_port": 0}


@dataclass(frozen=True, slots=True)
class Running:
    """A running server and its clients."""

    engine: FakeEngine
    service: Service
    addresses: Addresses
    channel: grpc.aio.Channel
    stub: ranking_pb2_grpc.RankingStub
    http: httpx.AsyncClient


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[Running]:
    """Start, hand out, stop."""
    engine = FakeEngine()
    service = Service(engine, load_config(None, FREE_PORTS | {"drain_seconds": 1} | settings))
    addresses = await service.start()
    async with (
        # A client of its own for each server: channels to one address share a connection otherwise.
        grpc.aio.insecure_channel(addresses.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=10) as http,
    ):
        yield Running(engine, service, addresses, channel, ranking_pb2_grpc.RankingStub(channel), http)
        if not engine.closed.is_set():
            await service.stop()
