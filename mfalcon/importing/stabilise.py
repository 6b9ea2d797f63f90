"""The form of an imported DLRM-v3 whose keys and values outlive a request, and how far its scores are from those of the
trainer's own form.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import ServedModel, reference
from mfalcon.errors import ConfigError
from mfalcon.importing.dlrm_v3 import Imported
from mfalcon.importing.parity import ParityRequest, asked_of, scores_of
from mfalcon.importing.sidecar import Sidecar
from mfalcon.models.base import context_codes
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import ContextFeature
from mfalcon.models.config_parts import AnchorConfig
from mfalcon.models.dlrm_parts import dlrm_of
from mfalcon.models.dlrm_stable import DlrmV3Stable
from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled

_RENAMED = ("actions.", "bits.")
_OF_USERS = "user."
_MICROBATCH = 256
_MADE_UP, _CANDIDATES, _DAY_S = 32, 20, 86_400
_CHUNKS = 8
"""Of a window, where the sidecar does not say by how much it moves."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How far scores moved: worst and mean absolute difference over all tasks, and the share of pairs of candidates of
    a request that are in the order of before. made_up: the requests are ours, no file of the user's.
    """

    num_requests: int
    worst: float
    mean: float
    same_order: float
    made_up: bool


def stabilised(found: Imported, sidecar: Sidecar) -> DlrmV3Stable:
    """The weights of an imported model in that form. Raises ConfigError if the sidecar has not where it counts from."""
    if sidecar.stabilise is None:
        raise ConfigError("--stabilise: --config must have [stabilise] with history and time_s, where it counts from")
    old, around = found.model.config, dlrm_of(found.model.config)
    anchor = AnchorConfig(
        num_events=sidecar.stabilise.history,
        time_s=sidecar.stabilise.time_s,
        num_user_tokens=found.model.num_user_tokens,
    )
    changes = {
        "architecture": "dlrm_v3_stable",
        "dlrm": around.model_copy(update={"anchor": anchor, "min_history": ()}),
        "context_features": tuple(
            ContextFeature(name=f"unit_of_{unit_s}_s", num_values=num, derive="period", unit_s=unit_s)
            for unit_s, num in around.periods
        ),
        "window_chunk": sidecar.stabilise.window_chunk or max(1, old.max_history // _CHUNKS),
    }
    config = RankerConfig.model_validate(old.model_copy(update=changes).model_dump())
    with unfilled():
        model = build(config)
    assert isinstance(model, DlrmV3Stable)
    weights = {
        name.replace(*_RENAMED) if name.startswith(_RENAMED[0]) else name: tensor
        for name, tensor in found.model.state_dict().items()
        if not name.startswith(_OF_USERS)
    }
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def moved(found: Imported, stable: DlrmV3Stable, requests: Iterable[ParityRequest] | None) -> Moved:
    """Scores in the stabilised form against those that the imported model serves, over requests; made-up ones if there
    are none.
    """
    served, gaps, kept = reference(stable), list[np.ndarray](), list[np.ndarray]()
    for one in requests if requests is not None else _made_up(found, stable):
        before, after = scores_of(found, one, found.model.lengths), _stable_scores(found, served, one)
        gaps.append(np.abs(before - after).ravel())
        blend = np.array(stable.blend)
        first, second = (np.sign(np.subtract.outer(s @ blend, s @ blend)) for s in (before, after))
        kept.append((first == second)[np.triu_indices(len(before), 1)])
    gap, order = np.concatenate(gaps), np.concatenate(kept)
    share = float(order.mean()) if len(order) else 1.0
    return Moved(len(gaps), float(gap.max()), float(gap.mean()), share, requests is None)


def _stable_scores(found: Imported, served: ServedModel, one: ParityRequest) -> np.ndarray:
    """[num_candidates, num_tasks]."""
    events, targets, now_ms = asked_of(found, one)
    context = torch.from_numpy(context_codes(served.model.config.context_features, {}, now_ms))
    with torch.inference_mode():
        state = prefill(served, events)
        scores: np.ndarray = (
            score(served, state, replace(targets, context=context), now_ms, _MICROBATCH).double().numpy()
        )
    return scores


def _made_up(found: Imported, stable: DlrmV3Stable) -> Iterator[ParityRequest]:
    """Histories of every length, a few events a day, asked on the day of the anchor."""
    rng, config, anchor = np.random.default_rng(0), found.model.config, stable.anchor
    rows = config.num_items - 1
    for _ in range(_MADE_UP):
        length = int(rng.integers(1, config.max_history + 1))
        now_s = anchor.time_s + int(rng.integers(0, _DAY_S))
        times = np.sort(now_s - rng.integers(1, _DAY_S * (1 + length // 3), length)).clip(0)
        yield ParityRequest(
            items=tuple(rng.integers(0, rows, length).tolist()),
            actions=tuple(np.array(found.action_bits)[rng.integers(0, len(found.action_bits), length)].tolist()),
            times_s=tuple(times.tolist()),
            context={feature.name: int(rng.integers(0, feature.num_values)) for feature in config.context_features},
            candidates=tuple(rng.integers(0, rows, _CANDIDATES).tolist()),
            time_s=now_s,
            padded_len=1,
            scores={task.name: (0.0,) * _CANDIDATES for task in config.tasks},
        )
