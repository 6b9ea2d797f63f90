"""A Redis in which one value is whatever the target says, for what reads it; nothing else is asked of it."""

from collections.abc import Callable, Sequence

from mfalcon.redis.client import RedisClient, RedisSettings, Reply
from mfalcon.redis.command import Command


class ScriptedRedis(RedisClient):
    """answer: the reply to a command."""

    def __init__(self, answer: Callable[[Command], Reply]) -> None:
        # Without the parent's: there is no connection.
        self.settings = RedisSettings("redis://nobody")
        self._answer = answer

    async def call(self, kind: str, key: str, commands: Sequence[Command], timeout_s: float) -> Reply:
        """The replies."""
        return [self._answer(command) for command in commands]
