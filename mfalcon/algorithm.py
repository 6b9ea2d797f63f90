"""M-FALCON on one page: encode the history once, score any number of candidates against it in microbatches.

Source: HSTU paper (arXiv 2402.17152), section 3.4 and Algorithm 1. The paper's b_m is `microbatch`; its modified
attention mask is `TargetAttention`, in which a target sees the prefix and itself. A model without a prefix has `read`
in the place of prefill and append: what its candidates share is computed once a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from mfalcon.backends.events import ServedEvents
from mfalcon.backends.select import Served, ServedModel
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import EventSide, EventTokens, Targets
from mfalcon.models.cores import cores_for

UserState: TypeAlias = KVState | EventSide
"""What the candidates of a request are scored against, of a model of either kind."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """One request: its user's KV state or what `read` gave, its candidates, its time. targets.context is one row of
    codes, shared by all candidates: [num_features].
    """

    state: UserState
    targets: Targets
    time_ms: int


def prefill(served: ServedModel, events: EventTokens) -> KVState:
    """Encode a history [num_events] into a new KV state."""
    return append(served, served.empty_state(), events)


def append(served: ServedModel, state: KVState, delta: EventTokens) -> KVState:
    """Encode the events newer than a state [num_events]; the given state stays as it is. Raises Overloaded."""
    return append_all(served, [state], [delta])[0]


def append_all(served: ServedModel, states: Sequence[KVState], deltas: Sequence[EventTokens]) -> list[KVState]:
    """`append` for several users at once."""
    model, delta = served.model, _joined(deltas)
    with cores_for(delta.rows.numel() * model.config.dim):
        num_new = [len(new.rows) * model.tokens_per_event for new in deltas]
        longer = [state.grown(num) for state, num in zip(states, num_new, strict=True)]
        tokens, times = model.prefix_tokens(delta), model.token_times(delta)
        if model.reads_positions:
            spans = [torch.arange(new) + state.num_tokens for state, new in zip(states, num_new, strict=True)]
            tokens = model.placed(tokens, torch.cat(spans).to(tokens.device))
    served.stack.encode(longer, tokens, num_new, times)
    return longer


def read(served: ServedEvents, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
    """What a user's last events [num_events], as many as the window holds at most, and of a request the context, codes
    [num_features], and the time are to all its candidates.
    """
    with cores_for(events.rows.numel() * served.model.config.dim):
        return served.reader.read(events, context, time_ms)


def user_state(served: Served, events: EventTokens, context: Tensor, time_ms: int) -> UserState:
    """What candidates are scored against at a time, made of a window of events alone, by a model of either kind."""
    return read(served, events, context, time_ms) if isinstance(served, ServedEvents) else prefill(served, events)


def score(served: Served, state: UserState, targets: Targets, time_ms: int, microbatch: int) -> Tensor:
    """Score candidates at one request time against a state: [num_targets] -> scores [num_targets, num_tasks].

    targets: as of a `Scoring`.
    """
    return score_all(served, [Scoring(state, targets, time_ms)], microbatch)


def score_all(served: Served, requests: Sequence[Scoring], microbatch: int) -> Tensor:
    """`score` for several users at once: scores [num_targets, num_tasks] of all of them, in their order."""
    if isinstance(served, ServedEvents):
        raw = [served.reader.raw(_side(one.state), one.targets, microbatch) for one in requests]
        return served.model.scores(raw[0] if len(raw) == 1 else torch.cat(raw))
    model = served.model
    sizes = [len(request.targets.rows) for request in requests]
    targets = _side_by_side([request.targets for request in requests], sizes)
    num_numbers, states = sum(sizes) * model.config.dim, [_kv(request.state) for request in requests]
    with cores_for(num_numbers):
        tokens = model.target_tokens(targets)
        if model.reads_positions:
            behind = torch.tensor([state.num_tokens for state in states]).repeat_interleave(torch.tensor(sizes))
            tokens = model.placed_targets(tokens, behind.to(tokens.device))
    times = [request.time_ms for request in requests]
    hidden = served.stack.hidden(states, tokens, sizes, times, microbatch)
    with cores_for(num_numbers):
        return served.readout.scores(hidden, targets)


def _joined(deltas: Sequence[EventTokens]) -> EventTokens:
    if len(deltas) == 1:
        return deltas[0]
    return EventTokens(*(torch.cat([getattr(delta, name) for delta in deltas]) for name in EventTokens.__slots__))


def _side_by_side(requests: Sequence[Targets], sizes: Sequence[int]) -> Targets:
    """Each candidate with the context of its own request, and with its own dense features."""
    if len(requests) == 1:
        return requests[0]
    contexts = [targets.context.expand(size, -1) for targets, size in zip(requests, sizes, strict=True)]
    dense = [targets.dense for targets in requests if targets.dense is not None]
    rows = torch.cat([targets.rows for targets in requests])
    return Targets(rows, torch.cat(contexts), torch.cat(dense) if dense else None)


def _kv(state: UserState) -> KVState:
    assert isinstance(state, KVState)
    return state


def _side(state: UserState) -> EventSide:
    assert not isinstance(state, KVState)
    return state
