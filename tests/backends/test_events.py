"""A model that reads events is served in float32 with the fused kernel's product, where that runs; scores stay."""

import pytest
import torch

from kernels.cpu import check
from kernels.cpu.library import FusedUnavailable
from mfalcon.backends.choice import REFERENCE
from mfalcon.backends.events import SPLIT, serve_events
from mfalcon.models.base import EventRanker, Targets, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from tests.small import random_events, small_checkpoint

BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative to the largest output: sums in another order."""


def small(dtype: torch.dtype) -> tuple[Checkpoint, EventRanker]:
    loaded = small_checkpoint("din", dtype)
    assert isinstance(loaded.model, EventRanker)
    return loaded, loaded.model


def fused_name() -> str:
    try:
        return check.load().policy.name
    except FusedUnavailable:
        return SPLIT


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("microbatch", [1, 6, 100])
@torch.inference_mode()
def test_any_form_scores_as_it_is_defined(dtype: torch.dtype, microbatch: int) -> None:
    loaded, model = small(dtype)
    served, plain = serve_events(model), serve_events(model, REFERENCE)
    assert served.name == (fused_name() if dtype == torch.float32 else SPLIT) and plain.name == REFERENCE
    config, rows = model.config, torch.arange(1, 20)
    context = torch.tensor([1] * len(config.context_features))
    targets = Targets(rows, context, torch.randn(len(rows), len(config.dense_features), dtype=dtype))
    events = event_tokens(random_events(min(9, config.max_history)), loaded.items, torch.device("cpu"))
    found, expected = (
        each.reader.raw(each.reader.read(events, context, 0), targets, microbatch).double() for each in (served, plain)
    )
    assert float((found - expected).abs().max()) <= BOUND[dtype] * float(expected.abs().max())


def test_other_types_have_no_kernel() -> None:
    assert serve_events(small(torch.bfloat16)[1]).name == SPLIT
