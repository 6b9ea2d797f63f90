"""Connections to the master that Sentinel names, and to no other for long: not to one whose place another has taken.

redis-py asks Sentinel where the master is when it opens a connection, and believes the first sentinel that answers. So
connections that stand are kept to a master that was replaced but lives on, cut off from the sentinels alone: calls go
to either of two masters then. Here all sentinels are asked, the newest configuration counts, and they are asked again
while nothing is opened. A connection to another master is closed before it is used again, and one to a server that says
that it is no master is not used.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.exceptions import ConnectionError, NoPermissionError, RedisError

Address: TypeAlias = tuple[str, int]

_PATIENCE_S = 0.1
"""How long a sentinel that is slow is waited for when another one has answered."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a sentinel says of the master. epoch: of its configuration, which grows with every failover. is_down: it
    does not reach that master itself.
    """

    address: Address
    epoch: int
    is_down: bool


def newest(named: Iterable[Named]) -> Address | None:
    """Where the master is, as those say who know of the last failover; None if none of them reaches it."""
    latest = max((each.epoch for each in named), default=0)
    return next((each.address for each in named if each.epoch == latest and not each.is_down), None)


class _OnlyMasters(SentinelManagedConnection):
    """Asks whom it has connected to what it is."""

    async def connect_to(self, address: Address) -> None:
        """Raises ConnectionError if a replica is there."""
        await super().connect_to(address)  # type: ignore[no-untyped-call]
        try:
            await self.send_command("INFO", "replication")
            told = await self.read_response()
            if b"role:master" not in told:
                raise ConnectionError("Sentinel names a master that is none")
        except NoPermissionError:  # then Sentinel must be believed
            pass
        except BaseException:
            await self.disconnect(nowait=True)
            raise


class _OnlyMastersOverTLS(_OnlyMasters, SentinelManagedSSLConnection):
    """The same over TLS."""


class MasterPool(SentinelConnectionPool):
    """Of the connections of one client. Lives on the event loop. options: of redis-py's connections."""

    def __init__(self, service: str, sentinel: Sentinel, *, with_tls: bool, **options: Any) -> None:
        kind = _OnlyMastersOverTLS if with_tls else _OnlyMasters
        super().__init__(service, sentinel, connection_class=kind, **options)  # type: ignore[no-untyped-call]
        self._asked: dict[int, asyncio.Task[Named | None]] = {}
        self._looking: asyncio.Task[Address] | None = None

    def look(self) -> "asyncio.Task[Address]":
        """Ask the sentinels where the master is, once at a time. Its error is MasterNotFoundError."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="redis-sentinels")
            self._looking.add_done_callback(_look_at)
        return self._looking

    async def get_master_address(self) -> Address:
        """Of the master that is to be connected to. Raises MasterNotFoundError."""
        looking = self.look()
        await asyncio.wait((looking,))  # others wait for it too: a cancel of one must not reach it
        return looking.result()

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Have a connection that is to be used be one to the master that is known now."""
        if connection.is_connected and _address_of(connection) != self.master_address:
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)
        if _address_of(connection) != self.master_address:
            await connection.disconnect(nowait=True)
            raise ConnectionError("another master was named meanwhile")

    async def aclose(self) -> None:
        """Close all connections, those to the sentinels too."""
        asking = {*self._asked.values(), *(() if self._looking is None else (self._looking,))}
        if asking:
            await asyncio.wait(asking)  # as long as a sentinel has to answer, or to accept
        await super().aclose()
        for each in self.sentinel_manager.sentinels:
            await each.aclose()

    async def _look(self) -> Address:
        address = newest(await self._answers())
        if address is None:
            raise MasterNotFoundError(f"no sentinel reaches a master of the name {self.service_name!r}")
        if address != self.master_address:
            self.master_address = address
            idle, self._available_connections = self._available_connections, []
            for connection in idle:  # nobody else has them any more
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
        return address

    async def _answers(self) -> Sequence[Named]:
        """Of those sentinels that answer, and soon, if any does."""
        for number, sentinel in enumerate(self.sentinel_manager.sentinels):
            if number not in self._asked or self._asked[number].done():
                self._asked[number] = asyncio.create_task(_ask(sentinel, self.service_name))
                self._asked[number].add_done_callback(_look_at)
        waiting = set(self._asked.values())
        _, waiting = await asyncio.wait(waiting, timeout=_PATIENCE_S)
        while waiting and not self._told():
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return self._told()

    def _told(self) -> list[Named]:
        done = [task for task in self._asked.values() if task.done() and not task.cancelled()]
        return [told for task in done if task.exception() is None and (told := task.result()) is not None]


async def _ask(sentinel: Any, service: str) -> Named | None:
    """What one says; None if it knows no such master. Raises what redis-py raises.

    The address comes from a question of its own: while a failover ends, that names the new master already.
    """
    pipeline = sentinel.pipeline(transaction=False)
    pipeline.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    pipeline.execute_command("SENTINEL", "MASTER", service)
    named, master = await pipeline.execute(raise_on_error=False)
    if not isinstance(named, list) or not isinstance(master, list):
        return None
    fields = dict(zip(master[::2], master[1::2], strict=True))
    address, watched = _address(*named), _address(fields[b"ip"], fields[b"port"])
    flags = fields[b"flags"].split(b",")
    is_down = address == watched and (b"s_down" in flags or b"o_down" in flags)
    return Named(address, int(fields[b"config-epoch"]), is_down)


def _address(host: bytes, port: bytes) -> Address:
    return host.decode(), int(port)


def _address_of(connection: Any) -> Address:
    return connection.host, connection.port


def _look_at(task: "asyncio.Task[Any]") -> None:
    """Take note of its error, if nobody else does."""
    if not task.cancelled():
        task.exception()
