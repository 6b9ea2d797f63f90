"""Dense features behind the layers: how they are read, and that a model starts without them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mfalcon.features.standard import LARGEST, standardised
from mfalcon.models.base import Targets, prefix_ranker
from mfalcon.models.config_features import DenseFeature
from mfalcon.models.registry import build
from mfalcon.types import DenseFeatures
from tests.small import small_checkpoint, small_config, some_rows

FEATURES = (DenseFeature(name="price", center=10, scale=4), DenseFeature(name="age"))


def given(names: tuple[str, ...], *rows: tuple[float, ...]) -> DenseFeatures:
    return DenseFeatures(names, np.array(rows, dtype=np.float32).ravel())


def test_columns_go_by_name_and_what_is_absent_is_the_mean() -> None:
    both = standardised(FEATURES, given(("age", "price"), (1.5, 18.0), (0.0, 10.0)), 2)
    assert both.tolist() == [[2.0, 1.5], [0.0, 0.0]]
    assert both.dtype == np.float32
    assert standardised(FEATURES, given(("age",), (3.0,)), 1).tolist() == [[0.0, 3.0]]
    assert standardised(FEATURES, DenseFeatures(), 2).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert standardised(FEATURES, given(("weight",), (3.0,)), 1).tolist() == [[0.0, 0.0]]  # of another version


def test_no_finite_number_is_too_large() -> None:
    most = float(np.finfo(np.float32).max)
    tiny = (DenseFeature(name="price", center=-1e30, scale=1e-30),)
    assert standardised(tiny, given(("price",), (most,), (-most,)), 2).tolist() == [[LARGEST], [-LARGEST]]
    model = small_checkpoint(dtype=torch.float32).prefix_model
    extreme = torch.tensor([[LARGEST, -LARGEST]])
    raw = model.predict(torch.zeros(1, model.config.dim), Targets(some_rows(1), torch.zeros(1, 2).long(), extreme))
    assert torch.isfinite(raw).all()


def test_a_new_model_scores_as_if_it_read_none() -> None:
    torch.manual_seed(1)
    model = prefix_ranker(build(small_config()).eval())
    hidden, context = torch.randn(5, model.config.dim), torch.zeros(5, 2).long()
    without = model.predict(hidden, Targets(some_rows(5), context))
    assert torch.equal(model.predict(hidden, Targets(some_rows(5), context, torch.randn(5, 2))), without)


def test_a_checkpoint_without_them_has_no_such_weights() -> None:
    model = build(small_config().model_copy(update={"dense_features": ()}))
    assert not [name for name in model.state_dict() if name.startswith("dense")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Price"},
        {"name": "price", "scale": 0},
        {"name": "price", "center": float("nan")},
        {"name": "p", "x": 1},
    ],
)
def test_a_feature_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DenseFeature.model_validate(wrong)


def test_two_features_of_a_name_are_refused() -> None:
    fields = small_config().model_dump()
    fields["dense_features"] = [{"name": "price"}, {"name": "price"}]
    with pytest.raises(ValidationError, match="duplicate dense feature name"):
        type(small_config()).model_validate(fields)
