"""The tensors of an HSTU ranker of NVIDIA's recsys-examples by their names there -> a model of ours. What is missing,
what is left over and what has another size is listed by name; nothing is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.importing.recsys_files import KEYS, VALUES
from mfalcon.importing.tensors import Tensors, check_shapes
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_kinds import Frozen, Name, Positive
from mfalcon.models.config_layers import LayerConfig
from mfalcon.models.config_parts import RecsysConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.recsys_hstu import RecsysHstu
from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled

_LAYER: Final = "_hstu_block._attention_layers.{}."
_HEAD: Final = "_mlp._mlp.{}."
_POSITIONS: Final = (
    "_hstu_block._preprocessor._positional_encoder._position_embeddings_weight",
    "_hstu_block._positional_encoder._position_embeddings_weight",
)
_STATIC: Final = "_embedding_collection._data_parallel_embedding_collection.embeddings."
_PACKED: Final = "_weights"
_OUTPUT_NORMS: Final = ("_output_layernorm_{}", "_output_ln_dropout_mul.{}")
"""Of older and of newer releases."""


class ActionWeight(Frozen):
    """An action, and what it adds to the row of the trainer's table of actions."""

    name: str = Field(min_length=1, max_length=128)
    weight: int = Field(gt=0, lt=1 << 31)


class RecsysSidecar(Frozen):
    """`mfalcon import recsys-examples --config`. All that has no default must be said: nothing is guessed."""

    name: str = Field(min_length=1, max_length=128)
    num_heads: Positive
    attention_norm: float = Field(gt=0)
    """`scaling_seqlen`, which divides attention; where it is -1 the trainer takes the longest sequence of a batch."""
    norm_eps: float = Field(gt=0, lt=1)
    """`norm_epsilon`."""
    uvqk: Literal["by_part", "by_head"]
    """How the rows of the projection lie: all heads' u, then v, q and k (fused layers, and native ones of releases
    before tensor parallelism), or u, v, q and k of one head after the other (native ones since).
    """
    residual: Literal[True]
    """`residual = False` is a model that nothing here computes."""
    head_activation: Literal["relu", "gelu"]
    """`prediction_head_act_type`."""
    max_history: Positive
    window_chunk: Positive | None = None
    """Events by which a window moves that is full; an eighth of max_history if it is not there."""
    item_table: str = Field(min_length=1, max_length=128)
    action_table: str = Field(min_length=1, max_length=128)
    table_rows: dict[str, Positive] = Field(default_factory=dict)
    """`vocab_size` of tables that lie in one tensor of the dense weights, which has no names of rows."""
    actions: tuple[ActionWeight, ...] = Field(min_length=1, max_length=32)
    tasks: tuple[Task, ...] = Field(min_length=1)
    """One for each number of the prediction head, in its order."""
    blend: dict[Name, Annotated[float, Field(ge=-1e6, le=1e6)]]
    prefix: str = Field(default="", max_length=128)
    """What stands before every name of the dense weights."""


@dataclass(frozen=True, slots=True)
class ImportedRecsys:
    """A model, and its items, whose ids are the trainer's keys."""

    model: RecsysHstu
    items: ItemTable


def imported_recsys(tensors: Mapping[str, Tensor], sidecar: RecsysSidecar) -> ImportedRecsys:
    """Raises CheckpointError listing tensors without a place, ConfigError for a sidecar that does not fit them."""
    names = Tensors(tensors, sidecar.prefix)
    weights, keys = _weights(names, sidecar)
    names.check([] if names.layers(_LAYER) else [f"no layer is there ({_LAYER.format(0)}...)"])
    config = _config(weights, sidecar, names.layers(_LAYER))
    with unfilled():
        model = build(config)
    assert isinstance(model, RecsysHstu)
    check_shapes(weights, model.state_dict())
    model.load_state_dict(weights, assign=True)
    items = ItemTable(keys.numpy().astype(np.int64), ("",) * len(keys), {})
    return ImportedRecsys(model.eval().requires_grad_(False), items)


