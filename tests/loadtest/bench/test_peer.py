"""The dense forward that the benchmark times is the definition that cached scores must equal."""

import pytest
import torch

from loadtest.bench.peer import dense_forward, refusal
from loadtest.bench.shapes import SHAPES
from mfalcon.laws import masked_forward
from mfalcon.models.base import Targets
from mfalcon.models.registry import prefix_rankers
from tests.small import NOW_MS, random_events, small_checkpoint, some_rows, tokens


@pytest.mark.parametrize("architecture", prefix_rankers())
@pytest.mark.parametrize(("num_events", "num_targets"), [(0, 1), (1, 5), (23, 7)])
def test_peer_equals_the_masked_forward(architecture: str, num_events: int, num_targets: int) -> None:
    checkpoint = small_checkpoint(architecture)
    events = tokens(checkpoint, random_events(num_events))
    targets = Targets(some_rows(num_targets), torch.tensor([1, 13]))
    with torch.inference_mode():
        found = dense_forward(checkpoint.model, events, targets, NOW_MS)
        expected = masked_forward(checkpoint.model, events, targets, NOW_MS)
    # float64: sums in other orders.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_peer_is_refused_where_it_needs_too_much() -> None:
    assert refusal(SHAPES["S"], 1024, 512, 1.0) is None
    assert refusal(SHAPES["S"], 4096, 512, 1.0) == "its mask and scores would need 2.1 GiB, the limit is 1"
