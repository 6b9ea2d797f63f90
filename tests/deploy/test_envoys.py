"""Several Envoys, each of which resolves names by itself, agree on whose replica is whose."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from loadtest.balance.balancer import HOW_TO_INSTALL, Balancer, Kind, binary
from mfalcon.rank_key import RANK_KEY, rank_key
from tests.server.harness import Running, serving

USERS = [f"user {number}" for number in range(60)]


@pytest.mark.slow
async def test_the_order_in_which_replicas_are_found_moves_no_user(tmp_path: Path) -> None:
    if binary(Kind.ENVOY) is None:
        pytest.skip(f"Envoy is not installed: {HOW_TO_INSTALL[Kind.ENVOY]}")
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serving()) for _ in range(3)]
        grpc, http = (
            [int(getattr(one.addresses, name).rpartition(":")[2]) for one in replicas] for name in ("grpc", "http")
        )
        homes = []
        for order in ([0, 1, 2], [2, 0, 1]):
            directory = tmp_path / str(order[0])
            directory.mkdir()
            envoy = Balancer(Kind.ENVOY, [grpc[at] for at in order], [http[at] for at in order], directory)
            stack.callback(envoy.kill)
            await asyncio.to_thread(envoy.start)
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{envoy.http}", timeout=30))
            # Until every replica has passed its first health check, some users are with others.
            table: list[int] = []
            before: list[int] | None = None
            while len(set(table)) < len(replicas) or table != before:
                before, table = table, [await home(client, replicas, user) for user in USERS]
            homes.append(table)
        assert homes[0] == homes[1]


async def home(client: httpx.AsyncClient, replicas: list[Running], user: str) -> int:
    seen = [len(one.engine.requests) for one in replicas]
    body = {"user_id": user, "candidates": [1]}
    (await client.post("/v1/rank", json=body, headers={RANK_KEY: rank_key(user)})).raise_for_status()
    (found,) = (at for at, one in enumerate(replicas) if len(one.engine.requests) > seen[at])
    return found
