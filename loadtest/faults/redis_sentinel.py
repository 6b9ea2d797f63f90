"""A real master with its replica, and the sentinels that watch them, for tests and for runs under faults."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import redis

from loadtest.faults.redis_server import HOST, RedisServer, Reply, wait_for
from mfalcon.errors import ConfigError

_AGREED_S = 12.0
"""Sentinels look at a replica every ten seconds."""
_SETTLED_S = 120.0


@dataclass(frozen=True, slots=True)
class _View:
    """What a sentinel says: the port of the master, its epoch, whether a failover is under way, the replicas that could
    take the master's place, and how many other sentinels it has found.
    """

    port: int
    epoch: int
    is_changing: bool
    replicas: frozenset[int]
    others: int


class _SentinelServer(RedisServer):
    """A sentinel: the same binary, told by a file, which it rewrites."""

    def _command_line(self) -> list[str]:
        config = self.directory / "sentinel.conf"
        if not config.exists():  # a later start goes on with what the sentinel knew
            config.write_text(f"port {self.port}\nbind {HOST}\ndir {self.directory}\n")
        return [str(config), "--sentinel"]

    def monitor(self, name: str, master: RedisServer, quorum: int = 1) -> None:
        """Watch a master, which is given up after a silent second, and nothing else by this name. quorum: sentinels
        that must agree on it.
        """
        with suppress(redis.ResponseError):
            self.command("SENTINEL", "REMOVE", name)
        self.command("SENTINEL", "MONITOR", name, HOST, master.port, quorum)
        self.command("SENTINEL", "SET", name, "down-after-milliseconds", 1000)
        self.command("SENTINEL", "SET", name, "failover-timeout", 5000)

    def view(self, name: str) -> _View | None:
        """What it says; None if it does not answer, or knows no such master."""
        try:
            named = self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            master = _fields(self.command("SENTINEL", "MASTER", name))
            replicas = self.command("SENTINEL", "REPLICAS", name)
        except redis.RedisError:
            return None
        if not isinstance(named, list) or not isinstance(named[1], bytes) or not isinstance(replicas, list):
            return None
        # A sentinel has read from a replica itself that it follows; before, it would not choose it.
        known = [_fields(each) for each in replicas]
        return _View(
            int(named[1]),
            int(master["config-epoch"]),
            "failover_in_progress" in master["flags"],
            frozenset(int(each["port"]) for each in known if each["master-link-status"] == "ok"),
            int(master["num-other-sentinels"]),
        )


def _fields(reply: Reply) -> dict[str, str]:
    """A reply of names and values by turns."""
    assert isinstance(reply, list), reply
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


class RedisSentinel:
    """A master, its replica and one sentinel, or several: `with RedisSentinel() as sentinel: ...`.

    A master that is silent for a second is replaced without being asked, when most sentinels agree. arguments: of
    master and replica.
    """

    NAME = "mymaster"

    def __init__(self, num_sentinels: int = 1, *, append_only: bool = False, arguments: Sequence[str] = ()) -> None:
        # By default a master lets five seconds pass before it sends a replica its data.
        settings = ("--repl-diskless-sync-delay", "0", *arguments)
        self.servers = [RedisServer(append_only=append_only, arguments=settings) for _ in range(2)]
        self.sentinels = [_SentinelServer() for _ in range(num_sentinels)]
        self.sentinel = self.sentinels[0]
        self._quorum = num_sentinels // 2 + 1
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (*self.servers, *self.sentinels):
                stack.enter_context(server)
            self._arrange(*self.servers)
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all of them."""
        self._entered.close()

    @property
    def url(self) -> str:
        """Where the sentinels are and what they call the master: redis+sentinel://host:port,host:port/name."""
        return f"redis+sentinel://{','.join(f'{HOST}:{each.port}' for each in self.sentinels)}/{self.NAME}"

    @property
    def master(self) -> RedisServer:
        """Whom the sentinels name: those that know of the last failover. Raises ConfigError if none says anything."""
        views: list[_View] = []

        def asked() -> bool:
            views.extend(self._views())
            return bool(views)

        wait_for(asked, "a sentinel that names a master")
        return self._at(max(views, key=lambda view: view.epoch).port)

    def other(self, server: RedisServer) -> RedisServer:
        """Of the two."""
        return self.servers[1 - self.servers.index(server)]

    def restore(self) -> None:
        """Start what is dead, thaw what is frozen, and return once a replica follows the master that all sentinels
        name and could take its place. Sentinels that do not come to that by themselves are told anew whom to watch.
        Raises ConfigError after two minutes.
        """
        for server in (*self.servers, *self.sentinels):
            server.mend()
        with suppress(ConfigError):
            wait_for(self._settled, "sentinels that agree on a master and its replica", _AGREED_S)
            return
        master = self.master
        for sentinel in self.sentinels:  # so that nobody changes roles any more
            with suppress(redis.ResponseError):
                sentinel.command("SENTINEL", "REMOVE", self.NAME)
        self._arrange(master, self.other(master))

    def failover(self) -> None:
        """Make the replica the master; returns once it is one and the sentinel names it. All must be running."""
        old = self.master
        new = self.other(old)
        if _is_master(new):  # left over from the last failover: the sentinel would take ten seconds to see to it
            self._arrange(old, new)
        wait_for(self._begin_failover, "a replica that the sentinel accepts")
        wait_for(lambda: self.master is new and _is_master(new), "another master")

    def _arrange(self, master: RedisServer, replica: RedisServer) -> None:
        """Make them what they are to be, and tell the sentinels."""
        if not _is_master(master):
            master.command("REPLICAOF", "NO", "ONE")
        _follow(replica, master)
        for sentinel in self.sentinels:
            sentinel.monitor(self.NAME, master, self._quorum)
        wait_for(self._settled, "sentinels that agree on a master and its replica", _SETTLED_S)

    def _settled(self) -> bool:
        """Whether all is well. Where only the replica does not know its master yet, it is told: a sentinel would see to
        it after ten seconds.
        """
        views = self._views()
        if len(views) < len(self.sentinels) or len({view.port for view in views}) > 1:
            return False
        if any(view.is_changing for view in views):
            return False
        master = self._at(views[0].port)
        replica = self.other(master)
        if not _is_master(master):
            return False
        if not _is_told(replica, master):
            replica.command("REPLICAOF", HOST, master.port)
            return False
        return _is_in_step(replica, master) and all(
            replica.port in view.replicas and view.others == len(self.sentinels) - 1 for view in views
        )

    def _views(self) -> list[_View]:
        return [view for each in self.sentinels if (view := each.view(self.NAME)) is not None]

    def _at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    def _begin_failover(self) -> bool:
        try:
            self.sentinel.command("SENTINEL", "FAILOVER", self.NAME)
        except redis.ResponseError as error:  # no good replica yet, or a failover that is not over
            return "INPROG" in str(error)
        return True


def _follow(replica: RedisServer, master: RedisServer) -> None:
    """Make one a replica of the other; returns once it has its data."""
    replica.command("REPLICAOF", HOST, master.port)
    wait_for(lambda: _is_in_step(replica, master), "a replica in step")


def _is_told(replica: RedisServer, master: RedisServer) -> bool:
    return f"master_port:{master.port}\r" in replica.text("INFO", "replication")


def _is_in_step(replica: RedisServer, master: RedisServer) -> bool:
    # The replica counts its link as up before the master begins to send it writes.
    return (
        _is_told(replica, master)
        and "master_link_status:up" in replica.text("INFO", "replication")
        and f"port={replica.port},state=online" in master.text("INFO", "replication")
    )


def _is_master(server: RedisServer) -> bool:
    return "role:master" in server.text("INFO", "replication")
