"""The tensors of a DLRM-v3 by their names in generative-recommenders -> a model of ours. What is missing, what is left
over and what has another size is listed by name; nothing is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.importing.sidecar import Sidecar
from mfalcon.importing.tensors import Tensors, check_shapes
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import ContextFeature
from mfalcon.models.config_layers import LayerConfig
from mfalcon.models.config_parts import DlrmConfig
from mfalcon.models.dlrm_v3 import DlrmV3
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled

_TABLE: Final = "_embedding_collection.embeddings.{}.weight"
_IN, _OUT = "_hstu_transducer._input_preprocessor.", "_hstu_transducer._output_postprocessor."
_PLACES: Final = "_hstu_transducer._positional_encoder."
_LAYER: Final = "_hstu_transducer._stu_module._stu_layers.{}."
_ENCODERS: Final = {
    "content": f"{_IN}_content_embedding_mlp",
    "action": f"{_IN}_action_embedding_mlp",
    "item": "_item_embedding_mlp",
}
_HEADS: Final = "_multitask_module._prediction_module"
_UNUSED: Final = f"{_IN}_additional_embedding_mlp."
"""Of further features of items. Without any the trainer makes it all the same, with no inputs, and never calls it."""
_OF_LAYER: Final = {
    "norm_in.weight": "_input_norm_weight",
    "norm_in.bias": "_input_norm_bias",
    "norm_out.weight": "_output_norm_weight",
    "norm_out.bias": "_output_norm_bias",
    "uvqk.bias": "_uvqk_beta",
}
_OF_LAYER_TURNED: Final = {"uvqk.weight": "_uvqk_weight", "output.weight": "_output_weight"}
_ACTION_BITS: Final = f"{_IN}_action_encoder._combined_action_weights"
_PERIODS: Final = ("_period_units", "_units_per_period")
_HEAD: Final = {"0.weight": 2, "0.bias": 1, "1.weight": 1, "1.bias": 1, "2.weight": 2, "2.bias": 1}
_ENCODER: Final = _HEAD | {"3.weight": 1, "3.bias": 1}
"""Parts of a sequence of layers, and the dimensions of each."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A model, its items, whose ids are their rows in the trainer's table, and the trainer's bit of each action."""

    model: DlrmV3
    items: ItemTable
    action_bits: tuple[int, ...]


def imported(tensors: Mapping[str, Tensor], sidecar: Sidecar) -> Imported:
    """Raises CheckpointError listing tensors without a place, ConfigError for a sidecar that does not fit them."""
    names = Tensors(tensors, sidecar.prefix)
    weights = _weights(names, sidecar)
    bits = tuple(int(bit) for bit in names.take(_ACTION_BITS, 1).double().tolist())
    periods = [names.take(_OUT + name, 2) for name in _PERIODS] if "post.combine.weight" in weights else []
    num_layers = names.layers(_LAYER)
    names.check([] if num_layers else [f"no layer is there ({_LAYER.format(0)}...)"])
    _check_actions(bits, sidecar)
    config = _config(weights, sidecar, _periods(*periods) if periods else (), num_layers)
    with unfilled():
        model = build(config)
    assert isinstance(model, DlrmV3)
    check_shapes(weights, model.state_dict())
    model.load_state_dict(weights, assign=True)
    rows = config.num_items - 1
    items = ItemTable(np.arange(rows, dtype=np.int64), ("",) * rows, {})
    return Imported(model.eval().requires_grad_(False), items, bits)


def _weights(names: Tensors, sidecar: Sidecar) -> dict[str, Tensor]:
    """By their names here."""
    weights = dict[str, Tensor]()
    for ours, theirs in _ENCODERS.items():
        weights |= {f"{ours}.{part}": names.take(f"{theirs}.{part}", dims) for part, dims in _ENCODER.items()}
    weights |= {f"heads.{part}": names.take(f"{_HEADS}.{part}", dims) for part, dims in _HEAD.items()}
    width = weights["content.0.weight"].shape[1]
    items = names.take_table(_TABLE.format(sidecar.item_table), width)
    unknown = items.new_zeros(1, items.shape[1])
    weights["items.id.weight"] = torch.cat([unknown, items]) if items.ndim == 2 else items
    weights["actions.table"] = names.take(f"{_IN}_action_encoder._action_embedding_table", 2)
    weights["actions.of_target"] = names.take(f"{_IN}_action_encoder._target_action_embedding_table", 2).flatten()
    for index, feature in enumerate(sidecar.user_features):
        weights[f"user.tables.{index}.weight"] = names.take_table(_TABLE.format(feature.table), width)
    if sidecar.user_features:
        weights["user.weight"] = names.take(f"{_IN}_batched_contextual_linear_weights", 3)
        weights["user.bias"] = names.take(f"{_IN}_batched_contextual_linear_bias", 2)
    else:
        dim = weights["content.2.weight"].shape[0]
        weights |= {"user.weight": torch.empty(0, width, dim), "user.bias": torch.empty(0, dim)}
    weights["places.position"] = names.take(f"{_PLACES}_position_embeddings_weight", 2)
    weights["places.age"] = names.take(f"{_PLACES}_timestamp_embeddings_weight", 2)
    for layer in range(names.layers(_LAYER)):
        of_layer = _LAYER.format(layer)
        weights |= {f"stack.layers.{layer}.{ours}": names.take(of_layer + name, 1) for ours, name in _OF_LAYER.items()}
        for ours, name in _OF_LAYER_TURNED.items():
            weights[f"stack.layers.{layer}.{ours}"] = names.take(of_layer + name, 2).transpose(0, 1).contiguous()
    for ours, theirs in (("norm", "_layer_norm"), ("combine", "_time_feature_combiner")):
        if f"{_OUT}{theirs}.weight" in names:
            weights[f"post.{ours}.weight"] = names.take(f"{_OUT}{theirs}.weight", 1 + (ours == "combine"))
            weights[f"post.{ours}.bias"] = names.take(f"{_OUT}{theirs}.bias", 1)
    if names.is_empty(f"{_UNUSED}0.weight"):
        names.pass_over(names.named(lambda name: name.startswith(_UNUSED)))
    return weights


