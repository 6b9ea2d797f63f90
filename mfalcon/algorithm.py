"""M-FALCON on one page: encode the history once, score any number of candidates against it in microbatches.

Source: HSTU paper (arXiv 2402.17152), section 3.4 and Algorithm 1. The paper's b_m is `microbatch`; its modified
attention mask is `TargetAttention`, in which a target sees the prefix and itself.
"""

from torch import Tensor

from mfalcon.kv import KVState
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.cores import cores_for
from mfalcon.models.served import ServedModel


def prefill(served: ServedModel, events: EventTokens) -> KVState:
    """Encode a history [num_events] into a new KV state."""
    return append(served, served.empty_state(), events)


def append(served: ServedModel, state: KVState, delta: EventTokens) -> KVState:
    """Encode the events newer than a state [num_events]; the given state stays as it is. Raises Overloaded."""
    model = served.model
    with cores_for(delta.rows.numel() * model.config.layer.dim):
        longer = state.extend(model.token_times(delta))
        tokens = model.prefix_tokens(delta)
    served.stack.encode(longer, tokens)
    return longer


def score(served: ServedModel, state: KVState, targets: Targets, time_ms: int, microbatch: int) -> Tensor:
    """Score candidates at one request time against a state: [num_targets] -> scores [num_targets, num_tasks].

    targets.context is one row of codes, shared by all candidates of the request: [num_features].
    """
    model = served.model
    num_numbers = targets.rows.numel() * model.config.layer.dim
    with cores_for(num_numbers):
        tokens = model.target_tokens(targets)
    hidden = served.stack.hidden(state, tokens, time_ms, microbatch)
    with cores_for(num_numbers):
        return model.heads.scores(model.predict(hidden, targets))
