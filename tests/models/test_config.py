"""A model's configuration: unknown keys, contradictions and numbers that are none are refused."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.config_layers import LayerConfig, RelativeBiasConfig
from mfalcon.models.registry import build, rankers
from tests.small import small_config, with_attention


def changed(**changes: object) -> dict[str, object]:
    return {**small_config().model_dump(), **changes}


def test_json_round_trip() -> None:
    config = small_config()
    assert RankerConfig.model_validate_json(config.model_dump_json()) == config


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(small_config(), "name", "other")  # noqa: B010 (mypy knows it, so the assignment must hide)


@pytest.mark.parametrize(
    ("cls", "content"),
    [
        (RankerConfig, changed(max_histroy=3)),
        (LayerConfig, {**small_config().stack[0].model_dump(), "num_head": 2}),
        (RelativeBiasConfig, {"num_positions": 3, "buckets": 2}),
        (SideFeature, {"name": "a", "kind": "tags", "vocabulary": [], "size": 3}),
        (ContextFeature, {"name": "a", "num_values": 2, "default": 0}),
        (Task, {"name": "a", "kind": "regression", "weight": 1}),
    ],
)
def test_unknown_keys_are_refused(cls: type[BaseModel], content: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cls.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "softmax"}, "attention_norm is 6, must be 1 with softmax"),
        ({"attention": "sigmoid"}, "'pointwise' or 'softmax'"),
        ({"rope": {}, "qk_dim": 5}, "qk_dim is 5, must be even with rope"),
        ({"alibi": {"num_positions": 9}}, "either alibi or bias"),
        ({"alibi": {"num_positions": 9}, "bias": None, "rope": {}}, "either alibi or rope"),
        ({"alibi": {}}, "num_positions"),
        ({"rope": {"base": 0.5}}, "greater than or equal to 1"),
    ],
)
def test_forms_of_attention_that_contradict_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LayerConfig.model_validate(small_config().stack[0].model_dump() | changes)


def test_dlrm_has_pointwise_attention() -> None:
    config = small_config("dlrm_v3")
    with pytest.raises(ValidationError, match="dlrm: must have layer with pointwise attention, without rope and alibi"):
        with_attention(config, "pointwise", rope={})


LIKE = {"name": "like", "kind": "binary", "value_at_least": 4}
FEATURE = {"name": "a", "num_values": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_items": 0}, "num_items"),
        ({"reach": [{"tokens": 4}]}, "reach: has 1 entries, must have 2"),
        ({"reach": [{"tokens": 0}, None]}, "greater than 0"),
        ({"reach": [{"tokens": 4, "targets": 0}, None]}, "greater than 0"),
        ({"reach": [None, {"tokens": 4, "first": -1}]}, "greater than or equal to 0"),
        ({"reach": [None, {"tokens": 4, "last": 3}]}, "Extra inputs are not permitted"),
        ({"dropout": 1.0}, "dropout"),
        ({"value_scale": 0.0}, "value_scale"),
        ({"actions": ()}, "actions"),
        ({"actions": tuple(f"a{i}" for i in range(33))}, "actions"),
        ({"actions": ("a", "a")}, "duplicate action"),
        ({"tasks": ()}, "tasks"),
        ({"tasks": (LIKE, LIKE)}, "duplicate task"),
        ({"tasks": (LIKE,), "blend": {"like": 1.0, "rating": 1.0}}, "blend names"),
        ({"blend": {}}, "blend names"),
        ({"blend": {"like": float("nan")}}, "blend"),
        ({"tasks": ({"name": "like", "kind": "binary", "any_action": ("buy",)},), "blend": {"like": 1}}, "buy"),
        ({"tasks": ({"name": "like", "kind": "binary"},), "blend": {"like": 1}}, "exactly one of"),
        ({"tasks": ({**LIKE, "any_action": ("click",)},), "blend": {"like": 1}}, "exactly one of"),
        ({"tasks": ({**LIKE, "kind": "regression"},), "blend": {"like": 1}}, "learns the value itself"),
        ({"context_features": (FEATURE, FEATURE)}, "duplicate context feature"),
        ({"context_features": ({**FEATURE, "name": "Surface"},)}, "name"),
        ({"context_features": ({**FEATURE, "values": ("one",)},)}, "values"),
        ({"window_chunk": 25}, "window_chunk 25 is larger than max_history 24"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RankerConfig.model_validate(changed(**changes))


@pytest.mark.parametrize("architecture", rankers())
@pytest.mark.parametrize("name", ["type", "items", "values", "keys", "forward", "rows", "float"])
def test_any_legal_name_of_a_side_feature_builds(architecture: str, name: str) -> None:
    """`type` is what a user's own item file is likely to have."""
    config = small_config(architecture)
    features = (
        SideFeature(name=name, kind="category", vocabulary=("a",)),
        SideFeature(name=f"{name}_2", kind="tags", vocabulary=("a", "b")),
    )
    build(config.model_copy(update={"side_features": features}))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match="architecture: got 'gpt', must be one of dfgr, din, dlrm_v3"):
        build(small_config().model_copy(update={"architecture": "gpt"}))
