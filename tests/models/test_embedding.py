"""From ids to vectors, each against a loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.algorithm import score, user_state
from mfalcon.backends.select import any_reference
from mfalcon.models.base import MISSING, Targets, context_codes
from mfalcon.models.config_features import ContextFeature
from mfalcon.models.embedding import ActionEmbedding, ContextEmbedding
from mfalcon.models.registry import rankers
from tests.small import NOW_MS, random_events, small_checkpoint, small_config, small_items, some_rows, tokens

CLOCK = "dlrm_v3_stable"
"""Its context is the time of a request, which there always is."""
FEATURES = (ContextFeature(name="surface", num_values=3), ContextFeature(name="hour", num_values=24, derive="hour_utc"))


def test_item_is_its_id_and_its_side_features() -> None:
    checkpoint = small_checkpoint()
    items, side = checkpoint.model.items, checkpoint.items.side
    genres, decade = items.side["side_genres"], items.side["side_decade"]
    out = items(torch.arange(checkpoint.items.num_rows))
    for row in range(1, checkpoint.items.num_rows):
        tags = np.asarray(side["genres"][row - 1], dtype=np.float64)
        expected = items.id.weight[row] + decade.get_parameter("weight")[int(side["decade"][row - 1])]
        expected = expected + genres.get_parameter("weight") @ torch.from_numpy(tags / max(1, tags.sum()))
        assert torch.allclose(out[row], expected, rtol=0, atol=1e-6)  # shares of tags are stored in float32


def test_a_settled_item_is_what_it_was_until_training_goes_on() -> None:
    items = small_checkpoint().model.items
    rows = torch.tensor([[3, 0], [1, 3]])
    before = items(rows)
    items.settle()
    with torch.no_grad():
        items.id.weight[3] += 1
    torch.testing.assert_close(items(rows), before)
    items.train()
    torch.testing.assert_close(items(rows)[0, 0], before[0, 0] + 1)


def test_the_unknown_item_has_an_id_and_no_genres() -> None:
    items = small_checkpoint().model.items
    expected = items.id.weight[0] + items.side["side_decade"].get_parameter("weight")[0]
    assert torch.allclose(items(torch.tensor(0)), expected)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 32]), st.one_of(st.none(), st.floats(0.1, 9)))
def test_actions_are_bits_and_a_value(mask: int, num_actions: int, value_scale: float | None) -> None:
    torch.manual_seed(num_actions)
    embedding = ActionEmbedding(num_actions, 4, 3.0, value_scale).double().requires_grad_(False)
    out = embedding(torch.tensor([mask]), torch.tensor([4.25], dtype=torch.float64))[0]
    expected = torch.zeros(4, dtype=torch.float64)
    for bit in range(num_actions):
        if mask >> bit & 1:
            expected += embedding.weight[bit]
    if value_scale is not None:
        expected += (4.25 - 3.0) / value_scale * embedding.value_weight
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)


def test_without_a_scale_the_value_is_not_read() -> None:
    embedding = ActionEmbedding(3, 4, 0.0, None)
    one, other = (embedding(torch.tensor([5]), torch.tensor([value])) for value in (1.0, 9.0))
    assert torch.equal(one, other)
    assert not hasattr(embedding, "value_weight")


def test_missing_context_has_a_vector_of_its_own() -> None:
    embedding = ContextEmbedding(FEATURES, 4)
    first, second = (table.get_parameter("weight") for table in embedding.tables)
    codes = torch.tensor([[MISSING, 23], [0, MISSING], [2, 0]])
    out = embedding(codes)
    assert torch.equal(out, torch.stack([first[0] + second[24], first[1] + second[0], first[3] + second[1]]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, [MISSING, 5]), ({"surface": 2}, [2, 5]), ({"hour": 7}, [MISSING, 7]), ({"surface": 0, "hour": 0}, [0, 0])],
)
def test_context_codes(given: dict[str, int], expected: list[int]) -> None:
    assert context_codes(FEATURES, given, (24 * 365 + 5) * 3_600_000 + 3_599_999).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", [name for name in rankers() if name != CLOCK])
def test_a_model_without_context_runs_in_every_dtype(architecture: str, dtype: torch.dtype) -> None:
    """A user's own events may have no context at all."""
    config = small_config(architecture).model_copy(update={"context_features": ()})
    checkpoint = small_checkpoint(architecture, dtype, config=config)
    served, targets = any_reference(checkpoint.model), Targets(some_rows(5), torch.empty(0, dtype=torch.int64))
    state = user_state(served, tokens(checkpoint, random_events(9)), targets.context, NOW_MS)
    assert torch.isfinite(score(served, state, targets, NOW_MS, 4)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_integer_beyond_the_dtype_is_read_right(dtype: torch.dtype) -> None:
    """Bit 31 of the actions and times near their limit are integers to the end."""
    config = small_config().model_copy(update={"actions": tuple(f"a{i}" for i in range(32))})
    checkpoint = small_checkpoint("dfgr", dtype, config=config)
    events = random_events(3)
    events["actions"] = 2**31
    shifted = replace(tokens(checkpoint, events), actions=torch.full((3,), 2**31))
    assert torch.equal(tokens(checkpoint, events).actions, shifted.actions)
    model = checkpoint.prefix_model
    action = model.actions(shifted.actions[:1], torch.tensor([3.3], dtype=torch.float64))[0]
    assert torch.allclose(action, model.actions.weight[31], rtol=0, atol=1e-6)


def test_load_items_reads_every_row() -> None:
    model, items = small_checkpoint().model, small_items()
    assert model.items.get_buffer("rows_decade")[1:].tolist() == np.asarray(items.side["decade"]).tolist()
    assert model.items.get_buffer("rows_genres")[0].sum() == 0
