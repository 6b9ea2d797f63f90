"""Which chunks are a state of a history: the longest run of good ones, and nothing of any other history."""

from collections.abc import AsyncIterator

import pytest
import torch

from mfalcon.history.history import History, no_history
from mfalcon.kvcache.chunk import ChunkLayout, PayloadDtype
from mfalcon.kvcache.remote import RedisStates, RemoteOptions
from mfalcon.kvcache.state import KVPool, KVShape, PlainLayout
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import Events
from tests.small import random_events

LAYOUT = ChunkLayout(b"f" * 16, 2, 1, 1, 512, 512, PayloadDtype.FLOAT64)
SHAPE = KVShape(1, 1, 512, 512, torch.float64, torch.device("cpu"))
SIZE = LAYOUT.events_per_chunk
EVENTS = random_events(3 * SIZE)


@pytest.fixture
def metrics() -> StateMetrics:
    return StateMetrics()


@pytest.fixture
async def states(metrics: StateMetrics) -> AsyncIterator[RedisStates]:
    """Asks no server."""
    client = RedisClient(RedisSettings("redis://127.0.0.1:1"), metrics)
    options = RemoteOptions(ttl_s=100, log_is_here=True)
    yield RedisStates(client, Keys("t"), LAYOUT, 10_000, options, metrics)
    await client.close()


def history(events: Events, user_id: str = "ann") -> History:
    return no_history(user_id, b"one life").extended(events)


def chunks(states: RedisStates, of: History, start: int = 0) -> list[bytes | None]:
    """As a replica would have written them for history[start:]."""
    num_events = len(of) - start
    num_tokens = num_events * LAYOUT.tokens_per_event
    state = KVPool(PlainLayout(SHAPE)).empty().grown(num_tokens)
    state.write(0, torch.zeros(1, num_tokens, 512), torch.zeros(1, num_tokens, 512))
    return [states.pack(of, start, number, state) for number in range(states.num_chunks(num_events))]


def rejected(metrics: StateMetrics, reason: str) -> float:
    return metrics.registry.get_sample_value("mfalcon_chunks_rejected_total", {"reason": reason}) or 0.0


def test_the_sizes_here_are_odd_enough() -> None:
    assert 10 < SIZE < 40


@pytest.mark.parametrize("length", [1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE])
async def test_a_whole_state(states: RedisStates, length: int) -> None:
    of = history(EVENTS[:length])
    run = states.verify(chunks(states, of), of, 0)
    assert run.stop == length
    assert sum(tokens for _, tokens in run.payloads) == 2 * length


async def test_an_ancestor_counts_as_far_as_it_goes(states: RedisStates) -> None:
    older = chunks(states, history(EVENTS[: SIZE + 5]))
    assert states.verify(older, history(EVENTS), 0).stop == SIZE + 5


async def test_a_longer_state_counts_as_far_as_it_is_whole(states: RedisStates, metrics: StateMetrics) -> None:
    """Another replica wrote on between our reading of the log and of the chunks."""
    newer = chunks(states, history(EVENTS))
    assert states.verify(newer, history(EVENTS[: 2 * SIZE + 3]), 0).stop == 2 * SIZE
    assert rejected(metrics, "history") == 1


@pytest.mark.parametrize("position", [0, SIZE - 1, SIZE, 2 * SIZE])
@pytest.mark.parametrize("field", ["item_id", "actions", "value", "time_ms"])
async def test_nothing_after_an_edit_is_used(
    states: RedisStates, metrics: StateMetrics, position: int, field: str
) -> None:
    """Same user, same length, same window: only the hash tells."""
    edited = EVENTS.copy()
    edited[field][position:] += 1
    assert states.verify(chunks(states, history(EVENTS)), history(edited), 0).stop == position // SIZE * SIZE
    assert rejected(metrics, "history") == 1


async def test_another_window_or_another_place(states: RedisStates) -> None:
    of = history(EVENTS)
    assert states.verify(chunks(states, of), of, 8).stop == 8
    assert states.verify(chunks(states, of)[1:], of, 0).stop == 0
    good = chunks(states, of)
    assert states.verify([good[0], good[2], good[1]], of, 0).stop == SIZE


async def test_a_hole_ends_the_run(states: RedisStates) -> None:
    good = chunks(states, history(EVENTS))
    assert states.verify([good[0], None, good[2]], history(EVENTS), 0).stop == SIZE
    assert states.verify([None, *good[1:]], history(EVENTS), 0).stop == 0


async def test_another_user(states: RedisStates, metrics: StateMetrics) -> None:
    assert states.verify(chunks(states, history(EVENTS, "bob")), history(EVENTS), 0).stop == 0
    assert rejected(metrics, "user") == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
async def test_good_bytes_of_no_number_are_a_miss_and_counted(
    states: RedisStates, metrics: StateMetrics, bad: float
) -> None:
    """Forged, or by a replica that computes wrongly: its checksum holds, and every score against it would be NaN."""
    of = history(EVENTS)
    state = KVPool(PlainLayout(SHAPE)).empty().grown(2 * len(EVENTS))
    k, v = torch.zeros(2, 1, 2 * len(EVENTS), 512, dtype=torch.float64)
    v[0, 2 * SIZE + 7, 300] = bad
    state.write(0, k, v)
    values = [states.pack(of, 0, number, state) for number in range(3)]
    assert states.verify(values, of, 0).stop == SIZE
    assert rejected(metrics, "finite") == 1
    v[0, 2 * SIZE + 7, 300] = 1e300
    state.write(0, k, v)
    values[1] = states.pack(of, 0, 1, state)
    assert states.verify(values, of, 0).stop == len(EVENTS)