def _weights(names: Tensors, sidecar: RecsysSidecar) -> tuple[dict[str, Tensor], Tensor]:
    """By their names here, and the keys of items."""
    weights = dict[str, Tensor]()
    for layer in range(names.layers(_LAYER)):
        of_layer = _layer(names, _LAYER.format(layer), sidecar)
        weights |= {f"stack.layers.{layer}.{name}": tensor for name, tensor in of_layer.items()}
    heads = _heads(names)
    has_bias = any(f"{theirs}bias" in names for theirs in heads)  # `prediction_head_bias`
    for index, theirs in enumerate(heads):
        weight = weights[f"heads.{2 * index}.weight"] = names.take(f"{theirs}weight", 2)
        bias = names.take(f"{theirs}bias", 1) if has_bias else torch.zeros(len(weight))
        weights[f"heads.{2 * index}.bias"] = bias
    dim = weights["heads.0.weight"].shape[1]
    positions = [name for name in _POSITIONS if name in names]
    weights["position"] = names.take(positions[0], 2) if positions else torch.empty(0, dim)
    tables = _tables(names, sidecar, dim)
    keys, items = tables[sidecar.item_table]
    weights["items.id.weight"] = torch.cat([items.new_zeros(1, items.shape[1]), items])
    rows, actions = tables[sidecar.action_table]
    if not torch.equal(rows, torch.arange(len(rows))):
        raise CheckpointError(
            f"{sidecar.action_table}: its {len(rows)} keys must be all from 0 to {len(rows) - 1}, each action has a row"
        )
    weights["action.weight"] = actions
    return weights, keys


def _layer(names: Tensors, theirs: str, sidecar: RecsysSidecar) -> dict[str, Tensor]:
    is_fused = f"{theirs}_linear_uvqk_weight" in names
    if is_fused and sidecar.uvqk != "by_part":
        raise ConfigError(f"uvqk: got {sidecar.uvqk!r}, must be 'by_part', as fused layers are")
    if is_fused:
        uvqk, bias = names.take(f"{theirs}_linear_uvqk_weight", 2).T, names.take(f"{theirs}_linear_uvqk_bias", 1)
        out = names.take(f"{theirs}_linear_proj_weight", 2).T
    else:
        uvqk, bias = names.take(f"{theirs}_linear_uvqk.weight", 2), names.take(f"{theirs}_linear_uvqk.bias", 1)
        out = names.take(f"{theirs}_linear_proj.weight", 2)
    if sidecar.uvqk == "by_head":
        uvqk, bias = _by_part(uvqk, sidecar.num_heads), _by_part(bias, sidecar.num_heads)
    dim = uvqk.shape[1]
    norm_in = {"weight": torch.ones(dim), "bias": torch.zeros(dim)}  # where it was not learned
    if f"{theirs}_input_layernorm_weight" in names:
        norm_in = {part: names.take(f"{theirs}_input_layernorm_{part}", 1) for part in norm_in}
    kept = next((name for name in _OUTPUT_NORMS if theirs + name.format("weight") in names), _OUTPUT_NORMS[0])
    norm_out = {part: names.take(theirs + kept.format(part), 1) for part in norm_in}
    return {
        **{f"norm_in.{part}": tensor for part, tensor in norm_in.items()},
        **{f"norm_out.{part}": tensor for part, tensor in norm_out.items()},
        "uvqk.weight": uvqk.contiguous(),
        "uvqk.bias": bias,
        "output.weight": out.contiguous(),
    }


