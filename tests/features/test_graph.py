"""The graph's features: the formulas of the server and of the trainer are the same function."""

import numpy as np
import pytest
import torch

from mfalcon.features.counters import LikeRule
from mfalcon.features.graph import graph_features, looked_up
from mfalcon.models.base import Targets, event_tokens
from mfalcon.train.graph_features import with_graph
from tests.small import NUM_ITEMS, random_events, small_config, small_items

VECTORS = np.random.default_rng(0).normal(size=(NUM_ITEMS + 1, 4)).astype(np.float32)
VECTORS[0] = 0
CONFIG = small_config(max_history=24, window_chunk=8, with_graph=True)
CANDIDATES = np.array([3, 0, 17, 3])


@pytest.mark.parametrize("length", [0, 1, 8, 9, 10, 24])
def test_a_request_reads_what_was_trained_on(length: int) -> None:
    assert CONFIG.graph is not None
    events, items = random_events(24), small_items()
    tokens = event_tokens(events[None], items, torch.device("cpu"))
    rows = torch.from_numpy(CANDIDATES)[None]
    targets = Targets(rows, torch.zeros(1, 4, 2, dtype=torch.int64), torch.ones(1, 4, 2))
    table, visible = torch.from_numpy(VECTORS), torch.full((1, 4), length)
    trained = with_graph(targets, tokens, visible, table[rows], table[tokens.rows], CONFIG).dense
    newest = events[:length][-CONFIG.graph.max_events :]
    liked = LikeRule.of_task(CONFIG.graph_task, CONFIG.actions)(newest)
    served = graph_features(VECTORS, items.rows(np.ascontiguousarray(newest["item_id"])), liked, CANDIDATES)
    assert trained is not None and served.shape == (4, 12)
    assert (trained[..., :2] == 1).all()
    np.testing.assert_allclose(trained[0, :, 2:].numpy(), served, atol=1e-6)  # sums in another order
    assert not served[1].any()  # the unknown item
    assert bool(served[0, 4:].any()) == (length > 0)


def test_items_that_came_after_the_graph_have_no_vector() -> None:
    found = looked_up(VECTORS, np.array([2, NUM_ITEMS + 1, 10**6]))
    assert found[0].any() and not found[1:].any()


def test_no_number_is_larger_than_a_layer_can_square() -> None:
    huge = np.full((3, 2), 1e4, np.float32)
    features = graph_features(huge, np.array([1, 2]), np.array([True, True]), np.array([1]))
    assert np.abs(features).max() == 1e4
