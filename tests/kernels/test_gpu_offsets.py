"""Pages, rows and heads that lie more than 2**31 numbers apart are found: every offset is an int64 before a stride
multiplies it.

The memory is a file without contents, or a device's.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, UntypedStorage

from kernels.gpu import kv_write, linear, norms, prefix_attention, target_attention, target_bias
from kernels.paged import PagedKV
from tests.device import DEVICE, INTERPRETED
from tests.kernels.paged_world import Case, World, world

STRIDE = 2**30 + 64
"""Fits into an int32, twice of it does not; and multiplied as int32 it leads to `_BEFORE` in front of the memory."""
_BEFORE = 2**31
CASE = Case(((3, 40),), 3, 4, 7, 16, 16, 1, 9, 130, larger=0, slab=False, shared=False, seed=3)


@pytest.fixture(autouse=True)
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies every argument's whole memory back onto itself, which would fill the files."""
    copy = UntypedStorage.copy_

    def copy_of_another(self: UntypedStorage, source: UntypedStorage, non_blocking: bool | None = None) -> object:
        return self if self.data_ptr() == source.data_ptr() else copy(self, source, non_blocking)

    monkeypatch.setattr(UntypedStorage, "copy_", copy_of_another)


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator["Far"]:
    yield Far(tmp_path)


class Far:
    """Makes tensors whose parts lie far apart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def __call__(self, near: Tensor) -> Tensor:
        """The same numbers [3, ...], each a stride behind the one before."""
        assert len(near) == 3
        size = _BEFORE + 2 * STRIDE + near[0].numel()
        if INTERPRETED:
            self._count += 1
            path = self._path / str(self._count)
            with path.open("wb") as file:
                file.truncate(size * near.element_size())
            memory = torch.from_file(str(path), shared=True, size=size, dtype=near.dtype)
        else:
            if torch.cuda.mem_get_info()[0] < (size + 2**28) * near.element_size():
                pytest.skip("too little memory on the device")
            memory = torch.empty(size, dtype=near.dtype, device=DEVICE)
        strides = torch.empty(near.shape[1:], device="meta").stride()
        far = memory.as_strided(near.shape, (STRIDE, *strides), _BEFORE)
        far.copy_(near)
        return far


def same(far: Tensor, near: Tensor) -> bool:
    """To rounding, as the interpreter's sums depend on where operands stand; what overflows is another number."""
    return torch.allclose(far, near, rtol=1e-2, atol=1e-2, equal_nan=True)


def three_pages(dtype: torch.dtype, codes: torch.dtype | None = None) -> World:
    """One user on the pages 1, 0 and 2 of three; its rows lie on the last."""
    w = world(CASE, dtype, codes)
    kv, own = w.kv, list(w.pages[0])
    order = torch.tensor(own, device=DEVICE)[[1, 0, 2]]
    few = PagedKV(kv.k[order], kv.v[order], kv.times[order])
    if kv.k_scales is not None and kv.v_scales is not None:
        few = replace(few, k_scales=kv.k_scales[order], v_scales=kv.v_scales[order])
    w = replace(w, kv=few, pages=((1, 0, 2),))
    return replace(w, batch=w.of(0)[1])


def far_scales(kv: PagedKV, numbers: Far) -> PagedKV:
    """K's and V's together, which lie on the same pages."""
    assert kv.k_scales is not None and kv.v_scales is not None
    return replace(kv, k_scales=numbers(kv.k_scales), v_scales=numbers(kv.v_scales))


def write_everywhere(w: World, kv: PagedKV) -> None:
    """The three rows as the newest tokens on the first, the second and the third page."""
    for prefix_len in (3, 19, 40):
        batch = replace(w.batch, prefix_lens=torch.tensor([prefix_len], dtype=torch.int32, device=DEVICE))
        kv_write.kv_write(w.k, w.v, kv, batch)


def targets(w: World, bias: Tensor | None = None) -> Tensor:
    own = None if bias is None else bias[:, 0].contiguous()
    return target_attention.target_attention(w.q, w.k, w.v, w.kv, w.batch, bias, own, logit_scale=0.5, norm=1.0)


