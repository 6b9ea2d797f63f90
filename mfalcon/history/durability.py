"""What an acknowledged append to the log in Redis, or a deletion, survives, and how Redis is made to say that it does.

`memory` is as much as Redis keeps by itself. `fsync`: the append-only file with it is on the master's disk. `replica`:
a replica has it. Redis is asked behind the script on the same connection, and answers once that is so for everything
that this connection has written: so a repetition of an append must write something too.
"""

from typing import Literal, TypeAlias

from mfalcon.redis.client import Reply
from mfalcon.redis.command import Command

Durability: TypeAlias = Literal["memory", "fsync", "replica"]

FSYNC_SINCE = (7, 2)
"""The version of Redis that knows WAITAOF; Valkey says that it is one of these."""
_MARGIN_S, _MARGIN = 0.2, 0.2
"""Of the time of a call, what is left for Redis to say that it was too short: it looks ten times a second."""


def wait_command(durability: Durability, timeout_s: float) -> Command | None:
    """What is sent behind a script that must be done within so many seconds."""
    milliseconds = max(1, round(1_000 * (timeout_s - max(_MARGIN_S, _MARGIN * timeout_s))))  # to Redis 0 is for ever
    match durability:
        case "memory":
            return None
        case "fsync":
            return ("WAITAOF", 1, 0, milliseconds)
        case "replica":
            return ("WAIT", 1, milliseconds)


def is_reached(durability: Durability, reply: Reply) -> bool:
    """Whether the answer to that says so."""
    match durability:
        case "memory":
            return True
        case "fsync":
            return bool(reply[0] >= 1)
        case "replica":
            return bool(reply >= 1)


def place_of(durability: Durability) -> str:
    """Where that has what is acknowledged, in words."""
    return "on the disk of Redis" if durability == "fsync" else "in a replica of Redis"
