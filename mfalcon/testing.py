"""The laws as tests of a model of one's own, whichever package it is in.

    from mfalcon.testing import RankerLaws

    pytest_plugins = ["mfalcon.testing"]  # in conftest.py: what fails is told in full

    class TestMine(RankerLaws):
        config = my_config()

pytest runs the methods of such a class: every law in every type, what the class says of its prefix, a checkpoint
written and read again, and the check that a server makes before it serves.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mfalcon.algorithm import prefill
from mfalcon.backends.select import any_reference, reference
from mfalcon.engine.probe import probe
from mfalcon.laws import check, random_case
from mfalcon.models.base import PrefixRanker, event_tokens
from mfalcon.models.checkpoint import Checkpoint, load, save
from mfalcon.models.config import RankerConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import architecture, build

DTYPES = ("float64", "float32", "bfloat16")
_WEIGHT_STD = 0.4
"""Large enough that no part of a model is lost in the rounding of another."""
_SAME = 1e-10


def random_checkpoint(config: RankerConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Checkpoint:
    """A checkpoint of random weights, as `mfalcon.models.checkpoint.load` would return it. Raises ConfigError."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    num = config.num_items - 1
    side = {
        feature.name: rng.integers(0, 1 + len(feature.vocabulary), num)
        if feature.kind == "category"
        else (rng.random((num, len(feature.vocabulary))) < 0.4).astype(np.uint8)
        for feature in config.side_features
    }
    items = ItemTable(np.arange(1, 1 + num) * 7, ("",) * num, side)
    model = build(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=_WEIGHT_STD)
    model.items.load_items(items)
    model.cast(dtype)
    return Checkpoint(model, items, f"random-{config.architecture}-{seed}")


def is_prefix_stable(checkpoint: Checkpoint) -> bool:
    """Whether no key and no value of a prefix changes when events are added behind it, in any layer; to be asked of a
    checkpoint in float64. False of a model that has none.
    """
    model = checkpoint.model
    if not isinstance(model, PrefixRanker):
        return False
    longest = model.config.max_history
    history = event_tokens(random_case(checkpoint, longest, 1).history, checkpoint.items, model.device)
    served, worst = reference(model), 0.0
    with torch.inference_mode():
        whole = prefill(served, history)
        for length in {1, longest // 2, longest - 1} - {0}:
            part = prefill(served, type(history)(*(getattr(history, name)[:length] for name in history.__slots__)))
            for layer in range(model.config.stack[1]):
                pairs = zip(whole.read(layer, 0, part.num_tokens), part.read(layer), strict=True)
                worst = max([worst, *(float((a - b).abs().max()) for a, b in pairs)])
    return worst <= _SAME


class RankerLaws:
    """Tests of the architecture of a configuration. Derive from it, and give `config`: a small one, of few items."""

    config: RankerConfig

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_law_holds(self, dtype: str) -> None:
        """See ARCHITECTURE.md, "Laws"; those of states do not apply to a model that keeps none."""
        broken = [one for one in check(random_checkpoint(self.config, getattr(torch, dtype))) if not one.holds]
        assert not broken

    def test_its_prefix_is_what_it_says(self) -> None:
        """A model that calls itself prefix-stable, and is not, would answer from states of other histories."""
        if issubclass(architecture(self.config.architecture), PrefixRanker):
            checkpoint = random_checkpoint(self.config)
            assert checkpoint.model.prefix_stable == is_prefix_stable(checkpoint)

    def test_a_server_would_take_it(self) -> None:
        """Finite for the most extreme events that are legal."""
        probe(any_reference(random_checkpoint(self.config, torch.float32).model))

    def test_a_checkpoint_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        """All that it computes with is in its weights and its configuration."""
        before = random_checkpoint(self.config, torch.float32)
        save(tmp_path / "checkpoint", before.model, before.items)
        after = load(tmp_path / "checkpoint")
        ours, theirs = before.model.state_dict(), after.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
