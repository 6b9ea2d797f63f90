"""A writer of what generative-recommenders writes, independent of the reader: torch's own `save` for dense weights, and
for tables the files of a distributed checkpoint, of several ranks.
"""

import pickle  # noqa: TID251 (what a trainer writes is a pickle)
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from mfalcon.importing.sidecar import Sidecar

GOLDEN = Path(__file__).parents[1] / "golden" / "meta_dlrm_hstu.safetensors"
IN, OUT = "_hstu_transducer._input_preprocessor.", "_hstu_transducer._output_postprocessor."
TABLES = "_embedding_collection.embeddings."
SIDECAR = """
name = "imported"
num_heads = 2
attention_norm = 100
counted_candidates = 10
last_age = 31
max_history = 200
item_table = "movie_id"
actions = ["one", "two", "three", "four", "five"]
blend = {rating = 1.0}

[[user_features]]
name = "user_id"
table = "user_id"
min_history = 20

[[tasks]]
name = "rating"
kind = "binary"
any_action = ["one"]
"""
"""Of the golden model."""


def golden() -> dict[str, Tensor]:
    """Weights under their public names (`state.`), requests and predictions."""
    with safe_open(GOLDEN, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def golden_weights() -> dict[str, Tensor]:
    return {name.removeprefix("state."): tensor for name, tensor in golden().items() if name.startswith("state.")}


def random_weights(seed: int = 0, num_layers: int = 3) -> tuple[dict[str, Tensor], Sidecar]:
    """A model of other sizes than the golden one: width of tables, of layers, of heads; three features of the user, two
    tasks, no clock behind the layers.
    """
    table, dim, hidden, heads, qk, v, rows = 6, 10, 7, 2, 3, 4, 41
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.4

    def encoder(name: str, width: int, inner: int, out: int, num: int = 4) -> dict[str, Tensor]:
        shapes = [(inner, width), (inner,), (out, inner), (out,)][:num]
        made = {f"{name}.{index}.weight": some(*shape) for index, shape in enumerate(shapes)}
        return made | {f"{name}.{index}.bias": some(shape[0]) for index, shape in enumerate(shapes)}

    weights = {f"{TABLES}{name}.weight": some(num, table).half() for name, num in (("item", rows), ("user", 9))}
    weights |= {f"{TABLES}{name}.weight": some(num, table) for name, num in (("sex", 3), ("age", 5))}
    weights |= encoder(f"{IN}_content_embedding_mlp", table, hidden, dim)
    weights |= encoder(f"{IN}_action_embedding_mlp", 4 * 5, hidden, dim)
    weights |= encoder("_item_embedding_mlp", table, 8, dim)
    weights |= encoder("_multitask_module._prediction_module", dim, 8, 2, 3)
    weights |= {
        f"{IN}_additional_embedding_mlp.0.weight": torch.empty(hidden, 0),
        f"{IN}_additional_embedding_mlp.0.bias": some(hidden),
        f"{IN}_action_encoder._action_embedding_table": some(4, 5),
        f"{IN}_action_encoder._target_action_embedding_table": some(1, 20),
        f"{IN}_action_encoder._combined_action_weights": torch.tensor([1, 4, 2, 64]),
        f"{IN}_batched_contextual_linear_weights": some(3, table, dim),
        f"{IN}_batched_contextual_linear_bias": some(3, dim),
        "_hstu_transducer._positional_encoder._position_embeddings_weight": some(30, dim),
        "_hstu_transducer._positional_encoder._timestamp_embeddings_weight": some(50, dim),
        f"{OUT}_layer_norm.weight": some(dim),
        f"{OUT}_layer_norm.bias": some(dim),
    }
    for layer in range(num_layers):
        name = f"_hstu_transducer._stu_module._stu_layers.{layer}."
        weights |= {f"{name}_input_norm_{part}": some(dim) for part in ("weight", "bias")}
        weights |= {f"{name}_output_norm_{part}": some(heads * v) for part in ("weight", "bias")}
        columns = 2 * heads * (qk + v)
        weights |= {f"{name}_uvqk_weight": some(dim, columns), f"{name}_uvqk_beta": some(columns)}
        weights[f"{name}_output_weight"] = some(3 * heads * v, dim)
    sidecar = Sidecar.model_validate(
        {
            "name": "random",
            "num_heads": heads,
            "attention_norm": 20,
            "counted_candidates": 2,
            "last_age": 49,
            "max_history": 25,
            "item_table": "item",
            "actions": ("click", "like", "buy", "share"),
            "user_features": tuple({"name": name, "table": name, "min_history": 5} for name in ("user", "sex", "age")),
            "tasks": (
                {"name": "buy", "kind": "binary", "any_action": ("buy",)},
                {"name": "watched", "kind": "regression"},
            ),
            "blend": {"buy": 1.0},
        }
    )
    return weights, sidecar


def write_checkpoint(folder: Path, weights: Mapping[str, Tensor], num_ranks: int = 2) -> Path:
    """`non_sparse.ckpt` and `sparse/`."""
    folder.mkdir(parents=True)
    dense = {name: tensor for name, tensor in weights.items() if not name.startswith(TABLES)}
    write_dense(folder / "non_sparse.ckpt", {"dense_dict": dense, "optimizer_dict": {"state": {}}, "global_step": 3})
    tables = {f"sparse_dict.{name}": tensor for name, tensor in weights.items() if name.startswith(TABLES)}
    write_sparse(folder / "sparse", tables, num_ranks)
    return folder


def write_dense(path: Path, content: object) -> None:
    torch.save(content, path)  # noqa: TID251 (what a trainer writes)


def write_sparse(folder: Path, tables: Mapping[str, Tensor], num_ranks: int) -> Metadata:
    """Each table cut by rows, a part in the file of each rank."""
    folder.mkdir()
    parts = {name: table.tensor_split(num_ranks) for name, table in tables.items()}
    index = Metadata(state_dict_metadata={}, storage_data={})
    for rank in range(num_ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            for name in tables:
                first = file.tell()
                torch.save(parts[name][rank].clone(), file)  # noqa: TID251 (what a trainer writes)
                offset = torch.Size([sum(len(part) for part in parts[name][:rank]), 0])
                info = _StorageInfo(f"__{rank}_0.distcp", first, file.tell() - first)
                index.storage_data[MetadataIndex(name, offset, rank)] = info
    for name, table in tables.items():
        offsets = [sum(len(part) for part in parts[name][:rank]) for rank in range(num_ranks)]
        chunks = [
            ChunkStorageMetadata(torch.Size([first, 0]), part.shape)
            for first, part in zip(offsets, parts[name], strict=True)
        ]
        properties = TensorProperties(dtype=table.dtype)
        index.state_dict_metadata[name] = TensorStorageMetadata(properties, table.shape, chunks)
    write_index(folder, index)
    return index


def write_index(folder: Path, index: object) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(index))
