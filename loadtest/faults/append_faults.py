"""Redis as the event log's home, in the ways that it is run, and what happens to it while writers append.

sentinel: a master, a replica and three sentinels; the master is killed, frozen, or killed while its replica was frozen,
and the replica takes its place. A frozen one goes on as a master for a while. cluster: three masters, whose files are
synced; one is killed or frozen. link: a server whose files are synced, behind a link that loses its connections, or
passes no requests or no replies for a while.
"""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import redis

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_sentinel import RedisSentinel
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.slow_proxy import SlowProxy
from mfalcon.errors import ConfigError

Home: TypeAlias = Literal["sentinel", "cluster", "link"]
HOMES: tuple[Home, ...] = get_args(Home)
_TROUBLE = (ConfigError, redis.RedisError, OSError)
_SYNCED = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(slots=True)
class Faults:
    """A Redis at `url`, and each kind of fault, which lasts for as many seconds as it is told and is lifted then.

    mend: makes all well, whatever is broken, or raises what it could not do. fails_over: whether the log may be rolled
    back while a fault lasts, if appends wait for no replica. mend_s: how long mending is tried for where Redis did not
    become well when a fault was lifted, since what runs beside may take all of the machine.
    """

    url: str
    kinds: Mapping[str, Callable[[float], None]]
    mend: Callable[[], None]
    fails_over: bool
    mend_s: float = 300.0
    done: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, float]] = field(default_factory=list)
    """From the beginning of each fault until all was well, infinite if it never was."""
    trouble: list[str] = field(default_factory=list)
    """What it took more than one try to mend, or could not be."""

    def inject(self, stop: threading.Event, mean_gap_s: float, seed: int) -> None:
        """One after another until `stop`; all are lifted when this returns, or the last of `times` has no end. For a
        thread.
        """
        rng = random.Random(seed)
        kinds: list[str] = []
        while not stop.wait(mean_gap_s * rng.uniform(0.5, 1.5)):
            kinds = kinds or rng.sample(sorted(self.kinds), len(self.kinds))
            kind = kinds.pop()
            began, is_well = time.monotonic(), True
            try:
                self.kinds[kind](rng.uniform(0.2, 2.0))
            except _TROUBLE as error:
                self.trouble.append(f"{kind}: {error}")
                is_well = self._is_mended()
            self.times.append((began, time.monotonic() if is_well else math.inf))
            self.done[kind] += 1
            if not is_well:
                return

    def _is_mended(self) -> bool:
        give_up = time.monotonic() + self.mend_s
        while time.monotonic() < give_up:
            try:
                self.mend()
            except _TROUBLE as error:
                self.trouble.append(f"mending: {error}")
                time.sleep(1.0)
            else:
                return True
        return False


@contextmanager
def home(kind: Home, arguments: Sequence[str] = (), seed: int = 0) -> Iterator[Faults]:
    """A Redis of its own. arguments: of every server that holds data."""
    rng = random.Random(seed)
    match kind:
        case "sentinel":
            with RedisSentinel(3, append_only=True, arguments=arguments) as sentinel:
                yield Faults(sentinel.url, _of_sentinel(sentinel), sentinel.restore, fails_over=True)
        case "cluster":
            with RedisCluster(arguments=(*_SYNCED, *arguments)) as cluster:
                yield Faults(cluster.url, _of_cluster(cluster, rng), cluster.mend, fails_over=False)
        case "link":
            with RedisServer(append_only=True, arguments=arguments) as server, SlowProxy(server.port) as proxy:

                def mend() -> None:
                    server.mend()
                    proxy.resume()

                yield Faults(proxy.url, _of_link(server, proxy), mend, fails_over=False)


def _of_sentinel(sentinel: RedisSentinel) -> dict[str, Callable[[float], None]]:
    def kill_master(_: float) -> None:
        old = sentinel.master
        old.kill()
        _wait_for_another(sentinel, old)
        sentinel.restore()

    def freeze_master(seconds: float) -> None:
        old = sentinel.master
        old.freeze()
        _wait_for_another(sentinel, old)
        old.thaw()
        time.sleep(seconds)  # there are two masters now
        sentinel.restore()

    def kill_master_ahead_of_its_replica(seconds: float) -> None:
        master = sentinel.master
        replica = sentinel.other(master)
        replica.freeze()
        time.sleep(min(seconds, 0.8))  # sentinels give a replica up after a second
        master.kill()
        replica.thaw()
        _wait_for_another(sentinel, master)
        sentinel.restore()

    def freeze_replica(seconds: float) -> None:
        sentinel.other(sentinel.master).freeze()
        time.sleep(seconds)
        sentinel.restore()

    return {
        function.__name__: function
        for function in (kill_master, freeze_master, kill_master_ahead_of_its_replica, freeze_replica)
    }


def _wait_for_another(sentinel: RedisSentinel, old: RedisServer) -> None:
    """Until another has taken the place of a master. A failover that found no good replica is tried again after ten
    seconds; one that does not come at all leaves the old one.
    """
    give_up = time.monotonic() + 30.0
    while sentinel.master is old and time.monotonic() < give_up:
        time.sleep(0.05)


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
