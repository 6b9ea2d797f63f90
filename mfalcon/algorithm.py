"""M-FALCON on one page: encode the history once, score any number of candidates against it in microbatches.

Source: HSTU paper (arXiv 2402.17152), section 3.4 and Algorithm 1. The paper's b_m is `microbatch`; its modified
attention mask is `TargetAttention`, in which a target sees the prefix and itself.
"""

import torch
from torch import Tensor

from mfalcon.attention import PrefixAttention, TargetAttention
from mfalcon.kv import KVState, empty_state
from mfalcon.models.base import EventTokens, Ranker, Targets


def prefill(model: Ranker, events: EventTokens) -> KVState:
    """Encode a history [num_events] into a new KV state."""
    return append(model, empty_state(model.kv_shape()), events)


def append(model: Ranker, state: KVState, delta: EventTokens) -> KVState:
    """Encode the events newer than a state [num_events]; the given state stays as it is."""
    longer = state.extend(model.token_times(delta))
    model.stack.encode(model.prefix_tokens(delta), PrefixAttention(longer))
    return longer


def score(model: Ranker, state: KVState, targets: Targets, time_ms: int, microbatch: int) -> Tensor:
    """Score candidates at one request time against a state: [num_targets] -> scores [num_targets, num_tasks].

    targets.context is one row of codes, shared by all candidates of the request: [num_features].
    """
    attend = TargetAttention(state, time_ms)
    scores = []
    for rows in targets.rows.split(microbatch):
        chunk = Targets(rows, targets.context)
        hidden = model.stack(model.target_tokens(chunk), attend)
        scores.append(model.heads.scores(model.predict(hidden, chunk)))
    return torch.cat(scores)
