"""The real balancers with their committed configurations, in front of servers with fake engines.

Envoy's wheel comes with the tests; nginx and HAProxy are tested where they are installed, and `make balance-test` fails
where they are not.
"""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import pytest

from loadtest.balance.balancer import CONFIG, HOW_TO_INSTALL, Balancer, Kind, binary
from mfalcon import errors
from mfalcon.rank_key import RANK_KEY, rank_key
from proto import ranking_pb2, ranking_pb2_grpc
from server.config import load_config
from server.service import Service
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, Running, serving

OTHERS = [pytest.param(kind, marks=pytest.mark.thorough) for kind in (Kind.RING, Kind.NGINX, Kind.HAPROXY)]
ALL = pytest.mark.parametrize("kind", [Kind.ENVOY, *OTHERS])
PROBING = pytest.mark.parametrize("kind", [Kind.ENVOY, OTHERS[-1]])
"""Those that ask replicas how they are, and refuse to wait longer than a caller grants."""
ENVOY = pytest.mark.parametrize("kind", [Kind.ENVOY])
USERS = [f"user {number}" for number in range(40)]


@dataclass(frozen=True, slots=True)
class Balanced:
    """Replicas, and a client of each transport that knows the balancer alone."""

    replicas: list[Running]
    stub: ranking_pb2_grpc.RankingStub
    http: httpx.AsyncClient

    async def rank(self, user: str, transport: str = "grpc", seconds: float = 10.0) -> None:
        """Rank by the user's key. Raises what the client of the transport does."""
        if transport == "grpc":
            request = ranking_pb2.RankRequest(user_id=user, candidates=[1])
            await self.stub.Rank(request, metadata=((RANK_KEY, rank_key(user)),), timeout=seconds)
            return
        headers = {RANK_KEY: rank_key(user), "x-request-timeout-ms": str(round(1e3 * seconds))}
        (
            await self.http.post("/v1/rank", json={"user_id": user, "candidates": [1]}, headers=headers)
        ).raise_for_status()

    def num_ranked(self) -> list[int]:
        """By replica."""
        return [len(replica.engine.requests) for replica in self.replicas]

    async def home(self, user: str, transport: str = "grpc", seconds: float = 10.0) -> int:
        """The number of the replica that answers a rank of the user."""
        before = self.num_ranked()
        await self.rank(user, transport, seconds)
        (home,) = (number for number, after in enumerate(self.num_ranked()) if after > before[number])
        return home


@asynccontextmanager
async def balanced(kind: Kind, directory: Path, number: int = 3, **settings: object) -> AsyncIterator[Balanced]:
    """So many replicas behind a balancer."""
    if binary(kind) is None:
        pytest.skip(f"{kind.value} is not installed: {HOW_TO_INSTALL[kind]}")
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serving(**settings)) for _ in range(number)]
        grpc_ports, http_ports = (
            [int(getattr(one.addresses, name).rpartition(":")[2]) for one in replicas] for name in ("grpc", "http")
        )
        balancer = Balancer(kind, grpc_ports, http_ports, directory)
        stack.callback(balancer.kill)
        await asyncio.to_thread(balancer.start)
        channel = grpc.aio.insecure_channel(balancer.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        await stack.enter_async_context(channel)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{balancer.http}", timeout=30))
        yield Balanced(replicas, ranking_pb2_grpc.RankingStub(channel), http)


def test_envoy_accepts_its_configuration() -> None:
    program = binary(Kind.ENVOY)
    if program is None:
        pytest.skip(HOW_TO_INSTALL[Kind.ENVOY])
    told = subprocess.run(
        [program, "--mode", "validate", "-c", CONFIG[Kind.ENVOY]], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0 and "deprecated" not in told.stderr, told.stderr
    assert "admin" not in CONFIG[Kind.ENVOY].read_text().replace("no admin", "")


@ALL
@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_every_user_sticks(kind: Kind, transport: str, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        first = [await behind.home(user, transport) for user in USERS]
        again = [await behind.home(user, transport) for user in USERS]
        assert first == again
        assert set(first) == {0, 1, 2}
        for replica in behind.replicas:
            assert "mfalcon_affinity_mismatch_total{" not in (await replica.http.get("/metrics")).text


@ALL
async def test_requests_without_a_key_do_not_all_meet_one_replica(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        request = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
        for _ in range(20):
            await behind.stub.Rank(request)
            await behind.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]})
        assert sum(bool(replica.engine.requests) for replica in behind.replicas) >= 2


@ALL
async def test_hostile_keys_harm_nobody_else(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        request, bob = ranking_pb2.RankRequest(user_id="ann", candidates=[1]), await behind.home("bob")
        for keys in ([""], ["a" * 2**22], ["a" * 4_000], ["a"] * 200, ['"}\\n{"rank_key":'.replace("\\n", " ")]):
            try:
                await behind.stub.Rank(request, metadata=tuple((RANK_KEY, key) for key in keys), timeout=10)
            except grpc.aio.AioRpcError as error:
                assert error.code() is not grpc.StatusCode.OK
            try:
                body = {"user_id": "ann", "candidates": [1]}
                await behind.http.post("/v1/rank", json=body, headers=[(RANK_KEY, key) for key in keys])
            except httpx.TransportError:
                pass
            assert await behind.home("bob") == bob
        headers = [(RANK_KEY.encode(), b"\xff\xfe\x80")]
        answer = await behind.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]}, headers=headers)
        assert answer.status_code in (200, 400)


