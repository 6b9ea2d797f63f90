"""Real KV states of so many pages, with nothing on them, and histories of so many events."""

import torch

from mfalcon.history.history import History, no_history
from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from mfalcon.types import Events
from tests.small import random_events

LAYOUT = PlainLayout(KVShape(1, 1, 1, 1, torch.float32, torch.device("cpu")), page_tokens=1)
PAGE = LAYOUT.page_bytes
EVENTS = random_events(40)
LIFE = b"one life"


def state_of(num_pages: int, pool: KVPool | None = None) -> KVState:
    """A state of so many pages, which are as many tokens; of a pool of its own if none is given."""
    return (pool or KVPool(LAYOUT)).empty().grown(num_pages)


def history(events: Events | int, user_id: str = "ann", life: bytes = LIFE) -> History:
    """These events of a user, or the first so many of `EVENTS`."""
    return no_history(user_id, life).extended(EVENTS[:events] if isinstance(events, int) else events)
