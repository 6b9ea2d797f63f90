"""A probe: does a token's K/V change when events are added after it? What it finds is what the class says of itself."""

import pytest
import torch

from mfalcon.algorithm import prefill
from mfalcon.backends.select import reference
from mfalcon.models.base import EventTokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.hstu import HSTU
from mfalcon.models.registry import architecture, prefix_rankers
from tests.small import random_events, small_checkpoint, small_config, tokens, with_attention

BOUND = 1e-12


def is_prefix_stable(checkpoint: Checkpoint) -> bool:
    """Compare K and V of a prefix alone with those of the same prefix inside longer histories, all layers."""
    model, worst = checkpoint.model, 0.0
    for length in (1, 23, 63):
        history = random_events(length + 14, length)
        short = prefill(reference(model), tokens(checkpoint, history[:length]))
        for more in (1, 14):
            long = prefill(reference(model), tokens(checkpoint, history[: length + more]))
            n = short.num_tokens
            for layer in range(model.config.stack[1]):
                for a, b in zip(long.read(layer, 0, n), short.read(layer), strict=True):
                    worst = max(worst, float((a - b).abs().max()))
    return worst <= BOUND


@pytest.mark.parametrize("name", prefix_rankers())
def test_every_architecture_is_what_it_says(name: str) -> None:
    checkpoint = small_checkpoint(name, config=small_config(name, num_layers=3))
    assert architecture(name).prefix_stable == is_prefix_stable(checkpoint)


@pytest.mark.parametrize("position", [{"rope": {}}, {"alibi": {"num_positions": 30}}])
def test_softmax_is_stable_wherever_positions_come_from(position: dict[str, object]) -> None:
    config = with_attention(small_config("hstu", num_layers=3), "softmax", **position)
    assert is_prefix_stable(small_checkpoint("hstu", config=config))


class TimesFromTheEnd(HSTU):
    """As DLRM-v3 does: an event is read with its age at the newest event."""

    def prefix_tokens(self, events: EventTokens) -> torch.Tensor:
        age = (events.times[..., -1:] - events.times).double() / 1e9
        x = super().prefix_tokens(events)
        return x + age.repeat_interleave(2, -1).unsqueeze(-1) * torch.arange(x.shape[-1])


def test_the_probe_sees_a_model_that_is_not() -> None:
    checkpoint = small_checkpoint("hstu")
    checkpoint.model.__class__ = TimesFromTheEnd
    assert not is_prefix_stable(checkpoint)
