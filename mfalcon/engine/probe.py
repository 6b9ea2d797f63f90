"""A few scores before a model answers anybody: finite, and those of the reference backend on the same weights."""

import numpy as np
import torch
from torch import Tensor

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import ServedModel, reference
from mfalcon.errors import CheckpointError
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.heads import blend_weights

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Worst absolute score difference per dtype. float64 and float32: rounding of differently ordered sums. bfloat16:
one unit in the last place of a hidden value (0.4%; float16 .05%) may flip between two orders and pass through the
heads.
"""
CODES_BOUNDS = {"int8": 2e-2, "fp8": 1e-1}
"""The same with KV pages of 8-bit codes: a key or value is off by up to 0.4% of its head's largest, in float8 by up to
6% of itself.
"""
_SLACK = 10.0
"""A probe tells a wrong model from a right one; how exact a right one is, the laws measure."""
_EVENTS, _NEW_EVENTS, _TARGETS = 24, 3, 16
_TIME_MS = 1_700_000_000_000
_STEP_MS = 3_600_000


def probe(served: ServedModel, kv_dtype: str = "auto") -> None:
    """Prefill, append and score a made-up history by the served backend and by the reference.

    Raises CheckpointError if a score or the blend of some is not finite, or differs by more than rounding explains.
    """
    config = served.model.config
    blend = torch.tensor(blend_weights(config.tasks, config.blend), dtype=torch.float64)
    with torch.inference_mode():
        found, expected = _scores(served), _scores(reference(served.model))
    for what, scores in ((served.stack.name, found), ("reference", expected)):
        if not (torch.isfinite(scores).all() and torch.isfinite((scores @ blend).float()).all()):
            raise CheckpointError(f"{config.name}: scores or their blend are not finite on backend {what}")
    dtype = served.model.items.id.weight.dtype
    bound = _SLACK * max(BOUNDS[dtype], CODES_BOUNDS.get(kv_dtype, 0.0))
    unit = expected.abs().amax(0).clamp(min=1)
    worst = float(((found - expected).abs() / unit).max())
    if worst > bound:
        raise CheckpointError(
            f"{config.name}: the scores of backend {served.stack.name} differ from the reference's by {worst:.2g}, "
            f"must be at most {bound:.2g} in {str(dtype).removeprefix('torch.')}"
        )


def _scores(served: ServedModel) -> Tensor:
    """[_TARGETS, num_tasks] in float64, on the CPU."""
    model = served.model
    config, device = model.config, model.items.id.weight.device
    num_events = min(_EVENTS, config.max_history)
    rng = np.random.default_rng(0)
    events = _tokens(
        rng.integers(0, config.num_items, num_events),
        rng.integers(0, 1 << min(len(config.actions), 16), num_events),
        np.full(num_events, config.value_center),
        _TIME_MS + _STEP_MS * np.arange(num_events),
        device=device,
    )
    first = max(0, num_events - _NEW_EVENTS)
    state = prefill(served, _part(events, slice(0, first)))
    state = append(served, state, _part(events, slice(first, None)))
    rows = torch.from_numpy(rng.integers(0, config.num_items, _TARGETS)).to(device)
    context = torch.zeros(len(config.context_features), dtype=torch.int64, device=device)
    time_ms = _TIME_MS + _STEP_MS * num_events
    return score(served, state, Targets(rows, context), time_ms, _TARGETS).to("cpu", torch.float64)


def _tokens(*columns: np.ndarray, device: torch.device) -> EventTokens:
    return EventTokens(*(torch.from_numpy(column).to(device) for column in columns))


def _part(events: EventTokens, part: slice) -> EventTokens:
    return EventTokens(events.rows[part], events.actions[part], events.values[part], events.times[part])
