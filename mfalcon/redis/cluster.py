"""Calls to a cluster, each to the master that has its key: what one master does to its callers reaches no other's.

redis-py knows the layout and keeps the connections. Its own way to send a command is not used: after any failed
connection it has everybody's next command wait for the layout, asks the dead master for that too, and closes the
connections to all masters when it gets none. Here a layout that may be old is asked for beside the calls.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TimeoutError,
    TryAgainError,
)

from mfalcon.redis.command import Command

_log = logging.getLogger(__name__)

Redirection: TypeAlias = MovedError | AskError | TryAgainError

_WAITS = frozenset({"WAIT", "WAITAOF"})
_MOST_REDIRECTIONS = 5
_TRY_AGAIN_S = 0.02
_REFRESH_S = 0.5
"""Between two looks at the layout: one takes the event loop some milliseconds."""


class Cluster:
    """The masters of a cluster. Lives on the event loop."""

    def __init__(self, client: RedisCluster) -> None:
        self._client = client
        self._nodes = client.nodes_manager
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = -math.inf
        self._is_old = False
        self._failed: str | None = None
        self._layout: Any = None

    def name_of(self, key: str) -> str:
        """The name of the master of a key, empty if the layout does not tell."""
        try:
            node = self._client.get_node_from_key(key)
        except RedisClusterException:
            return ""
        return node.name if node is not None else ""

    def names(self) -> list[str]:
        """Of all masters that are known."""
        return [node.name for node in self._client.get_primaries()]

    async def on(self, name: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands to a master, whatever the slots of their keys, as `exchange` does."""
        node = self._nodes.get_node(node_name=name)
        if node is None:
            raise ClusterDownError("this master has left the cluster")
        return await self._send(node, commands, is_asking=False)

    def pings(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        """What pings each master that is known, by its name."""
        return {node.name: partial(_execute, node, "PING") for node in self._client.get_primaries()}

    async def on_each(self, *command: str) -> list[Any]:
        """The replies of all masters to one command."""
        await self.know()
        return [await _execute(node, *command) for node in self._client.get_primaries()]

    async def know(self) -> None:
        """Return once there is a layout. Raises RedisClusterException if no node tells it."""
        if not self._nodes.slots_cache:
            await asyncio.wait((self._refresh(),))
            self._refresh_result()

    def refresh_if_old(self) -> None:
        """Begin to ask for the layout if a call has found it wrong and it was not asked for just now."""
        if self._is_old and time.monotonic() - self._refreshed_at >= _REFRESH_S:
            self._refresh()

    async def exchange(self, key: str, commands: Sequence[Command]) -> list[Any]:
        """Send the commands of one slot to its master, and read their replies. A command is sent again only where a
        master says that it did nothing because another one has the slot.

        Raises what redis-py raises; what a master replies to refuse a command is its reply here.
        """
        await self.know()
        try:
            node = self._client.get_node_from_key(key)
        except SlotNotCoveredError:
            node = None
        if node is None:
            self._doubt()
            raise ClusterDownError("no master has this slot")
        replies: list[Any] = await self._send(node, commands, is_asking=False)
        for _ in range(_MOST_REDIRECTIONS):
            left = [at for at, reply in enumerate(replies) if isinstance(reply, MovedError | AskError | TryAgainError)]
            if not left:
                break
            # What has no key waits for what was written before it on its connection, so it goes along.
            left = [at for at, command in enumerate(commands) if at in left or command[0] in _WAITS]
            node, is_asking = await self._follow(replies[left[0]], node)
            for at, reply in zip(left, await self._send(node, [commands[at] for at in left], is_asking), strict=True):
                replies[at] = reply
        if any(isinstance(reply, ClusterDownError) for reply in replies):
            self._doubt()
        return replies

    async def close(self, patience_s: float) -> None:
        """Close every connection. patience_s: for a look at the layout that is under way: a cancel in the middle of
        connecting leaves the socket behind.
        """
        if self._refreshing is not None:
            await asyncio.wait((self._refreshing,), timeout=patience_s)
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        await self._nodes.aclose()
        await self._nodes.aclose("startup_nodes")

    async def _send(self, node: ClusterNode, commands: Sequence[Command], is_asking: bool) -> list[Any]:
        """On one connection. A connection that fails is the fault of this node alone."""
        ours = [PipelineCommand(at, *command) for at, command in enumerate(commands)]
        sent = [each for command in ours for each in (PipelineCommand(0, "ASKING"), command)] if is_asking else ours
        try:
            await node.execute_pipeline(sent)
            for command in ours:
                if isinstance(command.result, ConnectionError | TimeoutError):
                    raise command.result
        except (ConnectionError, TimeoutError, OSError) as error:
            self._doubt(node)
            if isinstance(error, ConnectionError):  # the others of a master that died are no better
                for connection in tuple(node._free):  # made anew by whoever takes one: nobody else may touch it then
                    connection.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise
        return [command.result for command in ours]

    async def _follow(self, redirection: Redirection, node: ClusterNode) -> tuple[ClusterNode, bool]:
        """Where to send what was redirected, and whether to say ASKING there."""
        if isinstance(redirection, TryAgainError):
            await asyncio.sleep(_TRY_AGAIN_S)
            return node, True  # said by the node that a slot moves to, while keys of one command are at both
        self._doubt()
        if isinstance(redirection, MovedError) and redirection.slot_id in self._nodes.slots_cache:
            await self._nodes.move_slot(redirection)
            return self._nodes.slots_cache[redirection.slot_id][0], False
        other = self._nodes.get_node(host=redirection.host, port=redirection.port)
        if other is None:  # it has just come
            await asyncio.wait((self._refresh(),))
            other = self._nodes.get_node(host=redirection.host, port=redirection.port)
        if other is None:
            raise redirection
        return other, not isinstance(redirection, MovedError)

    def _doubt(self, failed: ClusterNode | None = None) -> None:
        self._is_old = True
        if failed is not None:
            self._failed = failed.name
        self.refresh_if_old()

    def _refresh(self) -> "asyncio.Task[None]":
        if self._refreshing is None or self._refreshing.done():
            self._is_old, self._refreshed_at = False, time.monotonic()
            self._refreshing = asyncio.create_task(self._ask_for_layout(), name="redis-layout")
            self._refreshing.add_done_callback(_look_at)
        return self._refreshing

    def _refresh_result(self) -> None:
        assert self._refreshing is not None
        self._refreshing.result()

    async def _ask_for_layout(self) -> None:
        """Take over a new layout. redis-py would connect to every master again, so it is told only of a change."""
        failed, self._failed = self._failed, None
        try:
            if self._layout is None or await self._told_layout(failed) != self._layout:
                await self._nodes.initialize(last_failed_node_name=failed)
                self._layout = await self._told_layout(failed)
        except RedisClusterException as error:
            self._is_old = True
            _log.debug("the layout of the cluster: %s", error)
            raise
        finally:
            self._refreshed_at = time.monotonic()

    async def _told_layout(self, failed: str | None) -> Any:
        """As the first master that answers tells it; the one that failed last is asked last. None if none does."""
        masters = self._client.get_primaries()
        for node in sorted(random.sample(masters, len(masters)), key=lambda node: node.name == failed):
            with contextlib.suppress(RedisError, OSError):
                return await _execute(node, "CLUSTER SLOTS")
        return None


async def _execute(node: ClusterNode, *command: str) -> Any:
    return await node.execute_command(*command)


def _look_at(task: "asyncio.Task[None]") -> None:
    """Take note of its error, if nobody else does."""
    if not task.cancelled():
        task.exception()
