"""A few scores before a model answers anybody: finite, and those of the reference backend on the same weights."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfalcon.algorithm import append, prefill, read, score
from mfalcon.backends.events import ServedEvents
from mfalcon.backends.select import Served, any_reference
from mfalcon.errors import CheckpointError
from mfalcon.features.standard import LARGEST
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.config import RankerConfig
from mfalcon.types import MAX_TIME_MS

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Worst absolute score difference per dtype. float64 and float32: rounding of differently ordered sums. bfloat16:
one unit in the last place of a hidden value (0.4%; float16 .05%) may flip between two orders and pass through the
heads.
"""
CODES_BOUNDS = {"int8": 2e-2, "fp8": 1e-1, "fp8-products": 1.5e-1}
"""The same with KV pages of 8-bit codes: a key or value is off by up to 0.4% of its head's largest, in float8 by up to
6% of itself. Products of float8 round queries and weights likewise.
"""
_SLACK = 10.0
"""A probe tells a wrong model from a right one; how exact a right one is, the laws measure."""
_EVENTS, _NEW_EVENTS, _TARGETS = 24, 3, 16
_TIME_MS = 1_700_000_000_000
_STEP_MS = 3_600_000
LARGEST_VALUE = float(np.finfo(np.float32).max)
"""Of an event."""


def probe(served: Served, kv_dtype: str = "auto") -> None:
    """Score a made-up history by the served backend, in a prefill and an append, and by the reference, in one prefill;
    and one of the most extreme events that are legal by the served backend alone. So a model that says that it is
    prefix-stable, and is not, is found too. One that says that it is not has no append, and a model without a prefix
    reads its events.

    Raises CheckpointError if a key, a value, a score or the blend of some is not finite, or if scores differ by more
    than rounding explains.
    """
    config, name = served.model.config, served.name
    usual = _usual(config, served.model.num_target_rows)
    with torch.inference_mode():
        found = _scores(served, usual, name)
        expected = _scores(any_reference(served.model), usual, "reference", in_one=True)
        _scores(served, _extreme(config, served.model.num_target_rows), f"{name} for the largest values of events")
    dtype = served.model.dtype
    bound = _SLACK * max(BOUNDS[dtype], CODES_BOUNDS.get(kv_dtype, 0.0))
    unit = expected.abs().amax(0).clamp(min=1)
    worst = float(((found - expected).abs() / unit).max())
    if worst > bound:
        raise CheckpointError(
            f"{config.name}: the scores of backend {name} differ from the reference's by {worst:.2g}, "
            f"must be at most {bound:.2g} in {str(dtype).removeprefix('torch.')}{_or_unstable(served)}"
        )


@dataclass(frozen=True, slots=True)
class _Question:
    """A history, and candidates at a time. Every array is [num_events] or [num_targets]; context: [num_features];
    dense: [num_targets, num_dense_features], standardised.
    """

    rows: np.ndarray
    actions: np.ndarray
    values: np.ndarray
    times: np.ndarray
    candidates: np.ndarray
    context: np.ndarray
    dense: np.ndarray
    time_ms: int


def _usual(config: RankerConfig, num_target_rows: int) -> _Question:
    num_events = min(_EVENTS, config.max_history)
    rng = np.random.default_rng(0)
    return _Question(
        rng.integers(0, config.num_keys, num_events),
        rng.integers(0, 1 << min(len(config.actions), 16), num_events),
        np.full(num_events, config.value_center),
        _TIME_MS + _STEP_MS * np.arange(num_events),
        rng.integers(0, num_target_rows, _TARGETS),
        np.zeros(len(config.context_features), dtype=np.int64),
        rng.normal(size=(_TARGETS, len(config.dense_inputs))).astype(np.float32),
        _TIME_MS + _STEP_MS * num_events,
    )


def _extreme(config: RankerConfig, num_target_rows: int) -> _Question:
    """The largest values of both signs, every action, the first and the last item, from the first to the last time."""
    num_events = min(_EVENTS, config.max_history)
    ends = np.arange(num_events) % 2
    return _Question(
        ends * (config.num_keys - 1),
        ends * ((1 << len(config.actions)) - 1),
        np.where(ends == 0, LARGEST_VALUE, -LARGEST_VALUE),
        np.linspace(1, MAX_TIME_MS, num_events).astype(np.int64),
        np.linspace(0, num_target_rows - 1, _TARGETS).astype(np.int64),
        np.array([feature.num_values - 1 for feature in config.context_features], dtype=np.int64),
        np.full((_TARGETS, len(config.dense_inputs)), LARGEST, dtype=np.float32)
        * np.where(np.arange(_TARGETS) % 2, 1, -1)[:, None],
        MAX_TIME_MS,
    )


def _or_unstable(served: Served) -> str:
    return "; or the model is not prefix-stable, as it says" if served.model.prefix_stable else ""


def _scores(served: Served, asked: _Question, who: str, *, in_one: bool = False) -> Tensor:
    """[_TARGETS, num_tasks] in float64, on the CPU. Raises CheckpointError unless all is finite; who: computes."""
    model, config = served.model, served.model.config
    is_finite, scores = _computed(served, asked, in_one or not model.prefix_stable)
    if not is_finite:
        raise CheckpointError(f"{config.name}: keys or values of a history are not finite on backend {who}")
    for task, of_task in zip(model.output_names, scores.unbind(1), strict=True):
        if not torch.isfinite(of_task.float()).all():
            raise CheckpointError(f"{config.name}: scores of task {task!r} are not finite on backend {who}")
    blend = torch.tensor(model.blend, dtype=torch.float64)
    if not torch.isfinite((scores @ blend).float()).all():
        raise CheckpointError(f"{config.name}: the blend of finite scores is not finite on backend {who}")
    return scores


def _computed(served: Served, asked: _Question, in_one: bool) -> tuple[bool, Tensor]:
    """Whether the history's state is finite, and the scores. An error of a caller holds no frame that has the state."""
    config, device = served.model.config, served.model.device
    events = EventTokens(*(_to(column, device) for column in (asked.rows, asked.actions, asked.values, asked.times)))
    dense = _to(asked.dense, device) if config.dense_inputs else None
    targets = Targets(_to(asked.candidates, device), _to(asked.context, device), dense)
    if isinstance(served, ServedEvents):
        side = read(served, events, targets.context, asked.time_ms)
        return True, score(served, side, targets, asked.time_ms, _TARGETS).to("cpu", torch.float64)
    first = len(asked.rows) if in_one else max(0, len(asked.rows) - _NEW_EVENTS)
    state = prefill(served, _part(events, slice(0, first)))
    if not in_one:
        state = append(served, state, _part(events, slice(first, None)))
    scores = score(served, state, targets, asked.time_ms, _TARGETS)
    return state.is_finite(), scores.to("cpu", torch.float64)


def _to(column: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(column).to(device)


def _part(events: EventTokens, part: slice) -> EventTokens:
    return EventTokens(events.rows[part], events.actions[part], events.values[part], events.times[part])
