"""Encodes histories and recent events of requests, a slice at a time, and keeps the states of histories. On a device
all of it is queued, and what is to be known of it is asked for later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from mfalcon.algorithm import append_all
from mfalcon.backends.select import Served, ServedModel
from mfalcon.engine.clock import Clock
from mfalcon.engine.progress import Progress
from mfalcon.engine.slices import fitting
from mfalcon.history.history import History
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.cost import EncodeCost
from mfalcon.kvcache.finite import finiteness
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import event_tokens
from mfalcon.types import Events, no_events


@dataclass(slots=True, eq=False)
class Encoded:
    """What is to be done in this order once the encodings of a slice are done. Each step tells the seconds that it
    learnt of.
    """

    steps: list[Callable[[], float]] = field(default_factory=list)
    seconds: float = 0.0

    def settle(self) -> float:
        """Do what is not done yet; returns the seconds of all encodings."""
        while self.steps:
            self.seconds += self.steps.pop(0)()
        return self.seconds


class Encoder:
    """Of one model, on its device. slice_events: a slice is a multiple of so many."""

    def __init__(self, served: ServedModel, cache: KVCache, cost: EncodeCost, clock: Clock, slice_events: int) -> None:
        self._cache = cache
        self._cost = cost
        self._clock = clock
        self._slice_events = slice_events
        self._per_event = served.model.tokens_per_event
        self._device = served.model.items.id.weight.device

    def seconds(self, prefix: int, num_events: int) -> float:
        """Predicted, of so many events behind so many tokens."""
        return self._cost.predict(prefix, num_events * self._per_event).seconds

    def encode(self, works: Sequence[Progress], left: list[float], whole: float, encoded: Encoded) -> None:
        """Encode of each what fits into the seconds it has left of a whole slice: first the histories, which are kept,
        then what is recent. Of those with one history only the first encodes it. What is to be known of it once it is
        done is noted in `encoded`.
        """
        if all([work.is_encoded for work in works]):
            return
        leaders = _leaders(works)
        chunks = [
            no_events() if index in leaders else self._next_events(work, work.history, index, left, whole)
            for index, work in enumerate(works)
        ]
        self._append(works, chunks, encoded)
        for work, chunk in zip(works, chunks, strict=True):
            if len(chunk):
                work.history = work.history[len(chunk) :]
                if work.keep is not None and not len(work.history):
                    encoded.steps.append(partial(self._keep, work, work.kv, work.keep))
        for index, leader in leaders.items():
            works[index].follow(works[leader], self._cache.fastest)
            encoded.steps.append(partial(_spoil_with, works[index], works[leader]))
        chunks = [
            no_events() if len(work.history) else self._next_events(work, work.recent, index, left, whole)
            for index, work in enumerate(works)
        ]
        self._append(works, chunks, encoded)
        for work, chunk in zip(works, chunks, strict=True):
            work.recent = work.recent[len(chunk) :]

    def _next_events(self, work: Progress, events: Events, index: int, left: list[float], whole: float) -> Events:
        """Of events, those that fit into the seconds left, a few at least if nothing was done in this slice."""
        unit, prefix = self._slice_events, work.kv.num_tokens
        num = fitting(lambda num: self.seconds(prefix, num), len(events), unit, left[index])
        if not num and left[index] == whole:
            num = min(unit, len(events))
        left[index] -= self.seconds(prefix, num)
        return events[:num]

    def _append(self, works: Sequence[Progress], chunks: Sequence[Events], encoded: Encoded) -> None:
        """Add events to each state; on a device this is queued."""
        growing = [(work, chunk) for work, chunk in zip(works, chunks, strict=True) if len(chunk)]
        if not growing:
            return
        began = self._clock.now()
        longer = self._longer(growing)
        ended = self._clock.now()
        sizes = [(work.kv.num_tokens, state.num_tokens) for (work, _), state in zip(growing, longer, strict=True)]
        finite = finiteness(longer, [before for before, _ in sizes])
        for (work, _), state in zip(growing, longer, strict=True):
            work.hold(state)

        def settle() -> float:
            """Learn what it cost, of several users each its share by what was expected of it, and what is spoilt."""
            cost, seconds = self._cost, self._clock.seconds(began, ended)
            expected = [cost.predict(before, after - before).seconds for before, after in sizes]
            for (before, after), share in zip(sizes, expected, strict=True):
                cost.observe(before, after - before, seconds * share / sum(expected))
            for (work, _), is_finite in zip(growing, finite(), strict=True):
                work.is_spoilt |= not is_finite
            return seconds

        encoded.steps.append(settle)

    def _longer(self, growing: Sequence[tuple[Progress, Events]]) -> list[KVState]:
        """The states with these events behind them; those who read one version of the items are computed together."""
        longer: dict[int, KVState] = {}
        for served, indices in alike([work for work, _ in growing]):
            assert isinstance(served, ServedModel)
            parts = [growing[index] for index in indices]
            deltas = [event_tokens(chunk, work.items.items, self._device) for work, chunk in parts]
            longer |= zip(indices, append_all(served, [work.kv for work, _ in parts], deltas), strict=True)
        return [longer[index] for index in range(len(growing))]

    def _keep(self, work: Progress, state: KVState, keep: tuple[History, int, int]) -> float:
        """Keep the state of a history that has been encoded to its end."""
        if not work.is_spoilt:
            history, start, own_start = keep
            self._cache.put(history, start, state, own_start, work.tags, work.made_at)
        return 0.0


def alike(works: Sequence[Progress]) -> Iterator[tuple[Served, list[int]]]:
    """Positions of those that read one version of the items, and the model with these: nearly always all of them."""
    groups: dict[int, list[int]] = {}
    for index, work in enumerate(works):
        groups.setdefault(id(work.items), []).append(index)
    return ((works[indices[0]].items.served, indices) for indices in groups.values())


def _leaders(works: Sequence[Progress]) -> dict[int, int]:
    """Of those that wait for the same history as one before them: whom they follow."""
    if len(works) < 2:
        return {}
    first: dict[tuple[bytes, int, int, int, bytes], int] = {}
    leaders = {}
    for index, work in enumerate(works):
        if work.keep is None or not len(work.history):
            continue
        log, start, _ = work.keep
        place = log.link(len(log)), start, len(work.history), id(work.items), work.tags
        leader = first.setdefault(place, index)
        if leader != index:
            leaders[index] = leader
    return leaders


def _spoil_with(follower: Progress, leader: Progress) -> float:
    follower.is_spoilt |= leader.is_spoilt
    return 0.0
