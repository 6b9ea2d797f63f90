"""Replicas of a checkpoint on one Redis, and a balancer in front of them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.balance.balancer import Balancer, Kind
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess

_REDIS = ("--maxmemory", "1gb", "--maxmemory-policy", "volatile-lru")


@dataclass(frozen=True, slots=True)
class Group:
    """balancer: None before a single replica."""

    redis: RedisServer
    replicas: tuple[ServerProcess, ...]
    balancer: Balancer | None

    @property
    def front(self) -> ServerProcess | Balancer:
        """Whom callers ask, over gRPC or HTTP."""
        return self.replicas[0] if self.balancer is None else self.balancer


@contextmanager
def group(checkpoint: Path, number: int, flags: Sequence[str] = (), kind: Kind = Kind.ENVOY) -> Iterator[Group]:
    """So many ready replicas with the same flags; ended on exit. Raises ConfigError or EngineFailure."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(arguments=_REDIS))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfalcon-group-")))
        flags = ("--redis-url", redis.url, *flags)
        replicas = [stack.enter_context(ServerProcess(checkpoint, directory, flags)) for _ in range(number)]
        balancer = None
        if number > 1:
            grpc, http = zip(*((_port(one.grpc), _port(one.http)) for one in replicas), strict=True)
            balancer = stack.enter_context(Balancer(kind, grpc, http, directory))
        yield Group(redis, tuple(replicas), balancer)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
