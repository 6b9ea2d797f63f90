"""A legal value of an event, however large, makes finite numbers in every dtype; usual ones change by no bit."""

import numpy as np
import pytest
import torch

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import serve
from mfalcon.models.base import Targets
from mfalcon.models.embedding import ActionEmbedding
from mfalcon.models.registry import prefix_rankers
from tests.small import NOW_MS, random_events, small_checkpoint, small_config, some_rows, tokens

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1.7, 1e30])
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_no_value_poisons_a_state(architecture: str, scale: float, dtype: torch.dtype, backend: str) -> None:
    """Its own token, those behind it, and every score against them; float16 overflows at 65,504."""
    config = small_config(architecture).model_copy(update={"value_scale": scale})
    checkpoint = small_checkpoint(architecture, dtype, config=config)
    served = serve(checkpoint.model, backend)
    events = random_events(12)
    events["value"][[2, 5, 8, 9]] = LARGEST, -LARGEST, 1e6, 3e5
    with torch.inference_mode():
        state = prefill(served, tokens(checkpoint, events[:9]))
        state = append(served, state, tokens(checkpoint, events[9:]))
        for layer in range(config.stack[1]):
            assert all(torch.isfinite(part).all() for part in state.read(layer))
        targets = Targets(some_rows(7), torch.zeros(2, dtype=torch.int64))
        assert torch.isfinite(score(served, state, targets, NOW_MS, 4)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_usual_values_change_by_no_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = ActionEmbedding(1, 4, 3.3, 1.7).to(dtype)
    values = torch.cat([torch.linspace(-6_000, 6_000, 1_001), torch.tensor([3.3, 0.0])]).double()
    plain = ((values - 3.3) / 1.7).to(dtype).unsqueeze(-1) * embedding.value_weight
    assert torch.equal(embedding(torch.zeros(len(values), dtype=torch.int64), values), plain)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_it_trains(architecture: str) -> None:
    """The trainer's embedding is the server's: its gradients are finite too."""
    checkpoint = small_checkpoint(architecture, torch.float32)
    model = checkpoint.prefix_model.requires_grad_(True)
    events = random_events(4)
    events["value"][1] = LARGEST
    torch.nn.functional.layer_norm(model.prefix_tokens(tokens(checkpoint, events)), (12,)).square().sum().backward()
    grad = model.actions.value_weight.grad
    assert grad is not None
    assert torch.isfinite(grad).all()
