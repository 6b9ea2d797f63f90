"""The readout of a served model against its definition."""

from functools import cache

import pytest
import torch

from kernels.cpu import build_library, check
from kernels.cpu.library import Kernel, available
from mfalcon.models.base import MISSING, Targets
from mfalcon.models.config import RankerConfig
from mfalcon.models.readout import Readout
from tests.small import small_checkpoint, small_config, task_model

NUM_TARGETS = 9
POLICIES = [name for name in available() if build_library.POLICIES[name].element == "float32"]


@cache
def kernel(policy: str) -> Kernel:
    return check.load(policy)


def readable(config: RankerConfig, kinds: tuple[str, ...]) -> RankerConfig:
    """The config with these kinds of tasks."""
    one = config.tasks[0]
    tasks = tuple(
        one.model_copy(update={"name": f"task_{index}", "kind": kind, "center": 0.0 if kind == "binary" else 3.5})
        for index, kind in enumerate(kinds)
    )
    return config.model_copy(update={"tasks": tasks, "blend": {tasks[0].name: 1.0}})


@pytest.mark.parametrize("kinds", [("binary",), ("regression",), ("regression", "binary", "binary")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_of_context", [None, NUM_TARGETS])
@pytest.mark.parametrize("reads", ["all", "context", "dense", "nothing"])
@pytest.mark.parametrize("gives_dense", [True, False])
def test_it_is_what_the_modules_give(
    kinds: tuple[str, ...], dtype: torch.dtype, rows_of_context: int | None, reads: str, gives_dense: bool
) -> None:
    config = readable(small_config(), kinds)
    if reads not in ("all", "context"):
        config = config.model_copy(update={"context_features": ()})
    if reads not in ("all", "dense"):
        config = config.model_copy(update={"dense_features": ()})
    model = task_model(small_checkpoint(config=config))
    model.cast(dtype)
    features = config.context_features
    sizes = torch.tensor([feature.num_values for feature in features])
    lead = () if rows_of_context is None else (rows_of_context,)
    context = (torch.rand(*lead, len(features)) * (sizes + 1)).long() + MISSING
    dense = torch.randn(NUM_TARGETS, len(config.dense_features)) if gives_dense else None
    targets = Targets(torch.randint(0, config.num_items, (NUM_TARGETS,)), context, dense)
    hidden = torch.randn(NUM_TARGETS, config.dim, dtype=dtype)
    with torch.inference_mode():
        for table in model.context.embeddings:  # they begin at zero
            table.weight.normal_()
        expected = model.heads.scores(model.predict(hidden, targets))
        given = Readout(model).scores(hidden.clone(), targets)
        compiled = [Readout(model, kernel(policy)).scores(hidden.clone(), targets) for policy in POLICIES]
    assert given.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(given, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)
    for scores in compiled:  # of bfloat16 hidden targets, context is added in float32
        bounds = (1e-6, 1e-6) if dtype == torch.float32 else (2e-2, 1e-5)
        torch.testing.assert_close(scores, expected, rtol=bounds[0], atol=bounds[1])
