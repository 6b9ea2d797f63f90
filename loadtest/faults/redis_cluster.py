"""A real Redis Cluster of three masters, for tests, benchmarks and the chaos run."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loadtest.faults.redis_server import HOST, RedisServer, wait_for

NUM_SLOTS = 16384


class RedisCluster:
    """Three masters without replicas, each with a third of the slots: `with RedisCluster() as cluster: ...`.

    Where one is down the other two keep serving theirs. Nodes give each other up after a second.
    """

    def __init__(self, *, arguments: Sequence[str] = ()) -> None:
        settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        settings += ["--cluster-require-full-coverage", "no", *arguments]
        self.servers = [RedisServer(arguments=settings) for _ in range(3)]
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            self._join()
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all three."""
        self._entered.close()

    @property
    def urls(self) -> list[str]:
        """One per master."""
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """All three: redis+cluster://host:port,host:port,host:port."""
        return "redis+cluster://" + ",".join(f"{HOST}:{server.port}" for server in self.servers)

    def _join(self) -> None:
        edges = [NUM_SLOTS * i // len(self.servers) for i in range(len(self.servers) + 1)]
        for i, server in enumerate(self.servers):
            server.command("CLUSTER", "ADDSLOTSRANGE", edges[i], edges[i + 1] - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i > 0:
                self.servers[0].command("CLUSTER", "MEET", HOST, server.port)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return once all three serve every slot and are linked with each other; also after a `start` or a `thaw`.

        Raises ConfigError after a minute.
        """
        wait_for(lambda: all(self._is_ready(server) for server in self.servers), "three masters with every slot")

    def _is_ready(self, server: RedisServer) -> bool:
        info = server.text("CLUSTER", "INFO").split()
        nodes = _nodes(server)
        return (
            "cluster_state:ok" in info
            and f"cluster_slots_ok:{NUM_SLOTS}" in info
            and {node.port for node in nodes} == {other.port for other in self.servers}
            and all(node.healthy for node in nodes)
        )

    def restore(self) -> None:
        """`mend`, and delete every key."""
        self.mend()
        for server in self.servers:
            server.flush()

    def mend(self) -> None:
        """Start what is dead, thaw what is frozen, and wait until all is served."""
        for server in self.servers:
            server.mend()
        self.wait_ready()

    def owner(self, slot: int) -> RedisServer:
        """The master of a slot, running or not, as the first running one sees it."""
        witness = next(server for server in self.servers if server.running)
        ports = [node.port for node in _nodes(witness) if any(first <= slot <= last for first, last in node.slots)]
        return next(server for server in self.servers if [server.port] == ports)

    def move_slot(self, slot: int, to: RedisServer) -> None:
        """Move a slot and its keys: who still asks the old master is answered MOVED. All three must be running.

        They must agree on the epoch first: whoever takes a slot calls itself newer than all that it has heard of, and
        one that had taken another slot just before would win this one back, and delete its keys.
        """
        wait_for(lambda: len({server.epoch for server in self.servers}) == 1, "masters that agree on their epoch")
        source = self.owner(slot)
        if source is to:
            return
        to_id, source_id = to.text("CLUSTER", "MYID"), source.text("CLUSTER", "MYID")
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            assert isinstance(keys, list)
            names = [key for key in keys if isinstance(key, bytes)]
            source.command("MIGRATE", HOST, to.port, "", 0, 1000, "KEYS", *names)
        for server in (to, source, *self.servers):  # the new owner first: no moment without one
            server.command("CLUSTER", "SETSLOT", slot, "NODE", to_id)


@dataclass(frozen=True, slots=True)
class _Node:
    """What one node says of another, or of itself."""

    port: int
    healthy: bool
    slots: tuple[tuple[int, int], ...]


def _nodes(server: RedisServer) -> list[_Node]:
    """Lines of CLUSTER NODES: id host:port@bus flags master ping pong epoch link slot-slot ..."""
    nodes = []
    for line in server.text("CLUSTER", "NODES").splitlines():
        _, address, flags, _, _, _, _, link, *ranges = line.split()
        edges = [spelled.split("-") for spelled in ranges if not spelled.startswith("[")]  # [: a slot on its way
        nodes.append(
            _Node(
                port=int(address.partition("@")[0].rpartition(":")[2]),
                healthy=link == "connected" and flags in ("master", "myself,master"),
                slots=tuple((int(edge[0]), int(edge[-1])) for edge in edges),
            )
        )
    return nodes
