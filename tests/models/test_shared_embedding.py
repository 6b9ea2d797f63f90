"""An open vocabulary: every id has a vector, with or without an item table, and a checkpoint keeps it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kernels.cpu import check
from kernels.cpu.library import available
from kernels.cpu.shared_table import FusedLookup
from kernels.shared_table import lookup
from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint as checkpoints
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import EmbeddingConfig
from mfalcon.models.embedding import offset_of
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build
from mfalcon.models.shared_embedding import SharedEmbedding
from tests.small import (
    cold_scores,
    random_events,
    rank_request,
    small_checkpoint,
    small_config,
    small_embedding,
    small_items,
)

OPEN = small_config(embedding=small_embedding())
BEYOND = np.array([7, -(2**63), 2**63 - 1], dtype=np.int64)


def shared_of(loaded: Checkpoint) -> SharedEmbedding:
    found = loaded.model.items.id
    assert isinstance(found, SharedEmbedding)
    return found


def unlisted(config: RankerConfig = OPEN) -> RankerConfig:
    """Of which nothing is by item."""
    embedding = config.embedding and config.embedding.model_copy(update={"features": ()})
    return config.model_copy(update={"num_items": 1, "side_features": (), "embedding": embedding})


def test_a_listed_item_has_its_side_features_and_another_is_its_id_alone() -> None:
    loaded = small_checkpoint(config=OPEN)
    shared, items = shared_of(loaded), loaded.model.items
    ids = np.concatenate([loaded.items.item_id, BEYOND])
    out = items(torch.from_numpy(loaded.items.keys(ids)))
    decades = np.append(loaded.items.side["decade"], [0, 0, 0])
    genres = items.side["side_genres"].get_parameter("weight")
    for index, item_id in enumerate(ids.tolist()):
        listed = index < len(loaded.items.item_id)
        tags = np.asarray(loaded.items.side["genres"][index] if listed else np.zeros(len(genres.t())), dtype=np.float64)
        decade = torch.tensor([int(decades[index])])
        expected = lookup(shared.weight, shared.table, torch.tensor([item_id]))[0]
        expected = expected + lookup(shared.weight, shared.table, decade, offset_of("decade"))[0]
        expected = expected + genres @ torch.from_numpy(tags / max(1, tags.sum()))
        assert torch.allclose(out[index], expected, rtol=0, atol=1e-6)
    assert not loaded.items.unknown(loaded.items.keys(ids)).any()
    assert set(items.side) == {"side_genres"}


def test_vectors_by_row_are_those_of_the_items() -> None:
    loaded = small_checkpoint(config=OPEN)
    rows = np.array([5, 0, 31])
    with torch.no_grad():
        expected = loaded.model.items(torch.from_numpy(loaded.items.item_id[[4, 30]])).float().numpy()
    found = loaded.model.items.vectors(rows)
    assert np.array_equal(found[[0, 2]], expected) and not found[1].any()


@pytest.mark.skipif(not available(), reason="no kernel is compiled")
def test_a_kernel_finds_the_same_vectors_and_training_goes_its_own_way() -> None:
    loaded = small_checkpoint(dtype=torch.float32, config=OPEN)
    keys, items = torch.from_numpy(np.concatenate([loaded.items.item_id, BEYOND])), loaded.model.items
    before = items(keys)
    items.settle(FusedLookup(check.load(available()[0])))
    assert torch.equal(items(keys), before)
    loaded.model.requires_grad_(True)
    items(keys).sum().backward()
    assert shared_of(loaded).weight.grad is not None


@pytest.mark.parametrize("architecture", ["dfgr", "din"])
def test_without_an_item_table_every_item_is_served(architecture: str, tmp_path: Path) -> None:
    config = unlisted(small_config(architecture, embedding=small_embedding()))
    checkpoints.save(tmp_path / "one", build(config), ItemTable(np.empty(0, dtype=np.int64), (), {}))
    loaded = checkpoints.load(tmp_path / "one")
    assert loaded.items.is_open and not len(loaded.items.item_id)
    assert {"items.id.weight"} == {name for name in loaded.model.state_dict() if "item" in name}
    request = rank_request("ann", [*BEYOND.tolist(), int(BEYOND[0])])
    scores = cold_scores(loaded, random_events(9), request)[0].float()
    assert torch.isfinite(scores).all()
    assert scores[0] == scores[3] and len(set(scores.tolist())) == 3


def test_a_checkpoint_keeps_the_array_and_loads_as_it_was(tmp_path: Path) -> None:
    made = small_checkpoint(dtype=torch.float32, config=OPEN)
    checkpoints.save(tmp_path / "one", made.model, made.items)
    loaded = checkpoints.load(tmp_path / "one")
    assert torch.equal(shared_of(loaded).weight, shared_of(made).weight) and loaded.items.is_open
    ids = torch.from_numpy(np.concatenate([made.items.item_id, BEYOND]))
    assert torch.equal(loaded.model.items(ids), made.model.items(ids))
    half = checkpoints.load(tmp_path / "one", torch.bfloat16)
    assert half.model.items(ids).dtype == torch.bfloat16


def test_a_checkpoint_of_another_size_of_array_is_refused(tmp_path: Path) -> None:
    made = small_checkpoint(dtype=torch.float32, config=OPEN)
    larger = build(OPEN.model_copy(update={"embedding": EmbeddingConfig(kind="robe-mix", memory_mb=804e-6, block=5)}))
    larger.config = made.model.config
    checkpoints.save(tmp_path / "one", larger, made.items)
    with pytest.raises(CheckpointError, match=r"side_decade|201"):
        checkpoints.load(tmp_path / "one")


def test_a_configuration_of_before_is_a_table() -> None:
    content = small_config().model_dump()
    del content["embedding"]
    config = RankerConfig.model_validate(content)
    assert config.shared is None and config == small_config()
    said = RankerConfig.model_validate(content | {"embedding": {"kind": "table"}})
    assert said.shared is None and not small_items().is_open
    assert replace(small_items(), is_open=True).keys(BEYOND) is BEYOND


@pytest.mark.parametrize(
    ("embedding", "told"),
    [
        ({"kind": "robe-mix"}, "robe-mix needs memory_mb"),
        ({"kind": "table", "memory_mb": 1.0}, "kind is table"),
        ({"kind": "robe-v0", "memory_mb": 1e-6}, "must be from 0.000128 to 8590"),
        ({"kind": "robe-v0", "memory_mb": 9_000.0}, "must be from 0.000128 to 8590"),
        ({"kind": "robe-mix", "memory_mb": 1.0, "features": ["genres"]}, r"must be of \['decade'\]"),
        ({"kind": "robe-mix", "memory_mb": float("nan")}, "finite"),
        ({"kind": "hashed", "memory_mb": 1.0}, "'table', 'robe-v0' or 'robe-mix'"),
    ],
)
def test_what_is_wrong_is_refused(embedding: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RankerConfig.model_validate(small_config().model_dump() | {"embedding": embedding})
