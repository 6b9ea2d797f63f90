"""Windows against a brute-force reading of the rules, and the batched forward of training against M-FALCON."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfalcon.algorithm import score, user_state
from mfalcon.backends.select import any_reference
from mfalcon.models.base import Ranker, Targets, event_tokens
from mfalcon.models.config import RankerConfig
from mfalcon.models.registry import build, prefix_rankers, rankers, trained_here
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import model_config
from mfalcon.train.sequences import (
    Columns,
    Visibility,
    Window,
    event_context,
    forward,
    grouped,
    labels,
    visible_events,
    windows,
    windows_of,
)
from mfalcon.train.synthetic import synthetic
from mfalcon.window import WindowRule

DATASET = synthetic(17, 40, 19, seed=5)
CPU = torch.device("cpu")
VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")


def visible_by_hand(dataset: Dataset, target: int, visibility: Visibility) -> list[int]:
    """Positions of the events that a target sees, before the window cuts them."""
    seen = []
    for position in range(len(dataset.events)):
        if dataset.user[position] != dataset.user[target]:
            continue
        earlier = position < target
        older = dataset.events["time_ms"][position] < dataset.events["time_ms"][target]
        if older if visibility == "strict" else earlier:
            seen.append(position)
    return seen


def seen_in(items: Sequence[Window]) -> dict[int, list[int]]:
    """What each target sees according to the windows; fails if a target is in two."""
    out: dict[int, list[int]] = {}
    for window in items:
        assert len(window.targets) == len(window.visible) > 0
        assert len(window.prefix) == window.visible.max()
        for target, visible in zip(window.targets.tolist(), window.visible.tolist(), strict=True):
            assert target not in out
            out[target] = window.prefix[:visible].tolist()
    return out


@settings(max_examples=15)
@given(st.sampled_from(VISIBILITIES), st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_windows_are_the_rules(visibility: Visibility, max_history: int, window_chunk: int, seed: int) -> None:
    window_chunk = min(window_chunk, max_history)
    is_target = np.random.default_rng(seed).random(len(DATASET.events)) < 0.3
    seen = seen_in(windows(DATASET, is_target, visibility, max_history, window_chunk))
    assert sorted(seen) == np.flatnonzero(is_target).tolist()
    for target, got in seen.items():
        visible = visible_by_hand(DATASET, target, visibility)
        assert got == visible[WindowRule(max_history, window_chunk).start(len(visible)) :]


@given(st.integers(0, 500), st.integers(1, 100), st.integers(1, 100))
def test_window_rule(history_len: int, max_history: int, window_chunk: int) -> None:
    """0 while it fits, else the smallest multiple of the chunk that makes it fit; never past the end."""
    window_chunk = min(window_chunk, max_history)
    start = WindowRule(max_history, window_chunk).start(history_len)
    multiples = range(0, history_len + window_chunk, window_chunk)
    assert start == next(multiple for multiple in multiples if history_len - multiple <= max_history)
    assert start <= history_len
    assert WindowRule(max_history, window_chunk).start(history_len + 1) - start in (0, window_chunk)
    if history_len > max_history:
        assert history_len - start > max_history - window_chunk


def test_no_targets_no_windows() -> None:
    assert windows(DATASET, np.zeros(len(DATASET.events), dtype=np.bool_), "strict", 9, 3)[:] == []


def test_visible_events_with_ties() -> None:
    times = np.array([1, 1, 2, 2, 2, 5], dtype=np.int64)
    assert visible_events(times, "order").tolist() == [0, 1, 2, 3, 4, 5]
    assert visible_events(times, "strict").tolist() == [0, 0, 2, 2, 2, 5]


def test_labels() -> None:
    truth = labels(DATASET, DATASET.tasks)
    values = DATASET.events["value"]
    assert truth.dtype == np.float32
    assert np.array_equal(truth[:, 0], (values >= 4).astype(np.float32))
    assert np.array_equal(truth[:, 1], values)
    by_action = DATASET.tasks[0].model_copy(update={"value_at_least": None, "any_action": ("rating_4", "rating_5")})
    assert np.array_equal(labels(DATASET, [by_action])[:, 0], truth[:, 0])


def test_event_context_is_what_a_request_would_carry() -> None:
    context = event_context(DATASET)
    for position in range(0, len(DATASET.events), 37):
        user, time_ms = DATASET.user[position], int(DATASET.events["time_ms"][position])
        expected = [int(DATASET.user_context[name][user]) for name in ("age", "gender", "occupation")]
        assert context[position].tolist() == [*expected, time_ms // 3_600_000 % 24]


def told(window: Window) -> tuple[list[int], ...]:
    return window.targets.tolist(), window.prefix.tolist(), window.visible.tolist()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_every_window_is_in_one_batch(batch_size: int) -> None:
    items = windows(DATASET, np.ones(len(DATASET.events), dtype=np.bool_), "strict", 9, 3)
    for rng in (None, np.random.default_rng(1)):
        batches = list(grouped(items, batch_size, rng))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert sorted(told(window) for batch in batches for window in batch) == sorted(map(told, items))
    orders = [[told(w) for b in grouped(items, 2, np.random.default_rng(seed)) for w in b] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def config_of(architecture: str, *, with_value: bool = False) -> RankerConfig:
    chunk = 4 if architecture in prefix_rankers() else None
    config = model_config(DATASET, architecture, dim=8, max_history=9, window_chunk=chunk)
    return config.model_copy(update={"value_center": 3.3, "value_scale": 1.7}) if with_value else config


def random_model(config: RankerConfig) -> Ranker:
    torch.manual_seed(1)
    model = build(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.4)
    model.items.load_items(DATASET.items)
    return model.double()


@pytest.mark.parametrize("with_value", [False, True])
@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("architecture", [name for name in rankers() if name in trained_here()])
def test_online_equals_offline(architecture: str, visibility: Visibility, with_value: bool) -> None:
    """The batched forward of training gives every target the score that it gets alone, by prefill and score."""
    config = config_of(architecture, with_value=with_value)
    model, columns = random_model(config), Columns(DATASET, config, visibility)
    items = windows_of(model, DATASET, np.arange(len(DATASET.events)) % 3 == 0, visibility)
    context, worst, count = event_context(DATASET), 0.0, 0
    for group in grouped(items, 5, np.random.default_rng(0)):
        batch = columns.batch(group)
        offline = model.scores(forward(model, batch))
        for row, column in torch.nonzero(batch.target_valid).tolist():
            target = int(batch.target_index[row, column])
            visible = visible_by_hand(DATASET, target, visibility)
            history = visible[WindowRule(config.max_history, config.window_chunk).start(len(visible)) :]
            event = DATASET.events[target : target + 1]
            rows = torch.from_numpy(DATASET.items.rows(np.ascontiguousarray(event["item_id"])))
            targets, served = Targets(rows, torch.from_numpy(context[target])), any_reference(model)
            events = event_tokens(DATASET.events[history], DATASET.items, CPU)
            now = int(event["time_ms"][0])
            state = user_state(served, events, targets.context, now)
            online = score(served, state, targets, now, 1)
            worst = max(worst, float((online[0] - offline[row, column]).abs().max()))
            count += 1
    assert count == sum(len(window.targets) for window in items) > 50
    assert worst <= 1e-12


def test_a_batch_of_empty_prefixes() -> None:
    config = config_of("dfgr")
    items = [window for window in windows(DATASET, np.ones(len(DATASET.events), dtype=np.bool_), "strict", 9, 4)]
    first = [Window(w.prefix[:0], w.targets[w.visible == 0], w.visible[w.visible == 0]) for w in items]
    batch = Columns(DATASET, config, "strict").batch([window for window in first if len(window.targets)])
    assert torch.isfinite(forward(random_model(config), batch)).all()


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_an_event_that_is_not_valid_is_seen_by_no_token(architecture: str) -> None:
    """What event dropout promises: a hidden event reaches neither the prefix nor the targets."""
    config = config_of(architecture)
    model, columns = random_model(config), Columns(DATASET, config, "strict")
    items = [
        w for w in windows(DATASET, np.ones(len(DATASET.events), dtype=np.bool_), "strict", 9, 4) if len(w.prefix) > 5
    ]
    batch = columns.batch(items[:4])
    valid = batch.valid.clone()
    valid[:, 2] = False
    edited = replace(batch.events, rows=batch.events.rows.clone())
    edited.rows[:, 2] = 7
    hidden = forward(model, replace(batch, valid=valid))
    other = forward(model, replace(batch, valid=valid, events=edited))
    assert torch.allclose(hidden, other, rtol=0, atol=1e-12)
