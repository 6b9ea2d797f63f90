"""The probe lets right models pass and tells wrong ones, without keeping a page."""

import dataclasses

import pytest
import torch

from mfalcon.algorithm import prefill
from mfalcon.backends.base import ReferenceBackend
from mfalcon.backends.select import reference, serve
from mfalcon.engine.probe import probe
from mfalcon.errors import CheckpointError
from mfalcon.models.base import EventTokens
from mfalcon.models.registry import prefix_rankers
from tests.small import small_checkpoint, small_config, task_model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_right_models_pass_and_keep_no_page(architecture: str, dtype: torch.dtype) -> None:
    served = serve(small_checkpoint(architecture, dtype).model)
    with torch.inference_mode():
        prefill(served, EventTokens(*(torch.zeros(2, dtype=torch.int64),) * 4))  # the pool grows at its first use
    probe(served)
    assert served.pool.accounts.num_free == served.pool.accounts.num_pages


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    model = task_model(small_checkpoint())
    for parameter in model.heads.parameters():
        parameter.fill_(value)
    with pytest.raises(CheckpointError, match="not finite"):
        probe(reference(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_enormous_weights_are_refused_and_keep_no_page(architecture: str, dtype: torch.dtype) -> None:
    model = small_checkpoint(architecture, dtype).model
    for parameter in model.parameters():
        parameter.mul_(1e30)
    served = serve(model)
    with pytest.raises(CheckpointError, match=r"^small: keys or values .* not finite on backend") as caught:
        probe(served)
    assert served.stack.name in str(caught.value)
    assert served.pool.accounts.num_free == served.pool.accounts.num_pages


def test_the_task_whose_scores_are_not_finite_is_named() -> None:
    """Its bias fits the weights' dtype, the sum with what the value's center is does not fit an answer's."""
    model = task_model(small_checkpoint(dtype=torch.float64))
    model.heads.get_parameter("item_bias.weight")[:, 1] = 1e39
    with pytest.raises(CheckpointError, match="small: scores of task 'rating' are not finite on backend reference"):
        probe(reference(model))


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_what_only_extreme_values_reach_is_refused(architecture: str) -> None:
    """A usual history scores well; the first dwell time of a day would poison its user."""
    model = small_checkpoint(architecture, torch.float16).prefix_model
    model.actions.value_weight.fill_(30.0)
    with pytest.raises(CheckpointError, match="not finite on backend reference for the largest values of events"):
        probe(reference(model))
    model.actions.value_weight.fill_(3.0)
    probe(reference(model))


def test_a_blend_that_no_answer_can_hold_is_refused() -> None:
    """Every score fits float32, their weighted sum does not."""
    model = task_model(small_checkpoint(dtype=torch.float32))
    model.heads.get_parameter("item_bias.weight")[:, 1] = 1e34
    model.config = model.config.model_copy(update={"blend": {"rating": 1e6}})
    with pytest.raises(CheckpointError, match="small: the blend of finite scores is not finite"):
        probe(serve(model))


def test_a_backend_that_computes_something_else_is_refused() -> None:
    model, other = task_model(small_checkpoint()), task_model(small_checkpoint(seed=1))
    served = dataclasses.replace(reference(model), stack=ReferenceBackend(other.stack, other.kv_shape()))
    with pytest.raises(CheckpointError, match=r"backend reference differ .* must be at most 1e-11 in float64"):
        probe(served)


def test_a_model_with_counters_passes_and_what_they_spoil_is_refused() -> None:
    model = task_model(small_checkpoint(dtype=torch.float32, config=small_config(with_counters=True)))
    probe(serve(model))
    num_given = len(model.config.dense_features)
    model.dense.first.weight[:, num_given:] = 1e34
    with pytest.raises(CheckpointError, match=r"not finite on backend"):
        probe(serve(model))


def test_what_only_extreme_features_reach_is_refused() -> None:
    model = task_model(small_checkpoint(dtype=torch.float32))
    model.dense.last.weight.fill_(1e35)
    with pytest.raises(CheckpointError, match=r"not finite on backend reference"):
        probe(reference(model))
