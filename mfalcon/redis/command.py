"""What is sent to Redis."""

from typing import TypeAlias

Command: TypeAlias = tuple[str | bytes | int, ...]