def _check_actions(bits: tuple[int, ...], sidecar: Sidecar) -> None:
    if any(bit < 1 or bit & (bit - 1) for bit in bits) or len(set(bits)) != len(bits):
        raise CheckpointError(f"{_ACTION_BITS}: got {bits}, must be different powers of two, a bit for each action")
    if len(bits) != len(sidecar.actions):
        raise ConfigError(f"actions: got {len(sidecar.actions)}, must be the {len(bits)} of {_ACTION_BITS}, {bits}")


def _config(
    weights: Mapping[str, Tensor], sidecar: Sidecar, periods: tuple[tuple[int, int], ...], num_layers: int
) -> RankerConfig:
    """What the sizes of the tensors say, and the sidecar. Raises ConfigError for what they cannot be together."""
    (hidden, table_dim), dim = weights["content.0.weight"].shape, len(weights["content.2.weight"])
    v_width = weights["stack.layers.0.output.weight"].shape[1] // 3
    qk_width = len(weights["stack.layers.0.uvqk.bias"]) // 2 - v_width
    if v_width % sidecar.num_heads or qk_width % sidecar.num_heads or min(v_width, qk_width) < 1:
        raise ConfigError(
            f"num_heads: got {sidecar.num_heads}, must divide {v_width} and {qk_width}, all heads' widths"
        )
    kept = {"post.combine.weight": "timestamp", "post.norm.weight": "layer_norm"}
    found = next((kind for name, kind in kept.items() if name in weights), None)
    if (found is None) != (sidecar.postprocessor is not None):
        must = (
            "must be l2, if that is so: no postprocessor has weights" if found is None else f"it is {found} by weights"
        )
        raise ConfigError(f"postprocessor: got {sidecar.postprocessor}, {must}")
    try:
        return RankerConfig.model_validate(
            {
                "name": sidecar.name,
                "architecture": "dlrm_v3",
                "num_layers": num_layers,
                "layer": LayerConfig(
                    dim=dim,
                    num_heads=sidecar.num_heads,
                    qk_dim=qk_width // sidecar.num_heads,
                    v_dim=v_width // sidecar.num_heads,
                    attention_norm=sidecar.attention_norm,
                    activation="u",
                    output="concat",
                    output_bias=False,
                ),
                "dlrm": DlrmConfig.model_validate(
                    {
                        "table_dim": table_dim,
                        "hidden_dim": hidden,
                        "action_dim": weights["actions.table"].shape[1],
                        "item_dim": len(weights["item.0.weight"]),
                        "num_positions": len(weights["places.position"]),
                        "num_ages": len(weights["places.age"]),
                        "last_age": sidecar.last_age,
                        "postprocessor": found or "l2",
                        "periods": periods,
                        "min_history": tuple(feature.min_history for feature in sidecar.user_features),
                        "counted_candidates": sidecar.counted_candidates,
                    }
                ),
                "actions": sidecar.actions,
                "context_features": tuple(
                    ContextFeature(name=feature.name, num_values=len(weights[f"user.tables.{index}.weight"]))
                    for index, feature in enumerate(sidecar.user_features)
                ),
                "tasks": sidecar.tasks,
                "blend": sidecar.blend,
                "head_dim": len(weights["heads.0.weight"]),
                "num_items": len(weights["items.id.weight"]),
                "max_history": sidecar.max_history,
                "window_chunk": 1,
            }
        )
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:8]]
        raise ConfigError(f"the tensors and --config together are no model: {'; '.join(problems)}") from error


def _periods(units: Tensor, nums: Tensor) -> tuple[tuple[int, int], ...]:
    pairs = list(zip(units.flatten().tolist(), nums.flatten().tolist(), strict=False))
    if units.shape != nums.shape or any(number % 1 for pair in pairs for number in pair):
        raise CheckpointError(f"{_PERIODS[0]}: got {pairs}, must be whole seconds of a unit and units of a period")
    return tuple((int(unit), int(num)) for unit, num in pairs)
