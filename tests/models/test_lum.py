"""A large user model: its conditions, what it gives of them, and which configurations are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mfalcon.algorithm import prefill, score
from mfalcon.backends.choice import runnable
from mfalcon.backends.select import reference, serve
from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.laws import masked_forward
from mfalcon.models.base import Targets
from mfalcon.models.checkpoint import load, save
from mfalcon.models.conditions import conditions
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_parts import LumConfig
from mfalcon.models.lum import LUM
from mfalcon.models.registry import build
from tests.small import GENRES, NOW_MS, NUM_ITEMS, random_events, small_checkpoint, small_config, small_items, tokens

CONFIG = small_config("lum")
NO_CONTEXT = torch.empty(0, dtype=torch.int64)


def model_of(dtype: torch.dtype = torch.float64) -> LUM:
    model = small_checkpoint("lum", dtype).model
    assert isinstance(model, LUM)
    return model


def test_conditions_are_every_outcome_of_every_category() -> None:
    names = [condition.name for condition in conditions(CONFIG)]
    assert names == [
        "like",
        *(f"like:{genre}" for genre in GENRES),
        "not_like",
        *(f"not_like:{genre}" for genre in GENRES),
    ]
    assert model_of().num_target_rows == len(names) == len(set(names))
    assert conditions(small_config()) == ()
    alone = CONFIG.model_copy(update={"lum": LumConfig(task="like")})
    assert [condition.name for condition in conditions(alone)] == ["like", "not_like"]
    assert build(alone).num_target_rows == 2


@pytest.mark.parametrize("backend", [choice.name for choice in runnable(torch.device("cpu"), torch.float32)])
def test_a_group_is_one_forward_a_condition_in_any_order_and_with_duplicates(backend: str) -> None:
    checkpoint = small_checkpoint("lum", torch.float32)
    events = tokens(checkpoint, random_events(20))
    asked = torch.tensor([3, 0, 7, 3, 9, 9, 1])
    with torch.inference_mode():
        served = serve(checkpoint.model, backend)
        state = prefill(served, events)
        group = score(served, state, Targets(asked, NO_CONTEXT), NOW_MS, 3)
        for at, row in enumerate(asked.tolist()):
            one = masked_forward(checkpoint.model, events, Targets(torch.tensor([row]), NO_CONTEXT), NOW_MS)
            assert float((group[at] - one[0]).abs().max()) <= 1e-5
        assert torch.allclose(group.norm(dim=-1), torch.ones(len(asked)), atol=1e-5)
        assert float((group[1] - group[0]).abs().max()) > 1e-3  # conditions differ


def test_what_the_item_is_does_not_matter_to_an_interest() -> None:
    """Its condition alone does: the same row gives the same vector whatever stands beside it."""
    checkpoint = small_checkpoint("lum")
    events = tokens(checkpoint, random_events(9))
    served = reference(checkpoint.model)
    with torch.inference_mode():
        state = prefill(served, events)
        alone = score(served, state, Targets(torch.tensor([2]), NO_CONTEXT), NOW_MS, 4)
        among = score(served, state, Targets(torch.tensor([5, 2, 0]), NO_CONTEXT), NOW_MS, 4)
    assert float((alone[0] - among[1]).abs().max()) <= 1e-12


def test_members_are_those_of_the_item_table() -> None:
    model, items = model_of(), small_items()
    members = model.members().numpy()
    assert members.shape == (NUM_ITEMS + 1, 1 + len(GENRES))
    assert members[:, 0].all() and not members[0, 1:].any()
    assert np.array_equal(members[1:, 1:], items.side["genres"] > 0)
    config = CONFIG.model_copy(update={"lum": LumConfig(task="like", category="decade")})
    by_decade = build(config)
    assert isinstance(by_decade, LUM)
    by_decade.items.load_items(items)
    for code in (1, 2):
        assert np.array_equal(by_decade.members()[1:, code].numpy(), items.side["decade"] == code)


def test_logits_are_cosines_and_popularity() -> None:
    model = model_of()
    rows = torch.arange(NUM_ITEMS + 1)
    interests = torch.nn.functional.normalize(torch.randn(3, 12, dtype=torch.float64, generator=None), dim=-1)
    keys = model.keys(rows)
    assert torch.allclose(keys.norm(dim=-1), torch.ones(len(rows), dtype=torch.float64))
    expected = model.interest.scale() * interests @ keys.t() + model.interest.popularity
    assert torch.allclose(model.logits(interests, rows), expected)
    with torch.no_grad():
        model.interest.sharpness.fill_(1e9)  # of a checkpoint that somebody made
    assert torch.isfinite(model.logits(interests, rows)).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lum": {"task": "rating", "category": "genres"}}, "binary tasks"),
        ({"lum": {"task": "like", "category": "price"}}, "side features"),
        ({"context_features": [{"name": "surface", "num_values": 3}]}, "context"),
        ({"dense_features": [{"name": "price"}]}, "dense features"),
    ],
)
def test_what_is_no_configuration_of_one_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        RankerConfig.model_validate(CONFIG.model_dump() | changes)


@pytest.mark.parametrize("architecture", ["lum", "dfgr"])
def test_an_architecture_has_conditions_or_it_has_none(architecture: str, tmp_path: Path) -> None:
    config = small_config(architecture)
    wrong = config.model_copy(update={"lum": LumConfig(task="like") if architecture == "dfgr" else None})
    with pytest.raises(ConfigError, match="lum"):
        build(wrong)
    save(tmp_path / "it", small_checkpoint(architecture, torch.float32).model, small_items())
    text = (tmp_path / "it/config.json").read_text()
    assert load(tmp_path / "it").model.config.architecture == architecture
    (tmp_path / "it/config.json").write_text(text.replace('"like"', '"dislike"'))
    with pytest.raises(CheckpointError):
        load(tmp_path / "it")
