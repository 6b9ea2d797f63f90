"""The network of `din`: the form that serves computes what the papers' form does, for any events and microbatch."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loadtest.bench.dlrm import DLRMS, random_candidates, random_dlrm, random_user
from mfalcon.models import din_split
from mfalcon.models.config_parts import DinConfig
from mfalcon.models.din_network import DinNetwork
from mfalcon.models.din_split import DinSplit

BOUND = {torch.float64: 1e-12, torch.float32: 1e-6}
"""float32: scores are within 1, and the sums of the two forms are ordered differently."""


def network(dtype: torch.dtype, num_events: int, config: DinConfig, user_dim: int, more: int, seed: int) -> DinNetwork:
    torch.manual_seed(seed)
    made = DinNetwork(
        config,
        num_events=num_events,
        user_dim=user_dim,
        item_dim=config.dim + more,
        tower=5,
        num_tasks=3,
        dropout=0.3,
    )
    return made.to(dtype).eval().requires_grad_(False)


def plainly(model: DinNetwork, user: Tensor, events: Tensor, items: Tensor) -> Tensor:
    num, seen = len(items), torch.ones(len(items), len(events), dtype=torch.bool)
    return model.plain(user.expand(num, -1), events.expand(num, -1, -1), seen, items).sigmoid()


def split(model: DinNetwork, user: Tensor, events: Tensor, items: Tensor, microbatch: int) -> Tensor:
    served = DinSplit(model)
    return served.raw(served.user_side(user, events), items, microbatch).sigmoid()


SMALL = DinConfig(
    dim=4, activation=(33, 17), num_pools=2, num_cross_layers=1, cross_rank=2, num_experts=1, experts=(3,)
)

CONFIGS = st.builds(
    DinConfig,
    dim=st.integers(1, 9),
    activation=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    num_pools=st.integers(1, 3),
    num_cross_layers=st.integers(1, 3),
    cross_rank=st.integers(1, 6),
    num_experts=st.integers(1, 3),
    experts=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(
    config=CONFIGS,
    dtype=st.sampled_from(list(BOUND)),
    num_events=st.integers(1, 9),
    user_dim=st.integers(0, 5),
    more=st.integers(0, 5),
    num=st.integers(1, 13),
    microbatch=st.integers(1, 14),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_split_is_plain_for_any_sizes(
    config: DinConfig,
    dtype: torch.dtype,
    num_events: int,
    user_dim: int,
    more: int,
    num: int,
    microbatch: int,
    seed: int,
    data: st.DataObject,
) -> None:
    model = network(dtype, num_events, config, user_dim, more, seed)
    user, items = torch.randn(user_dim, dtype=dtype), torch.randn(num, config.dim + more, dtype=dtype)
    events = torch.randn(data.draw(st.integers(0, num_events)), config.dim, dtype=dtype)
    found, expected = split(model, user, events, items, microbatch), plainly(model, user, events, items)
    assert found.shape == (num, 3)
    assert float((found - expected).abs().max()) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("name", list(DLRMS))
def test_the_published_sizes_are_split_within_the_bound(name: str, dtype: torch.dtype) -> None:
    size = DLRMS[name]
    model = random_dlrm(size, dtype, seed=1)
    (user, events), items = random_user(size, dtype, 2), random_candidates(size, 33, dtype, 3)
    expected = plainly(model, user, events, items)
    assert float(expected.std()) > 1e-3  # candidates differ
    assert float((split(model, user, events, items, 16) - expected).abs().max()) <= BOUND[dtype]


def test_flops_are_those_of_the_products_of_one_plain_forward() -> None:
    """Counted here by another route: by torch's own counter of a forward of one candidate."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (it loads much)

    for size in DLRMS.values():
        model = random_dlrm(size, torch.float32, seed=0)
        (user, events), items = random_user(size, torch.float32, 0), random_candidates(size, 1, torch.float32, 0)
        with FlopCounterMode(display=False) as counter:
            plainly(model, user, events, items)
        assert counter.get_total_flops() == pytest.approx(model.flops(), rel=1e-3)  # the mixing is counted by it alone
    assert random_dlrm(DLRMS["base"], torch.float32, seed=0).flops() == 14_973_760


def test_events_that_are_not_seen_do_not_count() -> None:
    config = DinConfig(dim=4, activation=(3,), num_cross_layers=1, cross_rank=2, num_experts=2, experts=(5,))
    model = network(torch.float64, 6, config, 3, 2, 0)
    user, events, items = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 3), (1, 6, 4), (1, 6)))
    seen = torch.tensor([[True, False, True, True, False, True]])
    changed = events.clone()
    changed[~seen] = 1e3
    assert torch.equal(model.plain(user, events, seen, items), model.plain(user, changed, seen, items))
    only = model.plain(user, events[:, seen[0]], torch.ones(1, 4, dtype=torch.bool), items)
    torch.testing.assert_close(model.plain(user, events, seen, items), only, rtol=0, atol=1e-12)


