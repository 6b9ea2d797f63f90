"""The chained hash of a history: a KV state is used only for exactly the history that it was made from.

link(0) = H(user id) and link(n) = H(link(b) + events[b:n]), b being the last multiple of CHAIN_BLOCK before n. The hash
at length n covers the user and every event before n, so an edited, shrunk or swapped history can never match a state of
the old one. In blocks, because one hash of 32 events costs little more than a hash of one.
"""

import hashlib

from mfalcon.types import Events

LINK_BYTES = 16
CHAIN_BLOCK = 32
"""Events that one stored link covers."""


def user_hash(user_id: str) -> bytes:
    """Hash of a user id, and of its empty history: the name of the user in keys and chunks."""
    return hashlib.blake2b(user_id.encode(), digest_size=LINK_BYTES, person=b"mfalcon.user").digest()


def link_after(link: bytes, events: Events) -> bytes:
    """The link after 1 to CHAIN_BLOCK events, from the link at the block's start."""
    return hashlib.blake2b(link + events.tobytes(), digest_size=LINK_BYTES).digest()


def block_links(link: bytes, events: Events) -> bytes:
    """Links after each whole block of events, from the link before the first: num_blocks * LINK_BYTES bytes."""
    links = bytearray()
    for start in range(0, len(events) - CHAIN_BLOCK + 1, CHAIN_BLOCK):
        link = link_after(link, events[start : start + CHAIN_BLOCK])
        links += link
    return bytes(links)


def num_equal(links: bytes, others: bytes) -> int:
    """How many of the first links are equal; every link covers those before it, so no later ones are."""
    low, high = 0, min(len(links), len(others)) // LINK_BYTES
    while low < high:
        middle = (low + high) // 2
        at = slice(middle * LINK_BYTES, (middle + 1) * LINK_BYTES)
        low, high = (middle + 1, high) if links[at] == others[at] else (low, middle)
    return low
