"""The affinity key of a user: a balancer hashes it, so that a user's requests meet one replica and its KV state."""

import hashlib
from typing import Final

RANK_KEY: Final = "x-rank-key"
"""Header over HTTP, metadata over gRPC. The body of a request is closed to a balancer, and an id belongs in no log."""


def rank_key(user_id: str) -> str:
    """16 hex digits. proto/ranking.proto says the same to clients in other languages."""
    return hashlib.blake2b(user_id.encode(), digest_size=8).hexdigest()
