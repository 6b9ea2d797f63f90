"""A model is made ready with what was asked for, or the setting, the value and the limit are named."""

from dataclasses import replace

import pytest
import torch

from mfalcon.backends.select import KV_DTYPES, PoolBudget, device_named, serve
from mfalcon.errors import ConfigError
from mfalcon.kvcache.state import PlainLayout
from tests.device import needs_interpreter
from tests.small import small_checkpoint, small_config

MODEL = small_checkpoint("dfgr", torch.float32).prefix_model
LAYER = MODEL.config.stack[0]
BUDGET = PoolBudget(1 << 20, threads=1, longest=24)


@pytest.mark.parametrize(
    ("backend", "kv_dtype", "says"),
    [
        ("auto", "fp4", "kv_dtype: got 'fp4', must be one of auto, int8, fp8, fp8-products"),
        (
            "reference",
            "fp8",
            r"kv_dtype: got fp8, must be auto or int8 where triton does not compute \(it is reference\)",
        ),
        ("reference", "fp8-products", "kv_dtype: got fp8-products, must be auto or int8 where triton does not compute"),
        ("reference", "int8", "kv_dtype: got int8, must be auto where no fused kernel computes"),
        ("tpu", "auto", "backend: got 'tpu', must be one of auto, reference, fused, triton"),
    ],
)
def test_what_cannot_be_served_is_named(backend: str, kv_dtype: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        serve(MODEL, backend, BUDGET, kv_dtype)


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "banana", "mps"])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: got '{name}'"):
        device_named(name)


def test_a_device_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one torch refuses to compute there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda") == torch.device("cuda", 0)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    assert device_named("cpu") == torch.device("cpu")


def test_without_a_device_there_is_one_pool() -> None:
    served = serve(MODEL, "auto", BUDGET)
    assert served.host is None and not served.stack.batched


@needs_interpreter
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_device_has_a_pool_and_the_host_one_of_the_same_pages(kv_dtype: str) -> None:
    served = serve(MODEL, "triton", BUDGET, kv_dtype)
    assert served.host is not None and served.stack.batched
    assert served.pool.layout.page_bytes == served.host.layout.page_bytes
    assert served.pool.accounts.num_pages == (64 << 20) // served.pool.layout.page_bytes
    reserved = 3 * 2 + 4
    assert served.host.accounts.num_pages == (1 << 20) // served.host.layout.page_bytes + reserved


@needs_interpreter
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_only_products_of_float8_want_values_transposed(kv_dtype: str) -> None:
    pool = serve(MODEL, "triton", BUDGET, kv_dtype).pool
    assert isinstance(pool.layout, PlainLayout)
    assert pool.layout.transposed == (kv_dtype == "fp8-products")


@needs_interpreter
def test_a_device_budget_is_kept_to_or_refused() -> None:
    page_bytes = serve(MODEL, "triton").pool.layout.page_bytes
    budget = PoolBudget(1 << 20, threads=1, longest=24, device_bytes=7 * page_bytes)
    assert serve(MODEL, "triton", budget).pool.accounts.num_pages == 7
    with pytest.raises(ConfigError, match="device_budget_mb: got 0 MiB, must be at least 1 for three full windows"):
        serve(MODEL, "triton", PoolBudget(1 << 20, 1, 24, 5 * page_bytes))


@needs_interpreter
def test_graphs_and_activations_are_part_of_a_device_budget() -> None:
    served = serve(MODEL, "triton")
    layout, workspace = served.pool.layout, served.stack.workspace_bytes(4096)
    dim, width = MODEL.config.dim, LAYER.num_heads * LAYER.v_dim
    assert workspace > 65_536 * 4 * (2 * dim + 5 * width)  # float32: rows, u, v, q and k, and what attention gives
    budget = PoolBudget(1 << 20, threads=1, longest=24, device_bytes=workspace + 7 * layout.page_bytes)
    assert budget.device_pool(layout, workspace).accounts.num_pages == 7
    says = f"got {workspace >> 20} MiB, must be at least [0-9]+ for three full windows beside [0-9]+ MiB of graphs"
    with pytest.raises(ConfigError, match=says):
        replace(budget, device_bytes=workspace).device_pool(layout, workspace)


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_pools_are_shared_with_a_predecessor_of_the_same_pages_and_budget(backend: str) -> None:
    first = serve(MODEL, backend, BUDGET)
    other = small_checkpoint("dfgr", torch.float32, seed=2).model
    second = serve(other, backend, BUDGET, predecessor=first)
    assert second.model is other and second.stack is not first.stack
    assert second.pool is first.pool and second.host is first.host
    layers = small_checkpoint("dfgr", torch.float32, config=small_config(num_layers=3)).model
    for apart in (
        serve(other, backend, BUDGET),
        serve(other, backend, replace(BUDGET, kept_bytes=2 << 20), predecessor=first),
        serve(other, backend, replace(BUDGET, device_bytes=1 << 20), predecessor=first),
        serve(layers, backend, BUDGET, predecessor=first),
        serve(other, backend, predecessor=serve(MODEL, backend)),
    ):
        assert apart.pool is not first.pool and (apart.host is None or apart.host is not first.host)


@needs_interpreter
def test_another_kind_of_pages_is_a_pool_of_its_own() -> None:
    first = serve(MODEL, "triton", BUDGET)
    assert serve(MODEL, "triton", BUDGET, "int8", first).pool is not first.pool


@needs_interpreter
def test_the_plain_kernels_are_chosen_by_name_alone() -> None:
    for name in ("triton", "triton_plain"):
        served = serve(MODEL, name, BUDGET)
        assert served.stack.name == name
        assert served.host is not None  # a pool behind the device's, as every backend of a device has
