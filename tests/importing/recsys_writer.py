"""A writer of what NVIDIA's recsys-examples writes, and its ranker in plain torch, independent of what reads them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mfalcon.importing.recsys_examples import RecsysSidecar

Layout = Literal["fused", "native", "legacy"]
DIM, HEADS, WIDTH, LAYERS, POSITIONS, ACTIONS, NORM = 10, 2, 4, 2, 15, 6, 30.0
BLOCK, STATIC = "_hstu_block.", "_embedding_collection._data_parallel_embedding_collection.embeddings."


@dataclass(frozen=True)
class Theirs:
    """Weights as the formulas have them: u, v, q, k of each head apart."""

    uvqk: list[Tensor]  # [HEADS, 4, WIDTH, DIM] a layer
    bias: list[Tensor]  # [HEADS, 4, WIDTH]
    out: list[Tensor]  # [DIM, HEADS * WIDTH]
    norms: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    position: Tensor
    head: list[tuple[Tensor, Tensor]]
    keys: list[int]
    items: Tensor
    actions: Tensor


def theirs(seed: int = 0, keys: list[int] | None = None) -> Theirs:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.5

    keys = keys or [7, -3, 2**62 + 1, 12, 5, 1_000_003, 40, 41, 42, 43, 44]
    return Theirs(
        [some(HEADS, 4, WIDTH, DIM) for _ in range(LAYERS)],
        [some(HEADS, 4, WIDTH) for _ in range(LAYERS)],
        [some(DIM, HEADS * WIDTH) for _ in range(LAYERS)],
        [(some(DIM), some(DIM), some(HEADS * WIDTH), some(HEADS * WIDTH)) for _ in range(LAYERS)],
        some(POSITIONS, DIM),
        [(some(7, DIM), some(7)), (some(2, 7), some(2))],
        keys,
        some(len(keys), DIM),
        some(ACTIONS, DIM),
    )


def logits(model: Theirs, items: list[int], actions: list[int], candidate: int, norm: float = NORM) -> Tensor:
    """Of one candidate behind the interleaved history, with every sum written out: [2]."""
    rows = [
        model.items[model.keys.index(key)] if key in model.keys else torch.zeros(DIM) for key in (*items, candidate)
    ]
    tokens = [vector for row, action in zip(rows, actions, strict=False) for vector in (row, model.actions[action])]
    tokens.append(rows[-1])
    last = len(tokens) - 1
    x = torch.stack(
        [token * math.sqrt(DIM) + model.position[min(place, last, POSITIONS - 1)] for place, token in enumerate(tokens)]
    ).double()
    for layer in range(LAYERS):
        in_weight, in_bias, out_weight, out_bias = (norm_.double() for norm_ in model.norms[layer])
        normed = functional.layer_norm(x, (DIM,), in_weight, in_bias, 1e-5)
        heads, gates = [], []
        for head in range(HEADS):
            u, v, q, k = (
                functional.silu(
                    normed @ model.uvqk[layer][head, part].double().T + model.bias[layer][head, part].double()
                )
                for part in range(4)
            )
            weights = functional.silu(q @ k.T / math.sqrt(WIDTH)) / norm
            heads.append(weights.tril() @ v)
            gates.append(u)
        attended = functional.layer_norm(torch.cat(heads, 1), (HEADS * WIDTH,), out_weight, out_bias, 1e-5)
        x = x + (attended * torch.cat(gates, 1)) @ model.out[layer].double().T
    y = x[-1] / x[-1].norm().clamp(min=1e-6)
    y = functional.relu(model.head[0][0].double() @ y + model.head[0][1].double())
    return model.head[1][0].double() @ y + model.head[1][1].double()


def dense_of(model: Theirs, layout: Layout = "native", *, is_static: bool = False) -> dict[str, Tensor]:
    """Names and shapes of a release."""
    before = f"{BLOCK}_positional_encoder." if layout == "legacy" else f"{BLOCK}_preprocessor._positional_encoder."
    named = {f"{before}_position_embeddings_weight": model.position}
    for layer in range(LAYERS):
        name = f"{BLOCK}_attention_layers.{layer}."
        in_weight, in_bias, out_weight, out_bias = model.norms[layer]
        out_norm = "_output_ln_dropout_mul." if layout == "native" else "_output_layernorm_"
        named |= {f"{name}_input_layernorm_weight": in_weight, f"{name}_input_layernorm_bias": in_bias}
        named |= {f"{name}{out_norm}weight": out_weight, f"{name}{out_norm}bias": out_bias}
        by_head = model.uvqk[layer].reshape(-1, DIM), model.bias[layer].reshape(-1)
        by_part = model.uvqk[layer].transpose(0, 1).reshape(-1, DIM), model.bias[layer].transpose(0, 1).reshape(-1)
        if layout == "fused":
            named |= {f"{name}_linear_uvqk_weight": by_part[0].T.contiguous(), f"{name}_linear_uvqk_bias": by_part[1]}
            named[f"{name}_linear_proj_weight"] = model.out[layer].T.contiguous()
        else:
            weight, bias = by_head if layout == "native" else by_part
            named |= {f"{name}_linear_uvqk.weight": weight, f"{name}_linear_uvqk.bias": bias}
            named[f"{name}_linear_proj.weight"] = model.out[layer]
    for index, (weight, bias) in enumerate(model.head):
        named |= {f"_mlp._mlp.{2 * index}.weight": weight, f"_mlp._mlp.{2 * index}.bias": bias}
    packed = torch.cat([model.actions, model.items]) if is_static else model.actions
    named[f"{STATIC}{'action/item' if is_static else 'action'}_weights"] = packed.flatten()
    return named


def write_export(folder: Path, model: Theirs, layout: Layout = "native", num_ranks: int = 2) -> Path:
    """`torch_module` and `dynamicemb_module`."""
    (folder / "torch_module").mkdir(parents=True)
    for rank in range(num_ranks):
        write_dense(folder / "torch_module" / f"model.{rank}.pth", dense_of(model, layout))
    write_table(folder, "item", model.keys, model.items, num_ranks)
    return folder


def write_dense(path: Path, named: Mapping[str, Tensor]) -> None:
    torch.save({"model_state_dict": dict(named), "optimizer_state_dict": None}, path)  # noqa: TID251 (a trainer's)


def write_table(folder: Path, name: str, keys: list[int], values: Tensor, num_ranks: int) -> None:
    """As dynamicemb dumps: a key is of the rank that it leaves as a remainder, in no order."""
    inside = folder / "dynamicemb_module" / "model._embedding_collection._model_parallel_embedding_collection"
    inside.mkdir(parents=True, exist_ok=True)
    (inside / f"{name}_opt_args.json").write_text('{"opt_type": "adam", "lr": 0.001}')
    for rank in range(num_ranks):
        own = [index for index, key in enumerate(keys) if key % num_ranks == rank]
        tail = f"rank_{rank}.world_size_{num_ranks}"
        (inside / f"{name}_emb_keys.{tail}").write_bytes(np.array([keys[i] for i in own], dtype="<i8").tobytes())
        (inside / f"{name}_emb_values.{tail}").write_bytes(values[own].numpy().astype("<f4").tobytes())
        (inside / f"{name}_emb_scores.{tail}").write_bytes(b"\0" * 8 * len(own))


def sidecar(layout: Layout = "native", **changes: object) -> RecsysSidecar:
    values = {
        "name": "theirs",
        "num_heads": HEADS,
        "attention_norm": NORM,
        "norm_eps": 1e-5,
        "uvqk": "by_head" if layout == "native" else "by_part",
        "residual": True,
        "head_activation": "relu",
        "max_history": 12,
        "window_chunk": 4,
        "item_table": "item",
        "action_table": "action",
        "table_rows": {"action": ACTIONS, "item": 11},
        "actions": ({"name": "click", "weight": 1}, {"name": "like", "weight": 2}),
        "tasks": (
            {"name": "clicks", "kind": "binary", "any_action": ("click",)},
            {"name": "likes", "kind": "binary", "any_action": ("like",)},
        ),
        "blend": {"likes": 1.0},
    }
    return RecsysSidecar.model_validate(values | changes)
