"""Every fault of Redis, each described once: its name, how it is injected into a real server, and which counter tells.

What chaos does to servers and Redis under traffic is `loadtest/faults/inject.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.world import SETUPS, Person, Setup, World
from mfalcon.engine.redis_parts import layout_of
from mfalcon.history.chain import user_hash
from mfalcon.kvcache.chunk import ChunkLayout, pack, unpack

_THROTTLE = 1e6
_HUGE_BYTES = 240 << 20


@dataclass(frozen=True, slots=True)
class Fault:
    """how: is it injected. tells: the counter that must move, by a part of its name and labels. in_log: whether it is
    one of the log too. proxied, clustered: the Redis that it needs. absent: Redis is not there when the engines start.
    of_one: only the log of the first user is spoilt, whom it costs DATA_LOSS, and nobody else anything.
    """

    name: str
    how: str
    inject: Callable[[World], None]
    tells: str
    in_log: bool = True
    proxied: bool = False
    clustered: bool = False
    absent: bool = False
    of_one: bool = False

    @property
    def leaves_redis_well(self) -> bool:
        """Whether only what Redis holds is spoilt."""
        return self.of_one or not self.in_log


def _kill(world: World) -> None:
    world.at.server.kill()


def _freeze(world: World) -> None:
    world.at.server.freeze()


def _delay(seconds: float) -> Callable[[World], None]:
    def inject(world: World) -> None:
        assert world.at.proxy is not None
        world.at.proxy.delay_s = seconds

    return inject


def _throttle(world: World) -> None:
    assert world.at.proxy is not None
    world.at.proxy.bytes_per_second = _THROTTLE


def _fill(world: World) -> None:
    world.at.server.command("CONFIG", "SET", "maxmemory", 1)  # noeviction is Redis' own policy


def _evict(world: World) -> None:
    """Room for half of the states."""
    server, at = world.at.server, world.at
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lfu")
    sizes = (server.command("MEMORY", "USAGE", name) for person in world.people for name in at.chunks(person.user_id))
    states = sum(size for size in sizes if isinstance(size, int))
    used = next(line for line in server.text("INFO", "memory").splitlines() if line.startswith("used_memory:"))
    server.command("CONFIG", "SET", "maxmemory", int(used.partition(":")[2]) - states // 2)


def _read_only(world: World) -> None:
    world.at.server.command("REPLICAOF", "127.0.0.1", 1)


def _lock(world: World) -> None:
    """On one connection, which keeps its rights: the next one has none."""
    url = world.at.server.url
    with redis.Redis.from_url(url, single_connection_client=True, retry=Retry(NoBackoff(), 0)) as client:
        client.config_set("requirepass", "secret")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")


def _move(world: World) -> None:
    cluster = world.at.cluster
    assert cluster is not None
    for person in world.people:
        cluster.move_slot(world.at.slot(person.user_id), cluster.servers[1])


def _each(spoil: Callable[[World, Person, list[str]], None]) -> Callable[[World], None]:
    """Do something to the chunks of every user."""

    def inject(world: World) -> None:
        for person in world.people:
            spoil(world, person, world.at.chunks(person.user_id))

    return inject


def _lose(world: World, person: Person, chunks: list[str]) -> None:
    world.at.server.command("DEL", chunks[1])


def _flip(world: World, person: Person, chunks: list[str]) -> None:
    world.at.server.command("SETRANGE", chunks[0], 300, b"spoilt")


def _truncate(world: World, person: Person, chunks: list[str]) -> None:
    value = world.at.server.command("GET", chunks[0])
    assert isinstance(value, bytes)
    world.at.server.command("SET", chunks[0], value[: len(value) // 2])


def _swap(world: World, person: Person, chunks: list[str]) -> None:
    """Everybody gets the first user's; he gets the last one's."""
    other = world.people[0 if person is not world.people[0] else -1]
    world.at.server.command("COPY", world.at.chunks(other.user_id)[0], chunks[0], "REPLACE")


def _other_model(world: World, person: Person, chunks: list[str]) -> None:
    """What a model of other weights would have written: its fingerprint, and a checksum that holds."""
    value = world.at.server.command("GET", chunks[0])
    assert isinstance(value, bytes)
    header, payload = unpack(value, _layout(world, ""), user_hash(person.user_id), None)
    foreign = replace(header, layout=_layout(world, "other"))
    world.at.server.command("SET", chunks[0], pack(foreign, payload, None))


def _layout(world: World, suffix: str) -> ChunkLayout:
    """As the engine's own, or with another fingerprint."""
    model = world.checkpoint.model
    fingerprint = f"{world.checkpoint.fingerprint}{suffix}:{model.dtype}"
    return layout_of(model, fingerprint, world.options().state_dtype)


