"""The model around the network of `din`: what goes into it, and where."""

import pytest
import torch
from pydantic import ValidationError

from mfalcon.backends.events import serve_events
from mfalcon.errors import ConfigError
from mfalcon.models.base import EventRanker, EventTokens, Targets, prefix_ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.registry import build
from tests.small import random_events, small_checkpoint, small_config, some_rows, tokens


def event_ranker(dtype: torch.dtype = torch.float64) -> EventRanker:
    model = small_checkpoint("din", dtype).model
    assert isinstance(model, EventRanker)
    return model


def test_everything_is_made_where_the_weights_are() -> None:
    """On a device without memory, where a tensor of the CPU among the others is an error: so `auto` runs on any."""
    device = torch.device("meta")
    model = event_ranker(torch.bfloat16)
    model.to(device)
    rows = torch.zeros(9, dtype=torch.int64, device=device)
    targets = Targets(rows, rows[:2], torch.zeros(9, 2, device=device))
    for backend in ("auto", "reference"):
        served = serve_events(model, backend)
        side = served.reader.read(EventTokens(rows, rows, rows.double(), rows), targets.context, 0)
        scores = model.scores(served.reader.raw(side, targets, 4))
        assert (scores.device, scores.shape) == (device, (9, 2))


def test_a_rescaled_task_is_scaled_and_the_others_are_not() -> None:
    model = event_ranker()
    events, targets = tokens(small_checkpoint("din"), random_events(9)), Targets(some_rows(5), torch.tensor([1, 2]))

    def raw() -> torch.Tensor:
        reader = model.reader()
        return reader.raw(reader.read(events, targets.context, 0), targets, 5)

    before = raw()
    model.rescale(0, 3.0, -0.5)
    expected = torch.stack([3 * before[:, 0] - 0.5, before[:, 1]], dim=1)
    torch.testing.assert_close(raw(), expected, rtol=0, atol=1e-12)


def test_features_and_values_are_read_to_16_deviations_and_no_farther() -> None:
    model, reads = event_ranker(), torch.zeros(2, dtype=torch.int64)
    center, scale = model.config.value_center, model.config.value_scale
    assert scale is not None

    def raw(value: float, feature: float) -> torch.Tensor:
        reader, row = model.reader(), torch.ones(1, dtype=torch.int64)
        events = EventTokens(row, row, torch.tensor([value], dtype=torch.float64), row)
        targets = Targets(row, reads, torch.full((1, 2), feature, dtype=torch.float64))
        return reader.raw(reader.read(events, reads, 0), targets, 1)

    most = raw(center + 16 * scale, 16.0)
    assert torch.equal(raw(center + 1e6 * scale, 1e4), most)
    assert not torch.equal(raw(center + 15 * scale, 16.0), most)
    assert not torch.equal(raw(center + 16 * scale, 15.0), most)


def test_a_configuration_is_of_one_kind() -> None:
    din, dfgr = small_config("din").model_dump(), small_config("dfgr").model_dump()
    for wrong, message in (
        (din | {"din": None}, "got neither"),
        (din | {"layer": dfgr["layer"], "num_layers": 2}, "got both"),
        (din | {"layer": dfgr["layer"]}, "must be given together"),
        (din | {"window_chunk": 2}, "window_chunk: got 2, must be 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            RankerConfig.model_validate(wrong)
    for name, config in (("dfgr", small_config("din")), ("din", small_config("dfgr"))):
        with pytest.raises(ConfigError, match=f"architecture '{name}': got"):
            build(config.model_copy(update={"architecture": name}))


def test_it_has_no_state_and_says_so() -> None:
    with pytest.raises(ConfigError, match="'din' encodes no history, it has no KV state"):
        prefix_ranker(small_checkpoint("din").model)