def test_learning_reaches_every_weight() -> None:
    config = DinConfig(
        dim=4, activation=(6, 3), num_pools=2, num_cross_layers=2, cross_rank=3, num_experts=2, experts=(5, 4)
    )
    model = network(torch.float64, 6, config, 3, 2, 0).requires_grad_(True)
    shapes = ((8, 3), (8, 6, 4), (8, 6))
    user, events, items = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    model.plain(user, events, torch.ones(8, 6, dtype=torch.bool), items).sum().backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_sizes_are_bounded() -> None:
    usual = {"dim": 4, "activation": [3], "num_cross_layers": 1, "cross_rank": 2, "num_experts": 2, "experts": [5]}
    DinConfig.model_validate(usual)
    wrong: list[dict[str, object]] = [
        {"dim": 0},
        {"dim": 1 << 20},
        {"activation": []},
        {"activation": [0]},
        {"activation": [1] * 99},
        {"num_pools": 0},
        {"num_cross_layers": 0},
        {"cross_rank": 10**9},
        {"num_experts": 10**9},
        {"experts": []},
        {"experts": [10**9]},
        {"depth": 3},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=next(iter(change))):
            DinConfig.model_validate(usual | change)


@pytest.mark.parametrize("most", [1, 20_000, 1 << 40])
def test_a_microbatch_writes_no_more_than_the_bound_whatever_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model, written = network(torch.float32, 12, SMALL, 2, 1, seed=0), list[int]()
    user, events, items = torch.randn(2), torch.randn(12, 4), torch.randn(40, 5)
    expected = split(model, user, events, items, 40)
    monkeypatch.setattr(din_split, "MOST_BYTES", most)
    empty = Tensor.new_empty

    def counted(*args: Any) -> Tensor:
        made = empty(*args)
        written.append(made.nbytes)
        return made

    monkeypatch.setattr(Tensor, "new_empty", counted)
    assert torch.allclose(split(model, user, events, items, 40), expected, atol=1e-6)
    num = max(1, min(40, most // (4 * (12 * (33 + 17) + 5 * 33))))
    each = (15, 5 * 33, 15, 15, 3, 12 * 33, 12 * 17)  # columns of x0, of the candidates, of both cross layers, ...
    assert max(written) == sum(-(-4 * num * columns // 64) * 64 for columns in each)


@pytest.mark.parametrize("is_inference", [True, False])
def test_a_thread_takes_memory_once_and_no_output_lies_in_it(
    monkeypatch: pytest.MonkeyPatch, is_inference: bool
) -> None:
    """Fresh memory cost a page fault for every 4 KB: a third of a DLRM's time in slices of 96 candidates."""
    model, written = network(torch.float32, 12, SMALL, 2, 1, seed=0), list[int]()
    served, user, empty = DinSplit(model), torch.randn(2), Tensor.new_empty
    asked = [(torch.randn(num_events, 4), torch.randn(num, 5)) for num, num_events in ((40, 12), (7, 3), (40, 12))]
    expected = [plainly(model, user, events, items) for events, items in asked]

    def counted(*args: Any) -> Tensor:
        made = empty(*args)
        written.append(made.nbytes)
        return made

    with torch.inference_mode(is_inference):
        served.raw(served.user_side(user, asked[0][0]), asked[0][1], 40)
        monkeypatch.setattr(Tensor, "new_empty", counted)
        out = [served.raw(served.user_side(user, events), items, 40) for events, items in asked]
    assert not written
    for found, wanted in zip(out, expected, strict=True):
        assert torch.allclose(found.sigmoid(), wanted, atol=1e-6)


def test_memory_is_a_thread_s_own_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float64, 12, SMALL, 2, 1, seed=0)
    served, user, events = DinSplit(model), torch.randn(2).double(), torch.randn(12, 4).double()
    parts = [torch.randn(30 + num, 5).double() for num in range(4)]
    expected = [plainly(model, user, events, items) for items in parts]

    def ask(at: int) -> list[Tensor]:
        return [served.raw(served.user_side(user, events), parts[at], 8).sigmoid() for _ in range(20)]

    for kept in (din_split.KEPT_BYTES, 0):
        monkeypatch.setattr(din_split, "KEPT_BYTES", kept)
        with ThreadPoolExecutor(4) as threads:
            for found, wanted in zip(threads.map(ask, range(4)), expected, strict=True):
                assert all(torch.allclose(each, wanted, atol=1e-12) for each in found)
    with torch.inference_mode():
        served.raw(served.user_side(user, events), parts[0], 30)
    served.raw(served.user_side(user, events), parts[0], 30)  # what was made for inference alone is not written here
