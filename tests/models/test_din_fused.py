"""The split form on the fused kernel's product computes what the papers' form does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import check
from kernels.cpu.library import FusedUnavailable, Kernel
from loadtest.bench.dlrm import DLRMS, random_candidates, random_dlrm, random_user
from mfalcon.models.config_parts import DinConfig
from mfalcon.models.din_fused import DinFused
from mfalcon.models.din_network import DinNetwork

BOUND = 1e-6
"""Scores are within 1, and the sums of the two forms are ordered differently."""


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    try:
        return check.load()
    except FusedUnavailable as error:
        pytest.skip(str(error))


@settings(max_examples=40, deadline=None)
@given(
    config=st.builds(
        DinConfig,
        dim=st.integers(1, 9),
        activation=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
        num_pools=st.integers(1, 3),
        num_cross_layers=st.integers(1, 3),
        cross_rank=st.integers(1, 20),
        num_experts=st.integers(1, 3),
        experts=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    ),
    num_events=st.integers(0, 9),
    user_dim=st.integers(0, 5),
    more=st.integers(0, 5),
    num=st.integers(1, 13),
    microbatch=st.integers(1, 14),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    kernel: Kernel,
    config: DinConfig,
    num_events: int,
    user_dim: int,
    more: int,
    num: int,
    microbatch: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = DinNetwork(
        config, num_events=9, user_dim=user_dim, item_dim=config.dim + more, tower=5, num_tasks=3
    ).requires_grad_(False)
    user, events, items = (
        torch.randn(user_dim),
        torch.randn(num_events, config.dim),
        torch.randn(num, config.dim + more),
    )
    served = DinFused(model, kernel)
    found = served.raw(served.user_side(user, events), items, microbatch).sigmoid()
    seen = torch.ones(num, num_events, dtype=torch.bool)
    expected = model.plain(user.expand(num, -1), events.expand(num, -1, -1), seen, items).sigmoid()
    assert found.shape == (num, 3)
    assert float((found - expected).abs().max()) <= BOUND


@pytest.mark.parametrize("name", list(DLRMS))
def test_the_published_sizes(kernel: Kernel, name: str) -> None:
    size = DLRMS[name]
    model = random_dlrm(size, torch.float32, seed=1)
    (user, events), items = random_user(size, torch.float32, 2), random_candidates(size, 33, torch.float32, 3)
    served = DinFused(model, kernel)
    found = served.raw(served.user_side(user, events), items, 16).sigmoid()
    seen = torch.ones(33, len(events), dtype=torch.bool)
    expected = model.plain(user.expand(33, -1), events.expand(33, -1, -1), seen, items).sigmoid()
    assert float(expected.std()) > 1e-3
    assert float((found - expected).abs().max()) <= BOUND
