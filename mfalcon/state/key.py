"""The chained hash of a history and the key of a KV state. A state is used only for exactly the history it was made
from.

link[0] = H(user id), link[i + 1] = H(link[i] + event i): the hash at length n covers every event before it, so an
edited, shrunk or swapped history can never match a state of the old one.
"""

import hashlib
from dataclasses import dataclass

from mfalcon.types import Events

LINK_BYTES = 16


def first_link(user_id: str) -> bytes:
    """Hash of an empty history of a user."""
    return hashlib.blake2b(user_id.encode(), digest_size=LINK_BYTES, person=b"mfalcon.user").digest()


def chain(link: bytes, events: Events) -> bytes:
    """Hashes after each event, from the hash before the first: num_events * LINK_BYTES bytes."""
    size = events.dtype.itemsize
    content = events.tobytes()
    links = bytearray()
    for start in range(0, len(content), size):
        link = hashlib.blake2b(link + content[start : start + size], digest_size=LINK_BYTES).digest()
        links += link
    return bytes(links)


@dataclass(frozen=True, slots=True)
class StateKey:
    """What a KV state was made from: the events [start, stop) of a history that hashes to `link` at `stop`.

    fingerprint names the checkpoint and the dtype; the hash covers the user and every event before `stop`.
    """

    fingerprint: str
    user_id: str
    start: int
    stop: int
    link: bytes