def prefix(w: World) -> Tensor:
    return prefix_attention.prefix_attention(w.q, w.kv, w.batch, w.bias, logit_scale=0.5, norm=1.0)


@pytest.mark.parametrize("part", ["k", "v", "times"])
def test_pages_of_a_prefix(part: str, numbers: Far) -> None:
    w = three_pages(torch.float16)
    far = replace(w, kv=replace(w.kv, **{part: numbers(getattr(w.kv, part))}))
    assert same(prefix(far), prefix(w))
    assert same(targets(far), targets(w))
    assert w.bias is not None
    biases = [target_bias.target_bias(kv, w.batch, w.times_ms, w.bias)[:, :40] for kv in (far.kv, w.kv)]
    assert torch.equal(*biases)


def test_scales_of_a_prefix(numbers: Far) -> None:
    w = three_pages(torch.float16, torch.int8)
    far = replace(w, kv=far_scales(w.kv, numbers))
    assert same(prefix(far), prefix(w))
    assert same(targets(far), targets(w))


def far_rows(w: World, part: str, numbers: Far) -> World:
    """The rows of q, k or v."""
    far = numbers(getattr(w, part))
    return replace(w, q=far if part == "q" else w.q, k=far if part == "k" else w.k, v=far if part == "v" else w.v)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_rows_of_targets(part: str, numbers: Far) -> None:
    w = three_pages(torch.float16)
    assert same(targets(far_rows(w, part, numbers)), targets(w))


def test_rows_of_a_prefix(numbers: Far) -> None:
    w = three_pages(torch.float16)
    assert same(prefix(far_rows(w, "q", numbers)), prefix(w))


def test_heads_of_the_bias(numbers: Far) -> None:
    w = three_pages(torch.float16)
    assert w.bias is not None
    bias = target_bias.target_bias(w.kv, w.batch, w.times_ms, w.bias)
    assert same(targets(w, numbers(bias)), targets(w, bias))


@pytest.mark.parametrize("part", ["k", "v"])
def test_pages_to_write(part: str, numbers: Far) -> None:
    w = three_pages(torch.float16)
    near = getattr(w.kv, part)
    far, before = numbers(near), near.clone()
    write_everywhere(w, w.kv)
    write_everywhere(w, replace(w.kv, **{part: far}))
    assert torch.equal(far.nan_to_num(), near.nan_to_num())
    assert [torch.equal(*pages) for pages in zip(near.nan_to_num(), before.nan_to_num(), strict=True)] == [False] * 3


def test_scales_to_write(numbers: Far) -> None:
    w = three_pages(torch.float16, torch.int8)
    kv = far_scales(w.kv, numbers)
    write_everywhere(w, w.kv)
    write_everywhere(w, kv)
    for far, near in ((kv.k_scales, w.kv.k_scales), (kv.v_scales, w.kv.v_scales)):
        assert far is not None and near is not None
        assert torch.equal(far.nan_to_num(), near.nan_to_num())


@pytest.mark.parametrize("part", ["k", "v"])
def test_rows_to_write(part: str, numbers: Far) -> None:
    w, other = three_pages(torch.float16), three_pages(torch.float16)
    far = far_rows(w, part, numbers)
    kv_write.kv_write(far.k, far.v, w.kv, w.batch)
    kv_write.kv_write(w.k, w.v, other.kv, w.batch)
    assert torch.equal(w.kv.k.nan_to_num(), other.kv.k.nan_to_num())
    assert torch.equal(w.kv.v.nan_to_num(), other.kv.v.nan_to_num())


def test_rows_of_projections_and_norms(numbers: Far) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, u = (torch.randn(3, 5, generator=generator).to(DEVICE, torch.float16) for _ in range(3))
    far = numbers(x)
    assert torch.equal(linear.linear(far, weight), linear.linear(x, weight))
    assert torch.equal(linear.linear(u, weight, None, far[:, :3]), linear.linear(u, weight, None, x[:, :3]))
    assert torch.equal(norms.layer_norm(far, None, None, 1e-5), norms.layer_norm(x, None, None, 1e-5))
    gated = [norms.norm_gate(u.float(), one, None, None, 1e-5, concat=True) for one in (far, x)]
    assert torch.equal(*gated)