@ALL
@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_the_deadline_reaches_the_replica(kind: Kind, transport: str, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path, 1, request_timeout_ms=60_000) as behind:
        began = time.monotonic()
        await behind.rank("ann", transport, seconds=8.0)
        (deadline,) = behind.replicas[0].engine.deadlines
        assert deadline is not None and deadline < began + 30


@ENVOY
@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_another_replica_answers_what_it_may(kind: Kind, transport: str, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        home = behind.replicas[await behind.home("ann", transport)]
        for fault, num_tries in [
            (errors.Overloaded("busy", retry_after_s=0.1), 2),
            (errors.ShuttingDown("closing"), 2),
            (errors.Overloaded("too short anywhere", elsewhere=False), 1),
            (errors.StorageUnavailable("Redis is away"), 1),
            (errors.EngineFailure("failed"), 1),
        ]:
            home.engine.fault = fault
            entered = sum(replica.engine.num_entered for replica in behind.replicas)
            if num_tries == 2:
                await behind.rank("ann", transport)
            else:
                with pytest.raises((grpc.aio.AioRpcError, httpx.HTTPStatusError)):
                    await behind.rank("ann", transport)
            assert sum(replica.engine.num_entered for replica in behind.replicas) - entered == num_tries, fault


@pytest.mark.parametrize("kind", OTHERS)
async def test_over_http_another_replica_answers_for_one_that_starts_or_drains(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        home = await behind.home("ann", "http")
        behind.replicas[home].engine.fault = errors.NotReady("loading")
        assert await behind.home("ann", "http") != home


@ENVOY
async def test_an_append_that_may_be_written_is_not_tried_again(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path, 2) as behind:
        home = behind.replicas[await behind.home("ann")]
        home.engine.gate.clear()
        append = ranking_pb2.AppendEventsRequest(user_id="ann", events=[ranking_pb2.Event(item_id=1, time_ms=1)])
        with pytest.raises(grpc.aio.AioRpcError):
            await behind.stub.AppendEvents(append, metadata=((RANK_KEY, rank_key("ann")),), timeout=1)
        home.engine.gate.set()
        assert sum(replica.engine.num_entered for replica in behind.replicas) == 2


@PROBING
async def test_a_replica_that_does_not_answer_leaves_time_for_another(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path) as behind:
        home = behind.replicas[await behind.home("ann")]
        home.engine.gate.clear()
        assert behind.replicas[await behind.home("ann", seconds=3.0)] is not home
        home.engine.gate.set()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Kind.NGINX])
async def test_a_port_that_is_closed_is_no_refusal_to_hand_on(kind: Kind, tmp_path: Path) -> None:
    """nginx has no health checks, and tries again where it cannot connect: calls that are on the wire when the port
    closes may be lost, one of each caller at most, and none afterwards.
    """
    async with balanced(kind, tmp_path, grpc_listen="ready") as behind:
        leaves = behind.replicas[await behind.home(USERS[0])]
        done, failed = asyncio.Event(), Counter[str]()

        async def ask(user: str) -> None:
            while not done.is_set():
                try:
                    await behind.rank(user)
                except grpc.aio.AioRpcError:
                    failed[user] += 1

        asking = [asyncio.create_task(ask(user)) for user in USERS[:12]]
        await leaves.service.stop()
        assert set(failed.values()) <= {1}
        failed.clear()
        ports = {f"{name}_port": getattr(leaves.addresses, name).rpartition(":")[2] for name in ("grpc", "http")}
        again, engine = Service(load_config(None, FREE_PORTS | ports | {"grpc_listen": "ready"})), FakeEngine()
        await again.listen()
        try:
            await asyncio.sleep(3.0)
            await again.serve(engine)
            async with asyncio.timeout(60):
                while not engine.requests:  # noqa: ASYNC110 (nobody is told)
                    await asyncio.sleep(0.05)
            done.set()
            await asyncio.gather(*asking)
            assert not failed
        finally:
            await again.stop()


@pytest.mark.thorough
@PROBING
async def test_a_replica_that_leaves_fails_nobody(kind: Kind, tmp_path: Path) -> None:
    async with balanced(kind, tmp_path, drain_linger_s=4) as behind:
        before = [await behind.home(user) for user in USERS]
        gone = before[0]
        stopping = asyncio.create_task(behind.replicas[gone].service.stop())
        while not stopping.done():
            await asyncio.gather(*(behind.rank(user) for user in USERS[:6]))
            await asyncio.sleep(0.05)
        after = [await behind.home(user) for user in USERS]
        assert gone not in after
        stayed = [new == old for new, old in zip(after, before, strict=True) if old != gone]
        assert sum(stayed) >= (0.5 if kind is Kind.RING else 0.9) * len(stayed)  # Maglev moves one in some hundreds
