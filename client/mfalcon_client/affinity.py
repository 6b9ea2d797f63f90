"""The key by which a load balancer sends a user's calls to one replica."""

from hashlib import blake2b

RANK_KEY = "x-rank-key"
"""Metadata of every call for a user: a balancer cannot read the message."""


def rank_key(user_id: str) -> str:
    """The 16 hexadecimal digits of the 8-byte BLAKE2b of the user id in UTF-8; the server computes the same."""
    return blake2b(user_id.encode(), digest_size=8).hexdigest()