def _log(spoil: Callable[[World, str], None]) -> Callable[[World], None]:
    """Do something to the log of the first user."""

    def inject(world: World) -> None:
        spoil(world, world.at.keys.log(user_hash(world.people[0].user_id)))

    return inject


def _list(world: World, key: str) -> None:
    world.at.server.command("DEL", key)
    world.at.server.command("RPUSH", key, "x")


def _grow(world: World, key: str) -> None:
    world.at.server.command("SETRANGE", key, _HUGE_BYTES, "x")


def _cut(world: World, key: str) -> None:
    value = world.at.server.command("GET", key)
    assert isinstance(value, bytes)
    world.at.server.command("SET", key, value[: len(value) // 2])


FROZEN = Fault("frozen", "SIGSTOP", _freeze, "timeout}")
FAULTS = (
    Fault("absent at start", "nobody listens", _kill, "redis_errors", absent=True),
    Fault("killed", "SIGKILL", _kill, "redis_errors"),
    FROZEN,
    Fault("slow: 50 ms", "proxy delays each reply", _delay(0.05), "timeout}", proxied=True),
    Fault("slow: 200 ms", "proxy delays each reply", _delay(0.2), "timeout}", proxied=True),
    Fault("throttled: 1 MB/s", "proxy bounds each connection", _throttle, "timeout}", proxied=True),
    Fault("out of memory", "CONFIG SET maxmemory 1 (noeviction)", _fill, "oom}"),
    Fault("states evicted", "maxmemory for half of them, volatile-lfu", _evict, "state_tokens{encoded}"),
    Fault("read-only", "REPLICAOF a dead host", _read_only, "readonly}"),
    Fault("NOAUTH", "CONFIG SET requirepass, CLIENT KILL", _lock, "auth}"),
    Fault("MOVED", "plain URL of a cluster's node, its slots moved", _move, "moved}", clustered=True),
    Fault("a log of another type", "DEL, RPUSH", _log(_list), "log_damaged{type}", of_one=True),
    Fault("a log of 240 MB", "SETRANGE", _log(_grow), "log_damaged{size}", of_one=True),
    Fault("a log cut in two", "SET its first half", _log(_cut), "log_damaged{truncated}", of_one=True),
    Fault("one chunk evicted", "DEL", _each(_lose), "state_tokens{encoded}", in_log=False),
    Fault("chunk's bytes flipped", "SETRANGE", _each(_flip), "chunks_rejected{checksum}", in_log=False),
    Fault("chunk truncated", "SET its first half", _each(_truncate), "chunks_rejected{truncated}", in_log=False),
    Fault("another user's chunk", "COPY", _each(_swap), "chunks_rejected{user}", in_log=False),
    Fault("another model's chunk", "SET, checksum good", _each(_other_model), "chunks_rejected{model}", in_log=False),
)


def cases() -> Iterator[tuple[Fault, Setup]]:
    """Every fault in every setup where it matters."""
    for fault in FAULTS:
        for setup in SETUPS:
            if fault.in_log if setup != "states" else not fault.of_one:
                yield fault, setup


def lift(world: World) -> None:
    """Let calls under way end, so that the engines close at once."""
    world.at.server.thaw()
    if world.at.proxy is not None:
        world.at.proxy.delay_s, world.at.proxy.bytes_per_second = 0.0, None
