"""What Redis says reaches the operator's log and no caller, over either transport."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.history.chain import user_hash
from mfalcon.redis.client import RedisSettings
from mfalcon.redis.keys import Keys
from proto import ranking_pb2
from tests.redis_fixtures import OwnRedis
from tests.server.harness import Served, serving_engine
from tests.small import small_checkpoint

USER = user_hash("ann")
KEYS = Keys("t")
EVENT = {"item_id": 1, "actions": 0, "value": 1.0, "time_ms": 10**12}
OF_REDIS: tuple[str, ...] = (
    "script",
    "WRONGTYPE",
    "ERR",
    "OOM",
    "NOAUTH",
    "NOPERM",
    "READONLY",
    "LOADING",
    "MISCONF",
    "BUSY",
    "sha",
)
OF_REDIS += ("command", "127.0.0.1", "redis.", "Errno", "Connect call", "::", USER.hex(), "Traceback")
Fault = Callable[[RedisServer], None]


def wrong_type(server: RedisServer) -> None:
    for key in (KEYS.log(USER), KEYS.index(USER)):
        server.command("DEL", key)
        server.command("RPUSH", key, "x")


def wrong_type_beside(server: RedisServer) -> None:
    """The stream of deletions is a list: nothing of one user, and an error of every deletion."""
    server.command("DEL", KEYS.deletions)
    server.command("RPUSH", KEYS.deletions, "x")


def out_of_memory(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", 1)


def read_only(server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", 1)


def no_scripts(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "default", "-eval")


def locked(server: RedisServer) -> None:
    """On one connection, which keeps its rights: the next one has none."""
    with redis.Redis.from_url(server.url, single_connection_client=True, retry=Retry(NoBackoff(), 0)) as client:
        client.config_set("requirepass", "secret")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")


def killed(server: RedisServer) -> None:
    server.kill()


def frozen(server: RedisServer) -> None:
    server.freeze()


@pytest.fixture
async def served(own_redis: OwnRedis) -> AsyncIterator[tuple[RedisServer, Served[Engine]]]:
    server = own_redis()
    histories = HistoryOptions(redis=RedisOptions(RedisSettings(server.url, 0.3, 0.3), prefix="t"))
    engine = compose(
        small_checkpoint(), EngineConfig(threads=1, ranker=RankerOptions(microbatch=8), histories=histories)
    )
    await asyncio.to_thread(engine.wait_ready)
    async with serving_engine(engine) as running:
        yield server, running
        if server.running:
            server.thaw()


async def said(served: Served[Engine]) -> list[str]:
    """What every call is refused with."""
    texts = []
    event = ranking_pb2.Event(item_id=1, value=1.0, time_ms=10**12)
    calls: tuple[Callable[[], Awaitable[object]], ...] = (  # each begins when the one before has ended
        lambda: served.stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[1]), timeout=2),
        lambda: served.stub.AppendEvents(ranking_pb2.AppendEventsRequest(user_id="ann", events=[event]), timeout=2),
        lambda: served.stub.Prefill(ranking_pb2.PrefillRequest(user_id="ann"), timeout=2),
    )
    for call in calls:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            texts.append(f"{error.code().name}: {error.details()} {error.trailing_metadata()}")
    posts: tuple[tuple[str, dict[str, object]], ...] = (
        ("/v1/rank", {"user_id": "ann", "candidates": [1]}),
        ("/v1/users/ann/events", {"events": [EVENT]}),
        ("/v1/users/ann/prefill", {}),
    )
    for path, body in posts:
        answer = await served.http.post(path, json=body)
        assert answer.status_code != 404, path
        if answer.status_code != 200:
            texts.append(answer.text)
    try:
        await served.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id="ann"), timeout=2)
    except grpc.aio.AioRpcError as error:
        texts.append(f"{error.code().name}: {error.details()} {error.trailing_metadata()}")
    answer = await served.http.delete("/v1/users/ann")
    if answer.status_code >= 400:
        texts.append(answer.text)
    return texts


@pytest.mark.parametrize(
    "fault",
    [wrong_type, wrong_type_beside, out_of_memory, read_only, no_scripts, locked, killed, frozen],
)
async def test_texts_of_redis_reach_no_caller(
    served: tuple[RedisServer, Served[Engine]], fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server, running = served
    with caplog.at_level(logging.DEBUG):
        fault(server)
        texts = await said(running)
    assert texts, "nothing was refused: this is no fault"
    for text in texts:
        assert not [word for word in OF_REDIS if word in text], text
        assert "INTERNAL" not in text and "UNKNOWN" not in text
    if fault not in (wrong_type, frozen):
        assert "redis" in caplog.text


async def test_a_deletion_ends_whatever_type_the_keys_have(served: tuple[RedisServer, Served[Engine]]) -> None:
    server, running = served
    wrong_type(server)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[1]))
    assert refused.value.code() is grpc.StatusCode.DATA_LOSS
    assert 'docs/operations.md, "Damaged logs"' in (refused.value.details() or "")
    await running.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id="ann"))
    assert (await running.stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[1]))).scores
    assert server.command("EXISTS", KEYS.index(USER)) == 0
