"""Reading a history back: a page of the event log, and which KV states of it lie in which tier."""

import time
from collections.abc import Iterable, Sequence

import numpy as np

from mfalcon.engine.histories import Histories
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.errors import DeadlineExceeded, HistoryMismatch
from mfalcon.history.history import History
from mfalcon.models.items import ItemTable
from mfalcon.types import CacheSource, HistoryPage, HistoryRequest, Ids, KeptState

_LONGEST_WAIT_S = 1.0
"""For Redis. Nobody who is ranked for waits for a page, so it may take longer than the read of a rank."""


async def read_page(
    histories: Histories, rankers: Iterable[LoadedRanker], request: HistoryRequest, deadline: float | None
) -> HistoryPage:
    """A page of a user's history as it is now. rankers: who know the texts of items. deadline: time.monotonic()
    seconds.

    Raises HistoryMismatch where the history is not the expected one, StorageUnavailable where the log cannot be read,
    and DeadlineExceeded.
    """
    reading = await histories.log.read(request.user_id, _patience(deadline))
    history = reading.history
    if request.expected_version not in (None, history.version):
        raise HistoryMismatch.while_reading(request.expected_version, len(history), history.version)
    first = min(max(request.first, history.base), len(history))
    stop = min(first + request.limit, len(history))
    asked = tuple(rankers) if request.with_states else ()
    states = [state for ranker in asked for state in await _states(ranker, history, deadline)]
    events = history.since(first)[: stop - first]
    return HistoryPage(
        history_len=len(history),
        version=history.version,
        base=history.base,
        first=first,
        events=events,
        page_version=history.link(stop),
        stale=reading.stale,
        states=tuple(states),
        texts=_texts_of([ranker.checkpoint.items for ranker in rankers], np.ascontiguousarray(events["item_id"])),
    )


def _texts_of(tables: Sequence[ItemTable], item_ids: Ids) -> tuple[str, ...]:
    """Of each item, of the first table that knows it; none at all where no table has texts."""
    found = [texts for table in tables if (texts := table.texts_of(item_ids)) or table.texts is not None]
    return tuple(next(filter(None, texts), "") for texts in zip(*found, strict=True))


async def _states(ranker: LoadedRanker, history: History, deadline: float | None) -> list[KeptState]:
    """The fastest tier first. What is in memory is looked at and not marked as used; Redis is asked for heads alone."""
    if ranker.states is None:
        return []
    cache, start = ranker.states, ranker.window_start(history)
    tags, kept = cache.rows.tags(history, start), list[KeptState]()
    for tier, key, num_tokens, num_bytes in cache.sizes(history.user):
        fits = key.start == start and key.is_ancestor(cache.fingerprint, history, start)
        fits = fits and cache.rows.policy.reach(key.tags, key.made_at, tags, key.stop - start) == key.stop - start
        kept.append(KeptState(ranker.name, tier, key.start, key.stop - key.start, num_tokens, num_bytes, fits))
    if cache.remote is not None and len(history) > start:
        stored = cache.remote.states
        num_events, num_bytes = await stored.stored(history, start, _patience(deadline), tags)
        if num_events:
            num_tokens = num_events * stored.layout.tokens_per_event
            kept.append(KeptState(ranker.name, CacheSource.REDIS, start, num_events, num_tokens, num_bytes, fits=True))
    return kept


def _patience(deadline: float | None) -> float:
    if deadline is None:
        return _LONGEST_WAIT_S
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before the history was read")
    return min(_LONGEST_WAIT_S, left)