def _by_part(rows: Tensor, num_heads: int) -> Tensor:
    """Rows [heads * 4 * width, ...] of u, v, q and k of each head -> of all heads' u, then v, q and k."""
    if not len(rows) or len(rows) % (4 * num_heads):
        return rows
    of_heads = rows.view(num_heads, 4, len(rows) // (4 * num_heads), *rows.shape[1:])
    return of_heads.transpose(0, 1).reshape(rows.shape)


def _heads(names: Tensors) -> list[str]:
    """Layers of the prediction head: every second part of a sequence is an activation."""
    found, index = list[str](), 0
    while f"{_HEAD.format(index)}weight" in names:
        found.append(_HEAD.format(index))
        index += 2
    return found or [_HEAD.format(0)]


def _tables(names: Tensors, sidecar: RecsysSidecar, dim: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and vectors of the two tables that a model has, dynamic or not."""
    tables = dict[str, tuple[Tensor, Tensor]]()
    for packed in names.named(lambda name: name.startswith(_STATIC) and name.endswith(_PACKED)):
        inside = packed.removeprefix(_STATIC).removesuffix(_PACKED).split("/")
        if unknown := [name for name in inside if name not in sidecar.table_rows]:
            raise ConfigError(f"table_rows: must have {unknown[0][:80]!r}, whose rows {packed[:120]} does not tell")
        if others := sorted(set(inside) - {sidecar.item_table, sidecar.action_table}):
            raise CheckpointError(
                f"tables cannot be mapped: {', '.join(others)[:400]} (features of the user see the whole history, and "
                "nothing here computes that)"
            )
        values, rows = names.take(packed, 1), [sidecar.table_rows[name] for name in inside]
        if len(values) != sum(rows) * dim:
            raise CheckpointError(f"{packed[:120]}: has {len(values)} numbers, must have {sum(rows)} rows of {dim}")
        for name, table in zip(inside, values.view(-1, dim).split(rows), strict=True):
            tables[name] = torch.arange(len(table)), table
    for name in (sidecar.item_table, sidecar.action_table):
        if name not in tables:
            tables[name] = names.take_ids(KEYS.format(name)), names.take(VALUES.format(name), 2)
    return tables


def _config(weights: Mapping[str, Tensor], sidecar: RecsysSidecar, num_layers: int) -> RankerConfig:
    """What the sizes of the tensors say, and the sidecar. Raises ConfigError for what they cannot be together."""
    heads = [
        weights[f"heads.{index}.weight"] for index in range(0, len(weights), 2) if f"heads.{index}.weight" in weights
    ]
    width, dim = weights["stack.layers.0.uvqk.weight"].shape
    if width % (4 * sidecar.num_heads) or not width:
        raise ConfigError(f"num_heads: got {sidecar.num_heads}, must divide {width // 4}, the width of all heads")
    if len(sidecar.tasks) != len(heads[-1]):
        raise ConfigError(f"tasks: got {len(sidecar.tasks)}, must be the {len(heads[-1])} of the prediction head")
    if wrong := [task.name for task in sidecar.tasks if task.kind != "binary"]:
        raise ConfigError(f"tasks: {wrong[0]!r} must be binary; a head of several classes cannot be mapped")
    try:
        return RankerConfig(
            name=sidecar.name,
            architecture="recsys_hstu",
            num_layers=num_layers,
            layer=LayerConfig(
                dim=dim,
                num_heads=sidecar.num_heads,
                qk_dim=width // (4 * sidecar.num_heads),
                v_dim=width // (4 * sidecar.num_heads),
                attention_norm=sidecar.attention_norm,
                norm_eps=sidecar.norm_eps,
                output_bias=False,
            ),
            recsys=RecsysConfig(
                num_actions=len(weights["action.weight"]),
                action_weights=tuple(action.weight for action in sidecar.actions),
                num_positions=len(weights["position"]),
                head_widths=tuple(len(head) for head in heads[:-1]),
                head_activation=sidecar.head_activation,
            ),
            actions=tuple(action.name for action in sidecar.actions),
            tasks=sidecar.tasks,
            blend=sidecar.blend,
            head_dim=len(heads[0]),
            num_items=len(weights["items.id.weight"]),
            max_history=sidecar.max_history,
            window_chunk=sidecar.window_chunk or max(1, sidecar.max_history // 8),
        )
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:8]]
        raise ConfigError(f"the tensors and --config together are no model: {'; '.join(problems)}") from error
