"""Redis as the event log's home, in the ways that it is run, and what happens to it while writers append.

sentinel: a master, a replica and three sentinels; the master is killed, frozen, or killed while its replica was frozen,
and the replica takes its place. cluster: three masters, whose files are synced; one is killed or frozen. link: a server
whose files are synced, behind a link that loses its connections, or passes no requests or no replies for a while.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from loadtest.faults.redis_server import RedisCluster, RedisSentinel, RedisServer
from loadtest.faults.slow_proxy import SlowProxy

Home: TypeAlias = Literal["sentinel", "cluster", "link"]
HOMES: tuple[Home, ...] = get_args(Home)
_SYNCED = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(slots=True)
class Faults:
    """A Redis at `url`, and each kind of fault, which lasts for as many seconds as it is told and is lifted then.

    fails_over: whether the log may be rolled back while a fault lasts, if appends wait for no replica.
    """

    url: str
    kinds: Mapping[str, Callable[[float], None]]
    fails_over: bool
    done: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, float]] = field(default_factory=list)
    """From the beginning of each fault until all was well."""

    def inject(self, stop: threading.Event, mean_gap_s: float, seed: int) -> None:
        """One after another until `stop`; all are lifted when this returns. For a thread."""
        rng = random.Random(seed)
        kinds: list[str] = []
        while not stop.wait(mean_gap_s * rng.uniform(0.5, 1.5)):
            kinds = kinds or rng.sample(sorted(self.kinds), len(self.kinds))
            kind = kinds.pop()
            began = time.monotonic()
            self.kinds[kind](rng.uniform(0.2, 2.0))
            self.times.append((began, time.monotonic()))
            self.done[kind] += 1


@contextmanager
def home(kind: Home, arguments: Sequence[str] = (), seed: int = 0) -> Iterator[Faults]:
    """A Redis of its own. arguments: of every server that holds data."""
    rng = random.Random(seed)
    match kind:
        case "sentinel":
            with RedisSentinel(3, append_only=True, arguments=arguments) as sentinel:
                yield Faults(sentinel.url, _of_sentinel(sentinel), fails_over=True)
        case "cluster":
            with RedisCluster(arguments=(*_SYNCED, *arguments)) as cluster:
                yield Faults(cluster.url, _of_cluster(cluster, rng), fails_over=False)
        case "link":
            with RedisServer(append_only=True, arguments=arguments) as server, SlowProxy(server.port) as proxy:
                yield Faults(proxy.url, _of_link(server, proxy), fails_over=False)


def _of_sentinel(sentinel: RedisSentinel) -> dict[str, Callable[[float], None]]:
    def kill_master(_: float) -> None:
        _replace(sentinel, sentinel.master.kill)

    def freeze_master(_: float) -> None:
        _replace(sentinel, sentinel.master.freeze)

    def kill_master_ahead_of_its_replica(seconds: float) -> None:
        master = sentinel.master
        (replica,) = (server for server in sentinel.servers if server is not master)
        replica.freeze()
        time.sleep(min(seconds, 0.8))  # sentinels give a replica up after a second
        master.kill()
        replica.thaw()
        _replace(sentinel, lambda: None, master)

    def freeze_replica(seconds: float) -> None:
        master = sentinel.master
        (replica,) = (server for server in sentinel.servers if server is not master)
        replica.freeze()
        time.sleep(seconds)
        sentinel.restore()

    return {
        function.__name__: function
        for function in (kill_master, freeze_master, kill_master_ahead_of_its_replica, freeze_replica)
    }


def _replace(sentinel: RedisSentinel, fault: Callable[[], None], old: RedisServer | None = None) -> None:
    """Break the master, and mend it once another has taken its place."""
    old = old or sentinel.master
    fault()
    give_up = time.monotonic() + 30.0  # a failover that found no good replica is tried again after ten
    while sentinel.master is old and time.monotonic() < give_up:
        time.sleep(0.05)
    sentinel.restore()


def _of_cluster(cluster: RedisCluster, rng: random.Random) -> dict[str, Callable[[float], None]]:
    def kill_a_master(seconds: float) -> None:
        server = rng.choice(cluster.servers)
        server.kill()
        time.sleep(seconds)
        server.start()
        cluster.wait_ready()

    def freeze_a_master(seconds: float) -> None:
        server = rng.choice(cluster.servers)
        server.freeze()
        time.sleep(seconds)
        server.thaw()
        cluster.wait_ready()

    return {function.__name__: function for function in (kill_a_master, freeze_a_master)}


def _of_link(server: RedisServer, proxy: SlowProxy) -> dict[str, Callable[[float], None]]:
    def stall_replies(seconds: float) -> None:
        proxy.stall(replies=True, requests=False)
        time.sleep(seconds)
        proxy.drop()
        proxy.resume()

    def stall_requests(seconds: float) -> None:
        proxy.stall(replies=False, requests=True)
        time.sleep(seconds)
        proxy.resume()

    def lose_connections(_: float) -> None:
        proxy.drop()

    def kill_server(seconds: float) -> None:
        server.kill()
        time.sleep(seconds)
        server.start()

    return {function.__name__: function for function in (stall_replies, stall_requests, lose_connections, kill_server)}
